"""A verdict, its ledger and the ceilings as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bottleneck.diagnosis.attribution.ledger import PER_REQUEST
from bottleneck.diagnosis.causes import WORK
from cli.report.ledger import ledger_rows
from cli.report.page import confidence_word
from cli.report.quantity import quantity
from cli.report.usage import Use

BAR_WIDTH = 20
# Columns of a terminal that has room for where the numbers are from.
WIDE = 120
# Shares nearer than this are printed alike.
ROUNDED = 5e-4


def bar(share: float | None, width: int = BAR_WIDTH) -> str:
    """Return a share, 0 to 1, as a bar of characters."""
    if share is None:
        return ""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> RenderableType:
    """Return a table; in a narrow terminal what the last column says stands below it, each once."""
    wide = width >= WIDE
    kept = list(columns) if wide else list(columns[:-1])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in kept:
        right = column in ("time", "share", "mean", "peak", "ceiling")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != columns[-1])
    for row in rows:
        table.add_row(*row[: len(kept)])
    sources = list(dict.fromkeys(row[-1] for row in rows if row[-1]))
    return table if wide or not sources else Group(table, f"[dim]from:[/] {'; '.join(sources)}")


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
    if verdict.get("class") in WORK:
        lines.append(Text("No fault was found: this is what the hardware gives under this load.", style="dim"))
    if verdict.get("gain"):
        lines.append(Text(str(verdict["gain"]["statement"])))
    return Group(*lines)


def ledger_table(ledger: dict[str, Any], width: int) -> RenderableType:
    """Return the ledger, one line an entry."""
    rows = ledger_rows(ledger)
    if not rows:
        return Text("no ledger: the measurements do not say where the time went", style="dim")
    lines = []
    for row in rows:
        style = "dim" if row["resource"] == "unexplained" else "cyan"
        drawn = f"[{style}]{bar(row['share'], BAR_WIDTH if width >= WIDE else BAR_WIDTH // 2)}[/]"
        source = f"[dim]{escape(row['source'])}[/]" if row["source"] else ""
        share = f"{row['share']:.1%}"
        lines.append(
            [escape(row["phase"]), escape(row["where"]), escape(row["words"]), row["text"], share, drawn, source]
        )
    whole = "per first token" if ledger.get("unit") == PER_REQUEST else "per output token"
    lines.append(["", "", f"[bold]{whole}[/]", f"[bold]{quantity(ledger.get('total'), 's')}[/]", "", "", ""])
    return _table(("phase", "where", "resource", "time", "share", "", "from"), lines, width)


def usage_table(uses: Sequence[Use], width: int) -> RenderableType:
    """Return ceilings beside what was used of them."""
    if not uses:
        return Text("neither ceilings nor samples were recorded; measure the ceilings: cluster probe", style="dim")
    wide = width >= WIDE
    lines = []
    for use in uses:
        share = use.mean_share
        cells = {
            "resource": use.resource,
            "where": escape(use.where),
            "mean": quantity(use.mean, use.unit) or "-",
            "peak": quantity(use.peak, use.unit) or "-",
            "ceiling": quantity(use.ceiling, use.unit) or "unknown",
            "share": "-" if share is None else quantity(share, "1"),
            "": f"[cyan]{bar(share, 12)}[/]",
            "from": f"[dim]{escape(use.source)}[/]",
        }
        # The share is the mean's: where there is no room, the mean and its bar can be missed most.
        lines.append({name: cell for name, cell in cells.items() if wide or name not in ("mean", "")})
    return _table(list(lines[0]), [list(line.values()) for line in lines], width)


def evidence_lines(verdict: dict[str, Any]) -> RenderableType:
    """Return the evidence, a line each, with its value and source."""
    lines = []
    for item in verdict.get("evidence") or []:
        value = quantity(item.get("value"), str(item.get("unit") or ""))
        line = Text.assemble("- ", str(item.get("statement")))
        line.append(f"  {', '.join(part for part in (value, str(item.get('source') or '')) if part)}", style="dim")
        lines.append(line)
    return Group(*lines) if lines else Text("none", style="dim")


def explanation(verdict: dict[str, Any]) -> RenderableType:
    """Return every cause of which there is a sign, with the terms that its score is made of."""
    lines: list[RenderableType] = []
    for each in verdict.get("candidates") or []:
        line = Text.assemble((f"{each['score']:6.1%}  ", "cyan"), (str(each["class"]), "bold"))
        for place in (each.get("node"), each.get("link")):
            line.append(f" {place}" if place else "")
        line.append(f"  {each['tier']}{', fault' if each.get('fault') else ''}", style="dim")
        if each["together"] - each["score"] > ROUNDED:
            line.append(f", {each['together']:.1%} with what the same change mends", style="dim")
        lines.append(line)
        terms = [term for term in each.get("terms") or [] if abs(term["share"]) > ROUNDED]
        lines += [Text(f"{'':8}{term['share']:+.1%} {term['words']}", style="dim") for term in terms]
    return section("What relief of each would take from an output token's time", Group(*lines))


def sentences(lines: Sequence[object], mark: str = "-") -> RenderableType:
    """Return sentences as a list."""
    return Group(*(Text(f"{mark} {line}") for line in lines))


def section(title: str, content: RenderableType) -> RenderableType:
    """Return content under a heading."""
    return Group(Text(""), Text(title, style="bold underline"), Padding(content, (0, 0, 0, 2)))


def _first_token(ledger: dict[str, Any], width: int) -> list[RenderableType]:
    first = ledger.get("first_token")
    return [section("Where the time of a first token goes", ledger_table(first, width))] if first else []


def whole_verdict(
    verdict: dict[str, Any], uses: Sequence[Use], notes: Sequence[str], width: int, start: bool = False
) -> RenderableType:
    """Return everything that `cluster bottleneck` prints; of a start there is no output token to account for."""
    ledger = verdict.get("ledger") or {}
    runners_up = [
        f"{str(item.get('class')).replace('_', ' ')}, {float(item.get('score') or 0):.0%} of an output token's time"
        for item in verdict.get("runners_up") or []
    ]
    parts = [
        headline(verdict),
        *(() if start else (section("Where the time of an output token goes", ledger_table(ledger, width)),)),
        *_first_token(ledger, width),
        section("Ceilings beside what was used", usage_table(uses, width)),
        section("Evidence", evidence_lines(verdict)),
    ]
    if runners_up:
        parts.append(section("Runners-up", sentences(runners_up)))
    if verdict.get("advice"):
        parts.append(section("What to try next", sentences(verdict["advice"])))
    if notes:
        parts.append(section("Missing or doubtful", sentences(notes)))
    return Group(*parts)
