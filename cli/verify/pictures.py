"""The benchmark's pictures as small SVG files: detection by cost, and how far confidence can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bottleneck.accuracy.figures import Bin, Figures, Rate
from cli.verify.tables import WORDS, cost_words

# A panel and what is around it, in pixels.
PANEL_WIDTH, PANEL_HEIGHT = 250, 110
LEFT, TOP, GAP = 44, 34, 30
COLUMNS = 3
SIDE = 260
# Readable on white and on black.
NAMED, FIRST, GRID, WORDS_COLOUR = "#3b82c4", "#d97706", "#8888", "#888"


def detection(figures: Figures) -> str:
    """Return a panel for each fault: how often it was named, and how often first, by what it cost."""
    kinds = [kind for kind in WORDS if kind in figures.detection]
    rows = -(-len(kinds) // COLUMNS)
    width = COLUMNS * (PANEL_WIDTH + LEFT) + GAP
    height = rows * (PANEL_HEIGHT + TOP + GAP) + GAP
    parts = []
    for number, kind in enumerate(kinds):
        left = LEFT + (number % COLUMNS) * (PANEL_WIDTH + LEFT)
        top = TOP + (number // COLUMNS) * (PANEL_HEIGHT + TOP + GAP)
        parts.append(_panel(kind, figures.detection[kind], figures.first[kind], left, top))
    legend = (
        f'<text x="{LEFT}" y="{height - 8}" fill="{NAMED}">named, first or as a runner-up</text>'
        f'<text x="{LEFT + 220}" y="{height - 8}" fill="{FIRST}">named first</text>'
    )
    return picture(width, height, [*parts, legend], "How often each fault is named, by what it costs")


def _panel(kind: str, named: Sequence[Rate], first: Sequence[Rate], left: float, top: float) -> str:
    step = PANEL_WIDTH / len(named)
    parts = [
        f'<text x="{left}" y="{top - 8}" font-weight="bold">{WORDS[kind]}</text>',
        *(
            f'<line x1="{left}" x2="{left + PANEL_WIDTH}" y1="{y:g}" y2="{y:g}" stroke="{GRID}" stroke-width="0.5"/>'
            f'<text x="{left - 6}" y="{y + 4:g}" text-anchor="end">{share:.0%}</text>'
            for share in (0.0, 0.5, 1.0)
            if (y := top + PANEL_HEIGHT * (1 - share)) is not None
        ),
    ]
    words = [text.replace("below ", "<").replace(" and more", "+").replace(" to ", "-") for text in cost_words()]
    for place, (text, rate) in enumerate(zip(words, named, strict=True)):
        x = left + (place + 0.5) * step
        parts.append(
            f'<text x="{x:g}" y="{top + PANEL_HEIGHT + 13}" text-anchor="middle" font-size="8">{escape(text)}</text>'
        )
        if rate.of:
            low, high = (top + PANEL_HEIGHT * (1 - share) for share in rate.interval)
            parts.append(
                f'<line x1="{x:g}" x2="{x:g}" y1="{low:.1f}" y2="{high:.1f}" stroke="{NAMED}" stroke-opacity="0.4"/>'
            )
    for rates, colour in ((named, NAMED), (first, FIRST)):
        points = [
            (left + (place + 0.5) * step, top + PANEL_HEIGHT * (1 - rate.value))
            for place, rate in enumerate(rates)
            if rate.of
        ]
        parts.append(line(points, colour))
    return "".join(parts)


def reliability(bins: Sequence[Bin], error: float) -> str:
    """Return right answers by confidence; on the diagonal confidence is what it says."""
    left, top = LEFT, TOP
    most = max((each.right.of for each in bins), default=1)
    parts = [
        f'<text x="{left}" y="{top - 12}" font-weight="bold">expected calibration error {error:.2f}</text>',
        f'<rect x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" fill="none" stroke="{GRID}"/>',
        f'<line x1="{left}" y1="{top + SIDE}" x2="{left + SIDE}" y2="{top}" stroke="{GRID}" stroke-dasharray="4 3"/>',
    ]
    for share in (0.0, 0.5, 1.0):
        x, y = left + SIDE * share, top + SIDE * (1 - share)
        parts.append(f'<text x="{left - 6}" y="{y + 4:g}" text-anchor="end">{share:.0%}</text>')
        parts.append(f'<text x="{x:g}" y="{top + SIDE + 14}" text-anchor="middle">{share:.0%}</text>')
    for each in bins:
        x = left + SIDE * each.confidence
        low, high = (top + SIDE * (1 - share) for share in each.right.interval)
        y, radius = top + SIDE * (1 - each.right.value), 2.5 + 5 * (each.right.of / most) ** 0.5
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{NAMED}" stroke-opacity="0.5"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{NAMED}"/>'
        )
    parts.append(f'<text x="{left + SIDE / 2}" y="{top + SIDE + 30}" text-anchor="middle">confidence</text>')
    parts.append(f'<text x="{left + 6}" y="{top + 14}">right</text>')
    return picture(SIDE + 2 * LEFT, SIDE + TOP + 44, parts, "How often answers are right, by their confidence")


def line(points: Sequence[tuple[float, float]], colour: str) -> str:
    """Return a line through points, with a dot at each."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>{dots}'


def picture(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """Return a whole picture of its parts."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="11" fill="{WORDS_COLOUR}" '
        f'role="img"><title>{title}</title>\n' + "\n".join(parts) + "\n</svg>\n"
    )
