"""Curves as SVG for a page: axes, a legible number of points, and their values for the page's script."""

import html
import json
import math
from collections.abc import Sequence

import numpy as np

Points = Sequence[tuple[int, float]]  # (step, value)
MAX_POINTS = 500  # of a curve
COLORS = 8  # that curves have; from then on they are dashed
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 220, 50, 12, 12, 34  # in pixels
_DOTS = 40  # a curve of at most so many points shows each


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers in a range, at most about so many."""
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    unit = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    return [float(f"{i * unit:.10g}") for i in range(first, last + 1)]


def thinned(points: Points) -> Points:
    """At most MAX_POINTS of some points, evenly spread, the last one among them."""
    every = max(1, -(-len(points) // (MAX_POINTS - 1)))
    return points if every == 1 else [*points[:-1:every], points[-1]]


def means(points: Points, window: int) -> Points:
    """The mean of the last `window` values, from where there are so many."""
    sums = np.cumsum([0.0, *(value for _, value in points)])
    values = (sums[window:] - sums[:-window]) / window
    return [(step, float(v)) for (step, _), v in zip(points[window - 1 :], values, strict=True)]


def color_class(place: int) -> str:
    """The CSS classes of the curve at a place, and of what stands for it elsewhere."""
    return f"c{place % COLORS}{' dashed' * (place >= COLORS)}"


def chart(
    title: str, curves: Sequence[tuple[str, Points]], *, scale: float = 1.0, smooth: bool = False
) -> str:
    """A chart over steps.

    Args:
        title: Says what the values are, and their unit.
        curves: (name, points), the points in the order of their steps.
        scale: How values become lengths.
        smooth: Draws the mean of a twentieth of a curve's values boldly over them.

    Returns:
        A figure in HTML, "" if there are no points at all. Its svg has the drawn points in data-chart.
    """
    given = {
        place: [(step, float(f"{scale * value:.6g}")) for step, value in points]
        for place, (_, points) in enumerate(curves)
        if points
    }
    if not given:
        return ""
    drawn = {place: thinned(points) for place, points in given.items()}
    last_step = max(points[-1][0] for points in drawn.values()) or 1
    bottom, top = _range([value for points in drawn.values() for _, value in points])

    def x(step: int | float) -> str:
        return f"{_LEFT + step / last_step * (_WIDTH - _LEFT - _RIGHT):.1f}"

    def y(value: float) -> str:
        return f"{_TOP + (top - value) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    def line(points: Points, kind: str) -> str:
        path = " ".join(f"{x(step)},{y(value)}" for step, value in points)
        return f'<polyline class="{kind}" points="{path}"/>'

    parts, window = [_axes(x, y, last_step, bottom, top)], 1
    for place, points in drawn.items():
        mean = len(given[place]) // 20 if smooth else 0
        shapes = line(points, "faint" if mean > 2 else "curve")
        if mean > 2:
            window = max(window, mean)
            shapes += line(thinned(means(given[place], mean)), "curve")
        elif len(points) <= _DOTS:
            shapes += "".join(f'<circle cx="{x(s)}" cy="{y(v)}" r="2.5"/>' for s, v in points)
        parts.append(f'<g class="{color_class(place)}">{shapes}</g>')
    parts.append(f'<path class="cursor" d="M0 {_TOP}V{_HEIGHT - _BOTTOM}"/>')
    values = {
        "last": last_step,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "curves": [{"name": curves[place][0], "points": points} for place, points in drawn.items()],
    }
    ends = "; ".join(f"{curves[place][0]} {points[-1][1]:g}" for place, points in drawn.items())
    remark = f" <small>bold: mean of the last {window} logged</small>" if window > 1 else ""
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}{remark}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{html.escape(f"{title} over steps; at the end: {ends}")}"'
        f' data-chart="{html.escape(json.dumps(values, separators=(",", ":")))}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From 0 where that leaves the values half of the height, with a little room above."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or abs(high) / 2 or 1.0
    return (0.0 if 0 <= low <= high / 2 else low - room), high + room


def _axes(x, y, last_step: int, bottom: float, top: float) -> str:
    edge = _HEIGHT - _BOTTOM
    parts = []
    for value in ticks(bottom, top):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value)}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="y" x="{_LEFT - 6}" y="{y(value)}">{value:g}</text>')
    for step in ticks(0.0, float(last_step)):
        shown = f"{step / 1000:g}k" if step and last_step >= 10_000 else f"{step:g}"
        parts.append(f'<text class="x" x="{x(step)}" y="{edge + 15}">{shown}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {edge}H{_WIDTH - _RIGHT}"/>')
    parts.append(f'<text class="x" x="{x(last_step / 2)}" y="{_HEIGHT - 4}">step</text>')
    return "".join(parts)
