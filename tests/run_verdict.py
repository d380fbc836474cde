"""The verdict of a made-up run, as the analysis writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.run_builder import Shape

STARTED = 1795469400.0  # 2026-11-23T21:30:00Z


def verdict(shape: Shape) -> dict[str, Any]:
    """A verdict as the analysis writes it, with the parts that a report shows."""
    total = (shape.prefill + shape.step * (shape.output_tokens - 1)) / shape.output_tokens
    parts = [
        ("queue", None, None, "queue", 0.0005, "engine metrics: request_queue_time"),
        ("prefill", None, "direct", "link_transfer", 0.560, "bytes sent / ceiling of the link"),
        ("prefill", "node0", None, "compute", 0.205, "worker CPU time outside of waits"),
        ("prefill", None, "direct", "link_latency", 0.004, "collectives x latency of the link"),
        ("prefill", "node0", None, "cpu_wait", 0.012, "run delay of the workers"),
        ("prefill", None, None, "unexplained", 0.0165, "what is left"),
        ("decode", "node0", None, "compute", 0.098, "worker CPU time outside of waits"),
        ("decode", None, "direct", "link_transfer", 0.041, "bytes sent / ceiling of the link"),
        ("decode", None, "direct", "link_latency", 0.020, "collectives x latency of the link"),
        ("decode", "node0", None, "cpu_wait", 0.018, "run delay of the workers"),
        ("decode", None, None, "unexplained", 0.025, "what is left"),
    ]
    entries = [
        {
            "phase": phase,
            "node": node,
            "link": link,
            "resource": kind,
            "seconds": share * total,
            "share": share,
            "source": source,
        }
        for phase, node, link, kind, share, source in parts
    ]
    return {
        "schema": 1,
        "class": "link_bandwidth",
        "title": "Bandwidth of link direct",
        "meaning": "Bytes that the nodes must exchange in every step take longer over the link than the arithmetic.",
        "where": {"node": None, "link": "direct"},
        "confidence": 0.86,
        "interval": {"start": STARTED, "end": STARTED + shape.seconds},
        "evidence": [
            {
                "statement": "moving bytes over direct takes 60% of an output token's time",
                "value": 0.601,
                "unit": "1",
                "source": "ledger",
            },
            {
                "statement": "direct ran at 99% of its ceiling while it was active",
                "value": 0.985 * shape.link_ceiling,
                "unit": "bytes/s",
                "source": "samples of node0, ceilings.json",
            },
            {
                "statement": "the worker on node1 slept for most of the prefill",
                "value": 0.76,
                "unit": "1",
                "source": "samples of node1",
            },
        ],
        "runners_up": [
            {"class": "prefill_compute", "score": 0.21, "confidence": 0.21},
            {"class": "straggler", "score": 0.04, "confidence": 0.04},
        ],
        "advice": [
            "Use a faster link for the deployment, or pipeline instead of tensor parallel: it sends less.",
            "If the link was slowed on purpose: cluster lab throttle --link direct --restore",
            "Measure the link again: cluster probe --links direct",
        ],
        "gain": {
            "seconds_per_output_token": 0.601 * total,
            "share": 0.601,
            "statement": "without it an output token would take up to 152 ms less (60% of 253 ms); "
            "then the next bottleneck takes over",
        },
        "ledger": {"unit": "seconds per output token", "total": total, "entries": entries},
        "measured": {},
        "notes": ["the head's worker spins between steps: its CPU time is an upper bound of its compute"],
    }
