"""Other runs beside the main one, and whether the difference is more than noise: the words for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bottleneck.estimate import Estimate
from bottleneck.runs.compare import Comparison, compare
from bottleneck.runs.run import Run
from cli.report.quantity import quantity

METRICS = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "time between two tokens",
    "e2e": "time of a whole request",
    "throughput": "output throughput",
}


def metric_words(metric: str) -> str:
    """Return a metric in words."""
    return METRICS.get(metric, metric)


def estimate_words(estimate: Estimate | None, unit: str) -> tuple[str, str]:
    """Return an estimate and its interval."""
    if estimate is None:
        return "not known", ""
    low, high = quantity(estimate.low, unit), quantity(estimate.high, unit)
    if low.partition(" ")[2] == high.partition(" ")[2]:
        low = low.partition(" ")[0]
    return quantity(estimate.median, unit), f"{low} to {high}"


def change_words(comparison: Comparison) -> str:
    """Return the change from the first side to the second as a signed share."""
    return "" if comparison.ratio is None else f"{(comparison.ratio - 1) * 100:+.1f} %"


def comparison_table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one table for every run after the first, with the change from the first run to it."""
    first = runs[0]
    tables = []
    for other in runs[1:]:
        rows = []
        for item in compare([first], [other]):
            state = {"a": "worse", "b": "better", None: "same"}[item.better]
            rows.append(
                {
                    "name": metric_words(item.metric),
                    "first": estimate_words(item.a, item.unit),
                    "second": estimate_words(item.b, item.unit),
                    "change": change_words(item),
                    "state": state,
                    "mark": item.word if item.better is None else f"{state}, {item.word}",
                }
            )
        beyond = sum(row["state"] != "same" for row in rows)
        verdict = (other.verdict or {}).get("title")
        tables.append(
            {
                "title": f"{other.id}: {other.deployment}" + (f", “{other.note}”" if other.note else ""),
                "summary": (f"Its verdict: {verdict}. " if verdict else "")
                + f"{beyond} of {len(rows)} measures differ beyond noise (bootstrap over blocks of requests).",
                "rows": rows,
            }
        )
    return tables
