"""Tables in Markdown, and figures in them."""

import math
from collections.abc import Container

NOTHING = "–"  # in place of a figure that is not there


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def header(*titles: str, words: Container[int] = (0,)) -> list[str]:
    """The two lines above a table's rows; columns of numbers are aligned right.

    Args:
        titles: Of the columns.
        words: Places of the columns that hold words.
    """
    rule = ["---" if place in words else "---:" for place in range(len(titles))]
    return [row(*titles), row(*rule)]


def percent(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return NOTHING if value is None or not math.isfinite(value) else f"{100 * value:.2f}"
