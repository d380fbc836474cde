"""What an engine's command line and its model's name say of how it runs: captured graphs, the width of its weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Bytes of a weight by the words that name a way to store it; the first that is found counts.
_WEIGHT_BYTES = (
    (("w4a16", "awq", "gptq", "int4", "4bit", "4-bit", "nvfp4", "mxfp4", "bnb"), 0.5),
    (("fp8", "w8a8", "int8", "8bit", "8-bit", "w8a16"), 1.0),
    (("bf16", "bfloat16", "fp16", "float16"), 2.0),
)
_EIGHT_BIT_ARITHMETIC = ("fp8", "w8a8")
_NO_GRAPHS = re.compile(r"cudagraph_mode\W+(NONE|0)\b|(^|\s)-O\s?0(\s|$)|--optimization-level[ =]0\b")


@dataclass(frozen=True)
class EngineSettings:
    """How an engine runs.

    Attributes
    ----------
    eager, graphs : bool
        Whether it is known to launch every kernel from the host, or to replay captured graphs; both False when it is
        not known.
    weight_bytes : float or None
        Bytes of one weight.
    arithmetic_gain : float
        How much faster its arithmetic may be than the 16-bit product that the ceilings measure: twice in 8 bit.
    """

    eager: bool = False
    graphs: bool = False
    weight_bytes: float | None = None
    arithmetic_gain: float = 1.0


def read_settings(argv: Sequence[str], names: str, whole: bool) -> EngineSettings:
    """Read a command line and names.

    Parameters
    ----------
    argv : sequence of str
        The engine's arguments.
    names : str
        The model's name and whatever else describes it.
    whole : bool
        Whether `argv` is all that the engine was told, so that what is not in it has its default: captured graphs.
    """
    text = " ".join(argv)
    eager = "--enforce-eager" in argv or _NO_GRAPHS.search(text) is not None
    lowered = f"{names} {text}".lower()
    width = next((size for words, size in _WEIGHT_BYTES if any(word in lowered for word in words)), None)
    gain = 2.0 if any(word in lowered for word in _EIGHT_BIT_ARITHMETIC) else 1.0
    return EngineSettings(eager, whole and not eager, width, gain)
