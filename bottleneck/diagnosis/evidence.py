"""One line of evidence: a statement, its value, where it is from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bottleneck.json_numbers import number


@dataclass(frozen=True)
class Evidence:
    """One line of evidence; `value` in `unit`, shares as ratios of unit `1`."""

    statement: str
    value: float | None
    unit: str
    source: str

    def to_json(self) -> dict[str, Any]:
        """Return the line as JSON-able data."""
        return {"statement": self.statement, "value": self.value, "unit": self.unit, "source": self.source}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Evidence:
        """Return the line of evidence that `to_json` wrote.

        Parameters
        ----------
        document : dict[str, Any]
            Plain data; what is missing is empty.
        """
        value = number(document.get("value"))
        return cls(
            str(document.get("statement", "")),
            value if math.isfinite(value) else None,
            str(document.get("unit", "")),
            str(document.get("source", "")),
        )


def line(statement: str, value: float | None, unit: str, source: str) -> Evidence:
    """Return a line of evidence; a value that is not finite is not known.

    Parameters
    ----------
    statement
        What was measured, as half a sentence.
    value
        In `unit`, or None.
    unit
        SI unit; `1` for a share.
    source
        Where it is from: samples, engine metrics, client, probes.
    """
    return Evidence(statement, value if value is not None and math.isfinite(value) else None, unit, source)


def percent(value: float) -> str:
    """Return a ratio as a whole percentage.

    Parameters
    ----------
    value : float
        Ratio without a unit; 1 is 100 %.
    """
    return f"{value:.0%}"
