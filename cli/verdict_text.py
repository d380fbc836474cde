"""A verdict, its ledger and the ceilings as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cli.report.figures import quantity
from cli.report.ledger import ledger_rows
from cli.report.page import confidence_word
from cli.report.usage import Use

BAR_WIDTH = 20


def bar(share: float | None, width: int = BAR_WIDTH) -> str:
    """Return a share, 0 to 1, as a bar of characters."""
    if share is None:
        return ""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", title_justify="left")
    for column in columns:
        right = column in ("time", "share", "mean", "peak", "ceiling")
        table.add_column(column, justify="right" if right else "left", no_wrap=right or column == "phase")
    return table


def headline(verdict: dict[str, Any]) -> RenderableType:
    """Return the verdict in two or three lines."""
    confidence = float(verdict.get("confidence") or 0.0)
    title = Text.assemble(
        (str(verdict.get("title") or "No verdict"), "bold"),
        f"   confidence {confidence:.0%} ({confidence_word(confidence)})",
    )
    lines: list[RenderableType] = [title]
    if verdict.get("meaning"):
        lines.append(Text(str(verdict["meaning"])))
    if verdict.get("gain"):
        lines.append(Text(str(verdict["gain"]["statement"])))
    return Group(*lines)


def ledger_table(ledger: dict[str, Any]) -> RenderableType:
    """Return the ledger, one line an entry."""
    rows = ledger_rows(ledger)
    if not rows:
        return Text("no ledger: the measurements do not say where the time went", style="dim")
    table = _table("phase", "where", "resource", "time", "share", "", "from")
    for row in rows:
        style = "dim" if row["resource"] == "unexplained" else "cyan"
        share = f"{row['share']:.1%}"
        source = f"[dim]{escape(row['source'])}[/]"
        table.add_row(
            row["phase"],
            escape(row["where"]),
            row["words"],
            row["text"],
            share,
            f"[{style}]{bar(row['share'])}[/]",
            source,
        )
    table.add_row("", "", "[bold]per output token[/]", f"[bold]{quantity(ledger.get('total'), 's')}[/]", "", "", "")
    return table


def usage_table(uses: Sequence[Use]) -> RenderableType:
    """Return ceilings beside what was used of them."""
    if not uses:
        return Text("neither ceilings nor samples were recorded; measure the ceilings: cluster probe", style="dim")
    table = _table("resource", "where", "mean", "peak", "ceiling", "share", "", "from")
    for use in uses:
        share = use.mean_share
        table.add_row(
            use.resource,
            escape(use.where),
            quantity(use.mean, use.unit) or "-",
            quantity(use.peak, use.unit) or "-",
            quantity(use.ceiling, use.unit) or "unknown",
            "-" if share is None else quantity(share, "1"),
            f"[cyan]{bar(share, 12)}[/]",
            f"[dim]{escape(use.source)}[/]",
        )
    return table


def evidence_lines(verdict: dict[str, Any]) -> RenderableType:
    """Return the evidence, a line each, with its value and source."""
    lines = []
    for item in verdict.get("evidence") or []:
        value = quantity(item.get("value"), str(item.get("unit") or ""))
        line = Text.assemble("- ", str(item.get("statement")))
        line.append(f"  {', '.join(part for part in (value, str(item.get('source') or '')) if part)}", style="dim")
        lines.append(line)
    return Group(*lines) if lines else Text("none", style="dim")


def sentences(lines: Sequence[object], mark: str = "-") -> RenderableType:
    """Return sentences as a list."""
    return Group(*(Text(f"{mark} {line}") for line in lines))


def section(title: str, content: RenderableType) -> RenderableType:
    """Return content under a heading."""
    return Group(Text(""), Text(title, style="bold underline"), Padding(content, (0, 0, 0, 2)))


def whole_verdict(verdict: dict[str, Any], uses: Sequence[Use], notes: Sequence[str]) -> RenderableType:
    """Return everything that `cluster bottleneck` prints."""
    runners_up = [
        f"{str(item.get('class')).replace('_', ' ')} {float(item.get('confidence') or 0):.0%}"
        for item in verdict.get("runners_up") or []
    ]
    parts = [
        headline(verdict),
        section("Where the time of an output token goes", ledger_table(verdict.get("ledger") or {})),
        section("Ceilings beside what was used", usage_table(uses)),
        section("Evidence", evidence_lines(verdict)),
    ]
    if runners_up:
        parts.append(section("Runners-up", Text(", ".join(runners_up))))
    if verdict.get("advice"):
        parts.append(section("What to try next", sentences(verdict["advice"])))
    if notes:
        parts.append(section("Missing or doubtful", sentences(notes)))
    return Group(*parts)
