"""One table of efficiencies: what machines and kernels reach of their ceilings, with source and number of measurements.

The what-if model takes its priors from it, the ledger what kernels usually reach, the datasheets what probes find.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

KERNEL_PARAMETERS = ("weight_efficiency", "gemm_efficiency", "overlap", "layer_seconds")
"""Parameters of the step model that the choice of kernels decides; the others are of the machine and the requests."""

# Parameters of the step model, in the order in which it fits them (`step.PARAMETERS`).
EfficiencyName = Literal[
    "weight_efficiency",
    "gemm_efficiency",
    "overlap",
    "layer_seconds",
    "cache_efficiency",
    "attention_efficiency",
    "sequence_seconds",
    "run_seconds",
    "request_seconds",
    "message_factor",
    "eager_seconds",
]

_FITTED = "fitted to the five sweeps in tests/data/h200 (doc/explanation/what-if.md)"
_WHOLE = (
    "median of all points of a format in tests/data/h200 and h100 (vLLM 0.24 on Hopper, captured graphs), "
    "counted again by tests/unit/test_efficiencies.py"
)


@dataclass(frozen=True)
class Efficiency:
    """One number of the table.

    Attributes
    ----------
    value : float
        In `unit`; the unit of a share is 1.
    spread : float
        Standard deviation of its logarithm, over kernels and machines; 0 where it was not asked.
    source : str
        Where it is from.
    measurements : int
        How many points it rests on; 0 is an assumption.
    weights : str
        Format of the weights (`model.FORMATS`) that it is of; empty is any.
    """

    name: str
    value: float
    unit: str
    spread: float
    source: str
    measurements: int
    weights: str = ""


@dataclass(frozen=True)
class EngineEfficiencies:
    """Efficiencies of one engine, fitted to runs of it: they stand in the place of the table's.

    Attributes
    ----------
    values : mapping of str to (float, float)
        Parameter of the step model -> its value, in the unit of the table but seconds for kernel starts, and the
        standard deviation of its logarithm.
    residual : float
        Standard deviation of the logarithm of what a measurement had over what the fit says.
    measurements : int
        Runs that it rests on.
    """

    values: Mapping[str, tuple[float, float]]
    residual: float
    measurements: int


def _by_weights(
    name: str, values: dict[str, tuple[float, int]], unit: str, spread: float, source: str
) -> list[Efficiency]:
    return [
        Efficiency(name, value, unit, spread, source if count else "assumed, by the formats next to it", count, key)
        for key, (value, count) in values.items()
    ]


TABLE: tuple[Efficiency, ...] = (
    # What the step model fits, in the order of its parameters: these are its priors.
    *_by_weights(
        "weight_efficiency",
        {"bf16": (0.94, 45), "w4a16": (0.56, 45), "fp8": (0.82, 23), "w8a8": (0.82, 0), "w8a16": (0.7, 0)},
        "1",
        0.12,
        f"share of the memory's rate at which linear layers read their weights; {_FITTED}",
    ),
    Efficiency("gemm_efficiency", 0.84, "1", 0.1, f"share of a large product's rate in linear layers; {_FITTED}", 113),
    *_by_weights(
        "overlap",
        {"bf16": (1.2, 45), "w4a16": (0.35, 45), "fp8": (2.0, 23), "w8a8": (2.0, 0), "w8a16": (0.5, 0)},
        "1",
        0.5,
        f"exponent less 1 by which reading and multiplying hide each other; {_FITTED}",
    ),
    *_by_weights(
        "layer_launches",
        {"bf16": (4.0, 45), "w4a16": (7.0, 45), "": (4.5, 23)},
        "kernel starts",
        0.4,
        f"what a layer of a captured graph costs beside its work; {_FITTED}",
    ),
    Efficiency(
        "cache_efficiency", 0.95, "1", 0.12, f"share of the memory's rate at which the cache is read; {_FITTED}", 113
    ),
    Efficiency(
        "attention_efficiency",
        0.68,
        "1",
        0.25,
        f"share of a large product's rate in prompts' attention; {_FITTED}",
        113,
    ),
    Efficiency("sequence_seconds", 7e-6, "s", 0.6, f"host, for each sequence of a step; {_FITTED}", 113),
    Efficiency("run_seconds", 3e-3, "s", 0.5, f"host, around a batch of requests; {_FITTED}", 113),
    Efficiency("request_seconds", 100e-6, "s", 0.8, f"host, for each request; {_FITTED}", 113),
    Efficiency("message_factor", 1.0, "1", 0.2, "time of messages over link and size; assumed", 0),
    Efficiency(
        "eager_launches", 70.0, "kernel starts", 0.4, f"what a layer costs a host without graphs; {_FITTED}", 113
    ),
    # What whole steps reach of the roofline that step_floor gives.
    *(
        Efficiency(
            "decode_step", value, "1", spread, f"least over measured seconds of a decode step; {_WHOLE}", count, key
        )
        for key, value, spread, count in (("bf16", 0.81, 0.08, 68), ("fp8", 0.7, 0.1, 67), ("w4a16", 0.45, 0.28, 89))
    ),
    Efficiency("prefill_step", 0.84, "1", 0.05, f"the same of prefills of 4096 tokens and more; {_WHOLE}", 150),
    # What the ledger takes of kernels and hosts that are watched from outside.
    Efficiency(
        "kernels_at_least", 0.15, "1", 0.0, "no kernel of a served model was seen to reach less of its floor", 224
    ),
    Efficiency("kernels_alone", 0.3, "1", 0.0, "from here on kernels alone explain a step, whatever their format", 224),
    Efficiency("kernels_unknown", 0.6, "1", 0.3, "between the formats, where the format is not known; assumed", 0),
    Efficiency(
        "graph_step_seconds", 4e-3, "s", 0.5, "host, a step of captured graphs; H200 scenarios, tests/data/h200", 3
    ),
    Efficiency("graph_sequence_seconds", 3e-5, "s", 0.5, "host, each sequence of such a step; the same scenarios", 3),
    # What probes find of a vendor's rates.
    Efficiency("datasheet_memory", 0.87, "1", 0.0, "4.19e12 read of 4.8e12 B/s on two H200 (tests/data/h200)", 2),
    Efficiency(
        "datasheet_arithmetic",
        0.8,
        "1",
        0.0,
        "0.775e15 to 0.809e15 of 0.9895e15 FLOP/s on two H200 (tests/data/h200)",
        2,
    ),
    # Of links that nobody probed.
    Efficiency(
        "link_latency_seconds",
        65e-6,
        "s",
        0.7,
        "one way of a small message between hosts: about 65 us by thunderbolt_net (published), 61 us of an all-reduce "
        "of two trips by NCCL's sockets on a veth pair; Ethernet is assumed to be near",
        2,
    ),
    Efficiency(
        "card_latency_seconds",
        12e-6,
        "s",
        0.7,
        "one way of a small message between cards of a host: 24.6 us of an all-reduce of two trips by NVLink",
        1,
    ),
    Efficiency("other_accelerator", 1.0, "1", 0.12, "an efficiency on another accelerator over that here; assumed", 0),
)


def efficiency(name: str, weights: str = "") -> Efficiency:
    """Return an entry: that of a format of weights where there is one, else that of any.

    Parameters
    ----------
    name : str
        Name of an efficiency in `TABLE`, such as those of `calibration.PARAMETERS`.
    weights : str
        Kernels of the format (`WeightFormat.kernels`); empty for an entry of any format.

    Raises
    ------
    KeyError
        Without such an entry.
    """
    found = {entry.weights: entry for entry in TABLE if entry.name == name}
    for key in (weights, ""):
        if key in found:
            return found[key]
    raise KeyError(f"no efficiency {name} of {weights or 'any weights'}; expected one of {', '.join(sorted(found))}")
