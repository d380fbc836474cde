"""Compare two profiles, key by key, in the units a person writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from bottleneck.profile.types import Profile
from bottleneck.units import byte_rate_text, duration_text, rate_text, size_text

Kind = Literal["added", "removed", "changed"]
# Ending of an attribute's name -> unit of its number.
_UNITS = {"_bytes_per_second": "B/s", "_bytes": "B", "_seconds": "s", "_hertz": "Hz"}


@dataclass(frozen=True)
class Leaf:
    """One value of a profile.

    Attributes
    ----------
    value
        In base units.
    unit
        The base unit, or "" for what has none.
    text
        As a person reads it.
    """

    value: object
    unit: str
    text: str


@dataclass(frozen=True)
class Difference:
    """One key that is not the same in both; `before` or `after` is None where it is not there."""

    key: str
    kind: Kind
    before: Leaf | None
    after: Leaf | None


def profile_differences(before: Profile, after: Profile) -> list[Difference]:
    """Return every key that differs, in the order of the keys' first appearance.

    Compared is what is in force: with what is laid over the files, with defaults, and with the
    entries of the engine map that the nodes use. Where a number is from does not count.

    Parameters
    ----------
    before, after : Profile
        Two profiles that were read and are sound; of two clusters as well as of one.

    Returns
    -------
    list[Difference]
        Empty for profiles that mean the same. A key that is in one alone is added or removed.
    """
    old, new = leaves(before), leaves(after)
    found = []
    for key in dict.fromkeys([*old, *new]):
        first, second = old.get(key), new.get(key)
        if first is None or second is None:
            found.append(Difference(key, "added" if first is None else "removed", first, second))
        elif first.value != second.value:
            found.append(Difference(key, "changed", first, second))
    return found


def leaves(profile: Profile) -> dict[str, Leaf]:
    """Return every value of a profile by its key, parts joined by dots as in error messages.

    Parameters
    ----------
    profile : Profile
        A profile that was read.

    Returns
    -------
    dict[str, Leaf]
        Key -> value, defaults among them, the sources of numbers left out.
    """
    found = dict(_walk(profile, ()))
    for kind in sorted({node.accelerator.kind for node in profile.nodes.values()}):
        found.update(_walk(profile.engines[kind], ("engines", kind)))
    return {key: leaf for key, leaf in found.items() if not key.startswith("sources.")}


def _walk(value: object, at: tuple[str, ...], name: str = "") -> Iterator[tuple[str, Leaf]]:
    if isinstance(value, BaseModel):
        for attribute, field in type(value).model_fields.items():
            yield from _walk(getattr(value, attribute), (*at, field.alias or attribute), attribute)
    elif isinstance(value, dict):
        for key, item in value.items():
            # A mapping's quantities are of the kind that its own name says.
            yield from _walk(item, (*at, str(key)), name)
    elif value is not None:
        yield ".".join(at), _leaf(value, name, at)


def _leaf(value: object, name: str, at: tuple[str, ...]) -> Leaf:
    unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    if isinstance(value, bool) or not isinstance(value, int | float) or not unit:
        return Leaf(value, unit, _plain(value))
    if unit == "B/s":
        # Networks are sold in bits, memories in bytes.
        text = rate_text(value) if at[0] == "networks" else byte_rate_text(value)
    else:
        text = {"B": _bytes_text, "s": duration_text, "Hz": _hertz_text}[unit](value)
    return Leaf(value, unit, text)


def _bytes_text(value: float) -> str:
    # A packet of 9000 bytes is 9000 bytes to everyone.
    return size_text(value) if value >= 1 << 20 else f"{value:g} B"


def _hertz_text(value: float) -> str:
    return f"{value:g} Hz"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value == "":
        return "nothing"
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return str(value)
