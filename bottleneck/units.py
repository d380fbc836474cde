"""Quantities with a unit, as people write them, to base SI numbers and back.

A profile says ``1 Gbit/s`` and ``5 GiB``; everything inside counts bytes, seconds and
hertz. Arithmetic is exact (``fractions``), so that a size is a whole number of bytes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

BYTE = 8
"""Bits."""
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_NUMBER_AND_UNIT = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*(.*?)\s*")


@dataclass(frozen=True)
class Dimension:
    """One kind of quantity and the units it may be written in.

    Attributes
    ----------
    noun
        What the quantity is called in a message, with its article.
    base
        Unit of the number that `parse` returns.
    units
        Accepted unit -> how many base units it is.
    example
        How to write one.
    """

    noun: str
    base: str
    units: dict[str, Fraction]
    example: str

    @property
    def expected(self) -> str:
        """The phrase that follows "expected" in a message."""
        return f"{self.noun} such as {self.example} (units: {', '.join(self.units)})"

    def parse(self, value: object) -> float:
        """Return a quantity in base units.

        Parameters
        ----------
        value : object
            A number in base units, or a text with a unit such as "940 Mbit/s"; a truth value is refused.

        Raises
        ------
        ValueError
            "what was seen; expected what", with the accepted units.
        """
        return float(self._exact(value))

    def parse_whole(self, value: object) -> int:
        """Return a quantity in whole base units: the part of one that is left over (15.9 GiB) is dropped.

        Parameters
        ----------
        value : object
            As in `parse`.

        Raises
        ------
        ValueError
            As `parse`, and for less than one base unit.
        """
        exact = self._exact(value)
        if exact < 1:
            raise ValueError(f"{value} is less than one of {self.base}; expected {self.expected}")
        return int(exact)

    def _exact(self, value: object) -> Fraction:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{shown(value)}; expected {self.expected}")
        if not isinstance(value, str):
            raise ValueError(f"{value}, a number without a unit; expected {self.expected}")
        match = _NUMBER_AND_UNIT.fullmatch(value)
        if not match:
            raise ValueError(f"{shown(value)}; expected {self.expected}")
        number, unit = match.groups()
        if unit not in self.units:
            raise ValueError(f"{self._unknown_unit(value, unit)}; expected {self.expected}")
        exact = Fraction(number) * self.units[unit]
        if exact <= 0:
            raise ValueError(f"{value}; expected {self.noun} above zero")
        if exact > 10**30:
            raise ValueError(f"{value}; expected {self.noun} that a machine can have")
        return exact

    def _unknown_unit(self, value: str, unit: str) -> str:
        if not unit:
            return f"{shown(value)}, a number without a unit"
        near = [known for known in self.units if known.lower() == unit.lower()]
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"unit {shown(unit)}{hint}"


def _powers(symbols: str, suffix: str, base: int, scale: Fraction) -> dict[str, Fraction]:
    prefixes = ["", *symbols.split()]
    return {prefix + suffix: scale * base**power for power, prefix in enumerate(prefixes)}


_DECIMAL, _BINARY = "k M G T", "Ki Mi Gi Ti"
_ONE, _BIT = Fraction(1), Fraction(1, 8)

SIZE = Dimension("a size", "bytes", _powers(_DECIMAL, "B", 1000, _ONE) | _powers(_BINARY, "B", 1024, _ONE), "5 GiB")
RATE = Dimension(
    "a rate",
    "bytes per second",
    _powers(_DECIMAL, "bit/s", 1000, _BIT) | _powers(_DECIMAL, "B/s", 1000, _ONE) | _powers(_BINARY, "B/s", 1024, _ONE),
    "1 Gbit/s",
)
DURATION = Dimension(
    "a duration",
    "seconds",
    {
        "us": Fraction(1, 10**6),
        "ms": Fraction(1, 1000),
        "s": _ONE,
        "min": Fraction(60),
        "h": Fraction(3600),
        "d": Fraction(86400),
    },
    "10 s",
)
FREQUENCY = Dimension("a frequency", "hertz", _powers("k M G", "Hz", 1000, _ONE), "10 Hz")


def shown(value: object, limit: int = 60) -> str:
    """Return a value the way a message quotes it: short, on one line.

    Parameters
    ----------
    value : object
        Anything a document may have in it.
    limit : int
        Most characters of a text or number; what is longer ends in "...".
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def size_text(size_bytes: float) -> str:
    """Return bytes in the largest binary unit that keeps the number above one.

    Parameters
    ----------
    size_bytes : float
        Bytes; three digits are shown.
    """
    return _in_largest(size_bytes, {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB}) or f"{size_bytes:g} B"


def rate_text(rate_bytes_per_second: float) -> str:
    """Return a link's rate in bits per second, the way networks are sold.

    Parameters
    ----------
    rate_bytes_per_second : float
        Bytes per second; three digits are shown of the bits.
    """
    rate = rate_bytes_per_second * 8
    return _in_largest(rate, {"Tbit/s": 1e12, "Gbit/s": 1e9, "Mbit/s": 1e6, "kbit/s": 1e3}) or f"{rate:g} bit/s"


def byte_rate_text(rate_bytes_per_second: float) -> str:
    """Return a rate in bytes per second, the way memories are sold.

    Parameters
    ----------
    rate_bytes_per_second : float
        Bytes per second, in powers of ten; three digits are shown.
    """
    units = {"TB/s": 1e12, "GB/s": 1e9, "MB/s": 1e6, "kB/s": 1e3}
    return _in_largest(rate_bytes_per_second, units) or f"{rate_bytes_per_second:g} B/s"


def duration_text(seconds: float) -> str:
    """Return seconds in the unit a person would use.

    Parameters
    ----------
    seconds : float
        Seconds; three digits are shown, from microseconds to days.
    """
    if seconds == 0:
        return "0 s"
    units = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3}
    return _in_largest(seconds, units) or f"{_three_digits(seconds * 1e6)} us"


def _in_largest(value: float, units: Mapping[str, float]) -> str | None:
    """Return a value in the first unit, the largest first, of which it is at least one; None when it is of none."""
    for unit, scale in units.items():
        if abs(value) >= scale:
            return f"{_three_digits(value / scale)} {unit}"
    return None


def _three_digits(number: float) -> str:
    """Return three significant digits without an exponent: 9000, 12.1, 0.25."""
    if number == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    text = f"{number:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
