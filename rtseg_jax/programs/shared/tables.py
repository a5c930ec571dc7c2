"""Tables in Markdown."""

from collections.abc import Container


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def header(*titles: str, words: Container[int] = (0,)) -> list[str]:
    """The two lines above a table's rows; columns of numbers are aligned right.

    Args:
        titles: The columns' headings.
        words: Places of the columns that hold words.
    """
    rule = ["---" if place in words else "---:" for place in range(len(titles))]
    return [row(*titles), row(*rule)]
