"""Turn the results of a campaign into figures by kind of fault, and into a page."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from lab.campaign.course import Result

ASKED = (2.0, 5.0)
# The columns of the table, as a result has them.
TIMES = ("detected_seconds", "stopped_seconds", "failed_seconds", "serving_seconds")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least such a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Return count, detection, time to serving again and violations, by kind and of all."""
    kinds = list(dict.fromkeys(each.kind for each in results))
    return {
        "faults": len(results),
        "kinds": {kind: _figures([each for each in results if each.kind == kind]) for kind in kinds},
        "all": _figures(results),
        "violations": [f"{each.kind} ({each.hit}): {text}" for each in results for text in each.violations],
    }


def _figures(results: Sequence[Result]) -> dict[str, Any]:
    found: dict[str, Any] = {"count": len(results), "violations": sum(bool(each.violations) for each in results)}
    for name in TIMES:
        values = [value for each in results if (value := getattr(each, name)) is not None]
        found[name] = (
            {"median": round(statistics.median(values), 2), "p99": round(percentile(values, 0.99), 2)}
            if values
            else None
        )
    return found


def page(results: Sequence[Result], command: str, setting: str) -> str:
    """Return the page of the reference: every kind with its figures, and what was violated."""
    found = summary(results)
    rows = [_row(kind, figures) for kind, figures in found["kinds"].items()]
    detected = found["all"]["detected_seconds"]
    detection = (
        f"Detection over all that ended the service: median {detected['median']:g} s, 99th percentile "
        f"{detected['p99']:g} s; asked were {ASKED[0]:g} and {ASKED[1]:g} s."
        if detected
        else "None of these faults ended the service."
    )
    violations = [f"- {text}" for text in found["violations"]] or ["None."]
    return "\n".join(
        [
            "# A campaign of faults",
            "",
            "Faults made one after another in a lab that serves under load, and what the cluster made of each.",
            "After each must hold: requests are answered again, samples arrive and none were given up, no process,",
            "queueing discipline, namespace or mount is left over, `cluster status` shows what is, and `cluster audit`",
            "names the cause where ranks were started again.",
            "",
            "```",
            command,
            "```",
            "",
            f"Run on {time.strftime('%Y-%m-%d')}: {found['faults']} faults of {len(found['kinds'])} kinds; {setting}.",
            "*Known* is from the fault until the control node knew that the deployment did not serve, *stopped* until",
            "the last of the old ranks was gone, *failed* until the last of the requests under way had failed, and",
            "*serves* until a request sent after the fault was answered (a start of the engine is most of it). Each is",
            "median / 99th percentile, seconds.",
            "",
            "| fault | times | known | stopped | failed | serves | not as it must be |",
            "|---|---|---|---|---|---|---|",
            *rows,
            _row("**all**", found["all"]),
            "",
            detection,
            "",
            "What was not as it must be:",
            "",
            *violations,
            "",
        ]
    )


def _row(kind: str, figures: dict[str, Any]) -> str:
    cells = [f"{figures[name]['median']:g} / {figures[name]['p99']:g}" if figures[name] else "-" for name in TIMES]
    return f"| {kind} | {figures['count']} | {' | '.join(cells)} | {figures['violations']} |"
