"""The terms of the ledger's arithmetic: kinds of work, and the parts that their time is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

PREFILL, DECODE = "prefill", "decode"
LEAST_PART = 1e-6
"""A part with a smaller share of its work's time is left out: rounding."""


@dataclass(frozen=True)
class Part:
    """Seconds of wall time of one kind of work that went to one resource."""

    resource: str
    seconds: float
    source: str
    node: str | None = None
    link: str | None = None

    def scaled(self, factor: float) -> Part:
        """Return it with its seconds times `factor`.

        Parameters
        ----------
        factor : float
            At least 0.
        """
        return replace(self, seconds=self.seconds * factor)


def total(parts: Iterable[Part]) -> float:
    """Return the seconds of some parts together.

    Parameters
    ----------
    parts : Iterable[Part]
        Parts of steps, of any resources.

    Returns
    -------
    float
        0 for none.
    """
    return math.fsum(part.seconds for part in parts)


@dataclass(frozen=True)
class Work:
    """One kind of work of one engine over the interval.

    Attributes
    ----------
    wall_seconds : float
        Busy time that went to steps of this kind.
    steps, tokens : float
        Engine steps of this kind and the tokens they computed.
    parts : tuple of Part
        What the wall time is made of; what they leave of `wall_seconds` is unexplained.
    floor_seconds : float
        The least time that the work's bytes and operations take at the ceilings; 0 when it is not known. In words, and
        where it is from, in `floor_words` and `floor_source`.
    """

    kind: str
    wall_seconds: float = 0.0
    steps: float = 0.0
    tokens: float = 0.0
    parts: tuple[Part, ...] = ()
    floor_seconds: float = 0.0
    floor_words: str = ""
    floor_source: str = ""

    @property
    def explained_seconds(self) -> float:
        """Sum of the parts."""
        return total(self.parts)

    def with_parts(self, parts: Iterable[Part]) -> Work:
        """Return it made of these parts, those that are not rounding.

        Parameters
        ----------
        parts : Iterable[Part]
            Parts of these steps; those below `LEAST_PART` of their time are dropped.
        """
        return replace(self, parts=tuple(part for part in parts if part.seconds > LEAST_PART * self.wall_seconds))


Both = tuple[Work, Work]
"""Steps with prompts in them, and steps of decoding only."""
