"""Doubts about the measurements of a run: data that travels beside them; nothing is corrected in place."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Scope(Enum):
    """The causes that a doubt concerns: all, or those that rest on what steps are made of."""

    ALL = "all"
    STEPS = "steps"


@dataclass(frozen=True)
class Issue:
    """Something that makes the measurements carry less.

    Attributes
    ----------
    factor : float
        Confidence is multiplied with it, 0 to 1.
    statement : str
        For the verdict's notes.
    scope : Scope
        Which causes it concerns.
    """

    factor: float
    statement: str
    scope: Scope = Scope.ALL
