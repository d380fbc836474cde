"""The ledger as a picture: where the time of an output token went, by phase and resource."""

from __future__ import annotations

from typing import Any

from cli.report.quantity import quantity

# Resource in the ledger -> words for a person. The order is that of the legend.
RESOURCES = {
    "compute": "compute",
    "memory": "reading weights and cache",
    "host": "host between kernels",
    "link_transfer": "bytes on the link",
    "link_latency": "latency of the link",
    "message_handling": "messages in the kernel",
    "message_wait": "waking up for messages",
    "cpu_wait": "waiting for a core",
    "throttled": "stopped by a CPU quota",
    "api_server": "the API server",
    "queue": "waiting in the queue",
    "step_wait": "waiting for a running step",
    "unwatched": "an unwatched link, or the host",
    "unexplained": "not explained",
}
PHASES = {
    "queue": "waiting to start",
    "prefill": "reading the prompt (prefill)",
    "decode": "writing tokens (decode)",
    "client": "outside of the engine",
}

# A phase below this share is a line too thin to see: it is written in words.
LEAST_SHARE = 0.005


def resource_words(resource: str) -> str:
    """Return a resource of the ledger in words."""
    return RESOURCES.get(resource, resource.replace("_", " "))


def place(entry: dict[str, Any]) -> str:
    """Return where an entry's time went: a node, a link, or nowhere in particular."""
    node, link = entry.get("node"), entry.get("link")
    return " ".join(part for part in (str(node) if node else "", f"link {link}" if link else "") if part)


def ledger_rows(ledger: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries with their words, in the order of the phases, the largest first inside each."""
    total = float(ledger.get("total") or 0.0)
    rows = []
    for entry in ledger.get("entries") or []:
        seconds = float(entry.get("seconds") or 0.0)
        resource = str(entry.get("resource", ""))
        rows.append(
            {
                "phase": str(entry.get("phase", "")),
                "where": place(entry),
                "resource": resource,
                "words": resource_words(resource),
                "tone": resource if resource in RESOURCES else "other",
                "seconds": seconds,
                "text": quantity(seconds, "s"),
                "share": seconds / total if total > 0 else 0.0,
                "source": str(entry.get("source") or ""),
            }
        )
    return sorted(rows, key=_rank)


def _rank(row: dict[str, Any]) -> tuple[int, bool, float]:
    known = list(PHASES)
    phase = known.index(row["phase"]) if row["phase"] in known else len(known)
    return phase, row["resource"] == "unexplained", -row["seconds"]


def ledger_picture(ledger: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the template needs to draw the ledger; None without entries."""
    rows = ledger_rows(ledger)
    total = float(ledger.get("total") or 0.0)
    if not rows or total <= 0:
        return None
    phases = []
    before = 0.0
    for name in dict.fromkeys(row["phase"] for row in rows):
        inside = [row for row in rows if row["phase"] == name]
        seconds = sum(row["seconds"] for row in inside)
        phases.append(
            {
                "name": name,
                "title": PHASES.get(name, name),
                "before": before / total * 100,
                "width": seconds / total * 100,
                "text": quantity(seconds, "s"),
                "share": seconds / total,
                "rows": inside,
            }
        )
        before += seconds
    whole: dict[str, float] = {}
    for row in rows:
        whole[row["resource"]] = whole.get(row["resource"], 0.0) + row["seconds"]
    order = sorted(whole, key=lambda resource: (resource == "unexplained", -whole[resource]))
    return {
        "total": quantity(total, "s"),
        "phases": [phase for phase in phases if phase["share"] >= LEAST_SHARE],
        "small": [f"{phase['title']} {phase['text']}" for phase in phases if phase["share"] < LEAST_SHARE],
        "rows": rows,
        "whole": [
            {
                "words": resource_words(resource),
                "tone": resource if resource in RESOURCES else "other",
                "share": whole[resource] / total,
                "text": quantity(whole[resource], "s"),
            }
            for resource in order
        ],
    }
