"""Every bottleneck this system can name, in one place.

A class is data: to add one, add an entry in `work`, `between` or `limits` and a scorer in `diagnosis/rules/`.
"""

from __future__ import annotations

from bottleneck.diagnosis.taxonomy.between import BETWEEN
from bottleneck.diagnosis.taxonomy.kind import BottleneckClass
from bottleneck.diagnosis.taxonomy.limits import LIMITS
from bottleneck.diagnosis.taxonomy.work import WORK

__all__ = ["CLASSES", "DECIDED", "WORK_CLASSES", "BottleneckClass", "fill", "title"]

CLASSES: dict[str, BottleneckClass] = {item.name: item for item in (*WORK, *BETWEEN, *LIMITS)}
"""Every class by name."""

DECIDED = frozenset({"balanced", "inconclusive"})
"""Answers that come from weighing the others; no scorer of their own."""

WORK_CLASSES = ("prefill_compute", "decode_memory_bandwidth", "decode_compute")
"""A node's own work. A faster node mends them all, so they compete with other classes together."""


def title(name: str, places: dict[str, str | None]) -> str:
    """Return a class's title with the places filled in."""
    kind = places.get("kind")
    return fill(CLASSES[name].title.replace("{kind}", f" ({kind})" if kind else ""), places)


def fill(text: str, values: dict[str, str | None]) -> str:
    """Fill the named gaps of a text; a gap without a value reads as `?`, which is never silently dropped."""
    text = text.replace("{kind}", values.get("kind") or "")
    for key in ("node", "link", "max_num_seqs", "more_seqs", "concurrency"):
        text = text.replace(f"{{{key}}}", values.get(key) or "?")
    return text
