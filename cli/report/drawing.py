"""Coordinates for the report's pictures: paths in a box of 1000 by 100, everything else in percent.

The picture stretches with the page while its text stays the size of the page's: lines are SVG without an aspect
ratio, words are HTML beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cli.report.figures import PERCENTILES, Distribution
from cli.report.quantity import quantity
from cli.report.series import Chart, Edges, Line, Values

WIDTH, HEIGHT = 1000.0, 100.0


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in percent from the left or from the bottom, and its words."""

    percent: float
    text: str


def nice_step(span: float, most: int = 5) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that cuts `span` into at most `most` parts."""
    if not span > 0 or not math.isfinite(span):
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most + 1e-9)


def ticks(low: float, high: float, unit: str, most: int = 4) -> list[Tick]:
    """Return round marks between two values."""
    span = high - low
    if span <= 0:
        return []
    # Rates are shown in bits: round there, so that the words are round too.
    scale = 8.0 if unit == "bytes/s" else 1.0
    step = nice_step(span * scale, most) / scale
    if unit == "count":
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    marks = [index * step for index in range(first, int(high / step + 1e-9) + 1)]
    shown = "" if unit == "count" else unit
    return [Tick(round((mark - low) / span * 100, 2), quantity(abs(mark), shown) if mark else "0") for mark in marks]


def time_ticks(seconds: float) -> list[Tick]:
    """Return marks for an axis that starts at zero seconds."""
    unit, scale = ("s", 1.0) if seconds < 300 else ("min", 60.0) if seconds < 4 * 3600 else ("h", 3600.0)
    step = nice_step(seconds / scale, 8) * scale if seconds > 0 else 1.0
    marks = [index * step for index in range(int(seconds / step + 1e-9) + 1)] if seconds > 0 else []
    return [Tick(round(mark / seconds * 100, 2), f"{mark / scale:g} {unit}") for mark in marks]


def line_path(values: Values, low: float, high: float) -> str:
    """Return the SVG path of one line; a gap in the values is a gap in the line."""
    width = WIDTH / max(len(values), 1)
    parts: list[str] = []
    pen_down = False
    for index, value in enumerate(values):
        if value is None:
            pen_down = False
            continue
        height = _height(value, low, high)
        parts.append(f"{'V' if pen_down else f'M{index * width:.1f} '}{height:.1f}H{(index + 1) * width:.1f}")
        pen_down = True
    return "".join(parts)


def area_path(values: Values, low: float, high: float) -> str:
    """Return the SVG path of the area between a line and zero."""
    width = WIDTH / max(len(values), 1)
    zero = _height(0.0, low, high)
    return "".join(
        f"M{index * width:.1f} {zero:.1f}V{_height(value, low, high):.1f}H{(index + 1) * width:.1f}V{zero:.1f}Z"
        for index, value in enumerate(values)
        if value
    )


def _height(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.0
    return HEIGHT - min(max(share, 0.0), 1.0) * HEIGHT


def gaps(lines: list[Line]) -> list[tuple[float, float]]:
    """Return the stretches in which no line has a value: start and width in percent."""
    if not lines or not lines[0].values:
        return []
    empty = [all(value is None for value in row) for row in zip(*(line.values for line in lines), strict=True)]
    found: list[tuple[float, float]] = []
    start: int | None = None
    for index, missing in enumerate([*empty, False]):
        if missing and start is None:
            start = index
        elif not missing and start is not None:
            found.append((start / len(empty) * 100, (index - start) / len(empty) * 100))
            start = None
    return found


def chart_picture(chart: Chart) -> dict[str, Any]:
    """Return what the template needs to draw a chart over time."""
    used = max((value for line in chart.lines for value in line.known), default=0.0)
    # A ceiling far above the use would press every line to the floor: then it is written in words.
    inside = [item for item in chart.references if item.value <= 4 * used]
    top = max([used, *(item.value for item in inside)])
    high = 1.0 if chart.unit == "share" else 1.08 * (max(1.0, math.ceil(top)) if chart.unit == "count" else top or 1.0)
    low = -high if chart.mirrored else 0.0
    shown = "" if chart.unit == "count" else chart.unit
    beyond = [
        f"{item.name if '_' in item.name else item.name.capitalize()} {quantity(item.value, shown)}, off the scale"
        + (f": {quantity(item.value / used)} times the highest use." if used > 0 else ".")
        for item in chart.references
        if item not in inside
    ]
    lines = [
        {
            "line": line,
            "identity": f"{chart.identity}-{index}",
            "path": line_path(values, low, high),
            "area": "" if line.faint else area_path(values, low, high),
        }
        for index, line in enumerate(chart.lines)
        for values in ([None if value is None else -value for value in line.values] if line.down else line.values,)
    ]
    signs = (1.0, -1.0) if chart.mirrored else (1.0,)
    return {
        "chart": chart,
        "lines": lines,
        "ticks": ticks(low, high, chart.unit, 4),
        "references": [
            {
                "percent": (sign * item.value - low) / (high - low) * 100,
                "text": f"{item.name} {quantity(item.value, shown)}" if sign > 0 else "",
            }
            for item in inside
            for sign in signs
        ],
        "asides": [text for text in (*beyond, chart.remark) if text],
        "gaps": gaps(chart.lines),
        "rows": [_line_row(line, chart.unit) for line in chart.lines if not line.faint],
    }


def _line_row(line: Line, unit: str) -> dict[str, str]:
    known = line.known
    shown = "" if unit == "count" else unit
    return {
        "name": line.name,
        "least": quantity(min(known), shown),
        "mean": quantity(sum(known) / len(known), shown),
        "most": quantity(max(known), shown),
        "missing": f"{(len(line.values) - len(known)) / len(line.values):.0%}",
    }


def hover_data(charts: list[Chart], edges: Edges) -> dict[str, Any]:
    """Return the numbers that the page shows under the pointer, already in words' units."""
    lines = {
        f"{chart.identity}-{index}": [
            None if value is None else quantity(value, "" if chart.unit == "count" else chart.unit)
            for value in line.values
        ]
        for chart in charts
        for index, line in enumerate(chart.lines)
        if not line.faint
    }
    middles = [round(float(value - edges[0]), 2) for value in (edges[:-1] + edges[1:]) / 2]
    return {"seconds": middles, "lines": lines}


def cdf_picture(latency: Distribution) -> dict[str, Any]:
    """Return what the template needs to draw a cumulative distribution of latencies."""
    low, high = latency.values[0], latency.values[-1]
    low = 0.0 if low < 0.4 * high else low - 0.1 * (high - low)
    high = max(high + 0.03 * (high - low), low + 1e-6)
    count = len(latency.values)
    # More points than pixels draw the same line.
    chosen = sorted({round(index * (count - 1) / 399) for index in range(400)}) if count > 400 else range(count)
    path = ["M0 100"]
    for index in chosen:
        across = (latency.values[index] - low) / (high - low) * WIDTH
        path.append(f"H{across:.1f}V{HEIGHT - (index + 1) / count * HEIGHT:.1f}")
    path.append(f"H{WIDTH:.0f}")
    marks = [
        {
            "percent": (latency.percentile(share) - low) / (high - low) * 100,
            "name": f"p{share}",
            "text": quantity(latency.percentile(share), "s"),
        }
        for share in PERCENTILES
    ]
    return {
        "latency": latency,
        "path": "".join(path),
        "ticks": ticks(low, high, "s", 4),
        "marks": marks,
        "count": count,
        "mean": quantity(latency.mean, "s"),
    }
