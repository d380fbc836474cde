"""What makes measurements carry less, and for which classes."""

from __future__ import annotations

from dataclasses import dataclass

from bottleneck.diagnosis.taxonomy import WORK_CLASSES


@dataclass(frozen=True)
class Weakness:
    """Something that makes the measurements carry less.

    Attributes
    ----------
    factor : float
        Confidence is multiplied with it.
    statement : str
        Said in the verdict's notes.
    classes : frozenset of str or None
        Only these classes suffer from it; None is all.
    """

    factor: float
    statement: str
    classes: frozenset[str] | None = None


# Classes that rest on what steps are made of.
STEP_CLASSES = frozenset(
    {
        *WORK_CLASSES,
        "host_overhead",
        "link_bandwidth",
        "link_latency",
        "pipeline_bubble",
        "straggler",
        "balanced",
    }
)
