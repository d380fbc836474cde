"""Numbers as a person reads them."""

from __future__ import annotations

import math

from bottleneck.units import duration_text, rate_text, size_text


def three_digits(value: float) -> str:
    """Return a number with three significant digits and no exponent up to 1e15."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _scaled(value: float, unit: str) -> str:
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{three_digits(value / scale)} {prefix}{unit}"
    return f"{three_digits(value)} {unit}"


def quantity(value: object, unit: str = "") -> str:
    """Return a number in a base unit the way a person reads it; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if not math.isfinite(value):
        return "unknown"
    match unit:
        case "1" | "share":
            return f"{three_digits(round(value * 100, 1))} %" if value >= 0.001 or value <= 0 else "under 0.1 %"
        case "cores":
            return f"{three_digits(value)} {'core' if value == 1 else 'cores'}"
        case "s":
            return duration_text(value)
        case "bytes/s" | "B/s":
            return rate_text(value)
        case "memory bytes/s" | "storage bytes/s":
            return _scaled(value, "B/s")
        case "bytes":
            return size_text(value)
        case "B":
            return _scaled(value, "B")
        case "FLOP/s":
            return _scaled(value, "FLOP/s")
    return f"{three_digits(value)} {unit}".strip()
