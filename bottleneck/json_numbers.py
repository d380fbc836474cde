"""Numbers from elsewhere and numbers for elsewhere: what JSON, YAML or another program wrote is not always one."""

from __future__ import annotations

import math
from typing import Any


def number(value: object) -> float:
    """Return a float, NaN for what is not a number.

    Parameters
    ----------
    value : object
        Anything a document may have in a number's place. A truth value is no number; a text such as "12.5" is one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def finite(value: object) -> Any:
    """Return a document in which None stands for the numbers that JSON does not know, all the way down.

    Parameters
    ----------
    value : Any
        What is to be written as JSON. A tuple becomes a list, as in JSON.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value
