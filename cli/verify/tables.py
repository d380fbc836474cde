"""The benchmark's tables in Markdown, beside the score itself: every case, the confusions, what is still wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bottleneck.diagnosis.scoring import Outcome

RIGHT, WRONG, UNSURE = "right", "**wrong**", "not sure"


def confusion(figures: Mapping[str, Any]) -> str:
    """Return the confusion matrix: a row for each fault put in, a column for each answer given."""
    rows: Mapping[str, Mapping[str, int]] = figures["confusion"]
    answers = sorted({answer for row in rows.values() for answer in row})
    if not answers:
        return ""
    lines = [
        f"| put in \\ answered | {' | '.join(f'`{answer}`' for answer in answers)} |",
        f"|---|{'---|' * len(answers)}",
    ]
    for fault, row in rows.items():
        lines.append(f"| `{fault}` | {' | '.join(str(row.get(answer) or '') for answer in answers)} |")
    return "\n".join(lines) + "\n"


def every_case(outcomes: Sequence[Outcome]) -> str:
    """Return one row for each case that ran: what was put in, what was answered, how sure, on how much data."""
    lines = [
        "| case | half | answered | confidence | | after `--causal` | data | judged in |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in outcomes:
        if each.error:
            continue
        place = each.answered_node if each.node else each.answered_link if each.link else None
        answer = f"`{each.answered}`" + (f" {place}" if place else "")
        mark = RIGHT if each.right else UNSURE if each.unsure else WRONG
        lines.append(
            f"| {each.case} | {each.split} | {answer} | {each.confidence:.0%} | {mark} "
            f"| {f'`{each.confirmed}`' if each.confirmed else ''} | {each.data_seconds:.0f} s "
            f"| {each.analysis_seconds:.1f} s |"
        )
    return "\n".join(lines) + "\n"
