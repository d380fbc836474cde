"""Draw tensor against pipeline parallelism over the rate of a cable, as a small SVG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cli.verify.pictures import FIRST, GRID, NAMED, line, picture

WIDTH, HEIGHT, LEFT, TOP, GAP = 250, 170, 56, 46, 34
COLOURS: Mapping[str, str] = {"tensor": NAMED, "pipeline": FIRST}


@dataclass(frozen=True)
class Panel:
    """One panel: seconds over bits per second, both on logarithmic axes.

    Attributes
    ----------
    lines
        `tensor` or `pipeline` -> points.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def chart(panels: Sequence[Panel], title: str) -> str:
    """Return the picture, its panels side by side."""
    parts = [_panel(each, LEFT + place * (WIDTH + LEFT)) for place, each in enumerate(panels)]
    bottom = TOP + HEIGHT + GAP
    legend = (
        f'<text x="{LEFT}" y="{bottom + 10}" fill="{COLOURS["tensor"]}">TP=2</text>'
        f'<text x="{LEFT + 60}" y="{bottom + 10}" fill="{COLOURS["pipeline"]}">PP=2</text>'
    )
    return picture(len(panels) * (WIDTH + LEFT) + GAP, bottom + 22, [*parts, legend], title)


def _panel(panel: Panel, left: float) -> str:
    every = [point for points in panel.lines.values() for point in points]
    slowest, fastest = min(x for x, _ in every), max(x for x, _ in every)
    low = 10 ** math.floor(math.log10(min(y for _, y in every)))
    high = 10 ** math.ceil(math.log10(max(y for _, y in every)))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        along = math.log(point[0] / slowest) / math.log(fastest / slowest)
        up = math.log(point[1] / low) / math.log(high / low)
        return left + WIDTH * along, TOP + HEIGHT * (1 - up)

    parts = [f'<text x="{left}" y="{TOP - 12}" font-weight="bold">{panel.title}</text>']
    decades = round(math.log10(high / low))
    for seconds in (low * 10**step for step in range(decades + 1)):
        _, y = place((slowest, seconds))
        parts.append(
            f'<line x1="{left}" x2="{left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}" stroke-width="0.5"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_seconds(seconds)}</text>'
        )
    for rate in (1e8, 1e9, 1e10, 4e10):
        if slowest <= rate <= fastest:
            x, _ = place((rate, low))
            name = f"{rate / 1e9:g}"
            parts.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 14}" text-anchor="middle">{name}</text>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 28}" text-anchor="middle">Gbit/s</text>')
    for parallel, points in panel.lines.items():
        parts.append(line([place(point) for point in points], COLOURS[parallel]))
    return "".join(parts)


def _seconds(value: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{1e3 * value:g} ms"
