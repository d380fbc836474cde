"""Every cause that a verdict can name, one file each: found, not listed.

To add one, add a file here that defines `CAUSE`. Files that begin with an underscore are shared by several.
"""

from __future__ import annotations

import importlib
import pkgutil

from bottleneck.diagnosis.causes.base import Cause, Family, Tier, fill

__all__ = ["CAUSES", "DECIDED", "WORK", "Cause", "Family", "Tier", "fill", "title"]


def _found() -> dict[str, Cause]:
    causes: list[Cause] = []
    for module in pkgutil.iter_modules(__path__):
        cause = getattr(importlib.import_module(f"{__name__}.{module.name}"), "CAUSE", None)
        if isinstance(cause, Cause):
            causes.append(cause)
    order = list(Tier)
    causes.sort(key=lambda cause: (order.index(cause.tier), cause.name))
    return {cause.name: cause for cause in causes}


CAUSES: dict[str, Cause] = _found()
"""Every cause by name: what can be mended first, then limits, then answers."""

DECIDED = frozenset(name for name, cause in CAUSES.items() if cause.tier is Tier.ANSWER)
"""Answers that come from weighing the causes."""

WORK = tuple(name for name, cause in CAUSES.items() if cause.family is Family.NODE)
"""A node's own work: a faster node mends all of it."""


def title(name: str, values: dict[str, str | None]) -> str:
    """Return a cause's title with its places filled in.

    Parameters
    ----------
    name : str
        Name of a class in `CAUSES`.
    values : dict[str, str or None]
        Gap of the title ("node", "link", "kind") -> words for it.

    Raises
    ------
    KeyError
        For a name that is no class.
    """
    return fill(CAUSES[name].title, values)
