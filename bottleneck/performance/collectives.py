"""Time of a message between ranks: which algorithm a backend uses, how many trips it takes, how many bytes it moves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    # The control node's engine loads this room and no NumPy.
    from numpy import float64
    from numpy.typing import NDArray

    Quantity = TypeVar("Quantity", float, NDArray[float64])

_UNLIMITED = 1e15


@dataclass(frozen=True)
class Algorithm:
    """A backend's way of making an all-reduce of small messages, and of passing a step on to the next stage.

    Attributes
    ----------
    hops : function
        Number of ranks -> messages that follow each other.
    trips : int
        Times that something crosses the link for each of them: 2 where the receiver first says that it is ready.
    stage_trips : int
        Times that something crosses the link, one after the other, whenever a step passes on to the next stage.
    source : str
        Where that is from.
    doubled_bytes : float
        Messages up to this size travel with a flag beside every word of data: twice their bytes cross the link.
    """

    name: str
    hops: Callable[[int], int]
    trips: int
    stage_trips: int
    source: str
    doubled_bytes: float = 0.0

    def all_trips(self, ranks: int) -> int:
        """Return how many one-way latencies an all-reduce takes.

        Parameters
        ----------
        ranks : int
            Ranks that take part, at least 1; one alone sends nothing.
        """
        return self.hops(ranks) * self.trips if ranks > 1 else 0


def _ring(ranks: int) -> int:
    return 2 * (ranks - 1)


def _tree(ranks: int) -> int:
    return 2 * math.ceil(math.log2(ranks))


_PASSING = (
    "a stage's tensors follow a size and a description of them, each sent over gloo and announced first, and the token "
    "goes back to the head (vLLM 0.32, distributed/parallel_state.py, read: isend_tensor_dict)"
)

ALGORITHMS: dict[str, Algorithm] = {
    "gloo": Algorithm(
        "ring",
        _ring,
        2,
        8,
        "gloo/allreduce.cc, read: reduce-scatter, then all-gather along a ring, each receive announced to its sender. "
        "Measured: 17 all-reduces of two ranks a step over a link of 5.32 ms one way take (402 - 49) ms, 3.9 trips "
        f"each (tests/data/runs, delayed-link against full-cache). Stages: {_PASSING}; 8 is the slope of a step's time "
        "over the latency in the recorded two-stage runs with a delay of 3 and 10 ms (tests/data/verdicts, pp2-links)",
    ),
    "nccl": Algorithm(
        "tree",
        _tree,
        1,
        6,
        "NCCL src/graph/tuning.cc, read: up and down a tree for small messages, 2 log2(nodes); of two ranks the same "
        f"as its ring, 2 (n - 1). Stages: {_PASSING}; the tensors in one trip more; not measured. Small messages "
        "go by its protocol LL: of every four words two are flags (union ncclLLFifoLine), up to where its own model "
        "of times (tuning.cc, ring over a network of two nodes: 9 us and a quarter of the rate, against 52 us and all "
        "of it) has both equal at the 10 Gbit/s that a veth device names. Measured: 12 KiB over a link of 1 Gbit/s "
        "take 208 us, twice their bytes in packets of 1,500 would take 206; 196 KB take 1.65 ms, once their bytes "
        "1.64 (two H200, doc/reference/what-if-links.md)",
        17e3,
    ),
    "xccl": Algorithm(
        "ring",
        _ring,
        1,
        6,
        "oneCCL selector_allreduce.cpp, read: a ring between nodes for buffers of an accelerator; not measured. "
        f"Stages: {_PASSING}; the tensors in one trip more; not measured",
    ),
}
DEFAULT_BACKEND = "nccl"
"""Of a link that was described and not probed: what engines use between accelerators."""


def algorithm(backend: str) -> Algorithm:
    """Return how a backend makes an all-reduce; one that is not known is taken for a ring without announcements.

    Parameters
    ----------
    backend : str
        Name in `ALGORITHMS`, such as "nccl" or "gloo".
    """
    return ALGORITHMS.get(backend, Algorithm("ring", _ring, 1, 6, "assumed"))


def moved_bytes(message_bytes: Quantity, ranks: int) -> Quantity:
    """Return the bytes that leave each rank in an all-reduce of a message, or of each of an array of messages.

    2 (n - 1) / n of the message, the least possible (Thakur, Rabenseifner and Gropp, "Optimization of collective
    communication operations in MPICH", 2005).

    Parameters
    ----------
    message_bytes : Quantity
        Bytes of the message on each rank: one number, or an array of any shape.
    ranks : int
        Ranks that take part, at least 1; one alone sends nothing.

    Returns
    -------
    Quantity
        Bytes, of the same shape.
    """
    return message_bytes * (2 * (ranks - 1) / ranks)


def carried_bytes(message_bytes: float, backend: str) -> float:
    """Return the bytes of a message as they travel: some backends send a flag with every word of small ones.

    Parameters
    ----------
    message_bytes : float
        Bytes of the message.
    backend : str
        Name in `ALGORITHMS`.
    """
    return message_bytes * (2.0 if message_bytes <= algorithm(backend).doubled_bytes else 1.0)


@dataclass(frozen=True)
class Shaper:
    """A token bucket at both ends of a link, as of `tc tbf`.

    Attributes
    ----------
    bytes_per_second : float
        Rate of messages' bytes, headers taken off.
    burst_bytes : float
        What passes at once after a pause.
    """

    bytes_per_second: float
    burst_bytes: float


@dataclass(frozen=True)
class Link:
    """The carrier of messages between ranks.

    Attributes
    ----------
    latency_seconds : float
        One way, of a small message, software included.
    backend : str
        What sends collectives over it: a key of `ALGORITHMS`.
    shaper : Shaper or None
        What holds it to a lower rate; None for a cable, whose rate is its own.
    excess : tuple of (float, float)
        Size of an all-reduce in bytes, and the seconds that it was seen to take beyond latency and bytes: what the
        software of middle sizes costs. By size, ascending.
    """

    latency_seconds: float
    bytes_per_second: float
    backend: str = DEFAULT_BACKEND
    shaper: Shaper | None = None
    excess: tuple[tuple[float, float], ...] = ()

    def latency_of_allreduce(self, ranks: int) -> float:
        """Return the seconds of an all-reduce without bytes.

        Parameters
        ----------
        ranks : int
            Ranks that take part, at least 1; one alone sends nothing.
        """
        return algorithm(self.backend).all_trips(ranks) * self.latency_seconds

    def latency_of_passing(self) -> float:
        """Return the seconds of passing on to the next stage without bytes."""
        return algorithm(self.backend).stage_trips * self.latency_seconds

    def allreduce_seconds(self, message_bytes: float, ranks: int) -> float:
        """Return the seconds of an all-reduce.

        Parameters
        ----------
        message_bytes : float
            Bytes of the message on each rank.
        ranks : int
            Ranks that take part, at least 1; one alone sends nothing.

        Returns
        -------
        float
            Trips times the one-way latency, the bytes that leave a rank (`moved_bytes`, `carried_bytes`) over the
            link's rate, and what was seen beyond both.
        """
        carried = moved_bytes(carried_bytes(message_bytes, self.backend), ranks)
        return self.latency_of_allreduce(ranks) + self.excess_seconds(message_bytes) + carried / self.bytes_per_second

    def excess_seconds(self, message_bytes: float) -> float:
        """Return the seconds of an all-reduce beyond latency and bytes, between the probed sizes by their logarithms.

        Parameters
        ----------
        message_bytes : float
            Bytes of the message on each rank, above 0.
        """
        if not self.excess:
            return 0.0
        if message_bytes <= self.excess[0][0]:
            return self.excess[0][1]
        for (low, less), (high, more) in itertools.pairwise(self.excess):
            if message_bytes <= high:
                return less + (more - less) * math.log(message_bytes / low) / math.log(high / low)
        return self.excess[-1][1]


def link_of(seconds: Mapping[float, float], ranks: int, backend: str) -> Link | None:
    """Return the link under which messages would take what was probed; None without probes.

    The smallest and the largest give latency and rate; what those between take beyond them is the link's `excess`.

    Parameters
    ----------
    seconds : mapping
        Bytes of a message -> seconds of one all-reduce of it, or with one rank of one message to the next.
    ranks : int
        Ranks that took part, at least 1; with one the messages are those from rank to rank.
    backend : str
        Name in `ALGORITHMS`.
    """
    points = sorted((size, each) for size, each in seconds.items() if size > 0)
    if not points:
        return None
    trips = max(1, algorithm(backend).all_trips(ranks))
    moved = moved_bytes(1.0, ranks) if ranks > 1 else 1.0
    (small, quick), (large, slow) = points[0], points[-1]
    if large == small or slow <= quick:
        return Link(quick / trips, _UNLIMITED, backend)
    light, heavy = (carried_bytes(size, backend) if ranks > 1 else size for size in (small, large))
    rate = (heavy - light) * moved / (slow - quick)
    plain = Link(max(quick - light * moved / rate, 0.1 * quick) / trips, rate, backend)
    if ranks == 1:
        return plain
    excess = tuple((size, max(0.0, each - plain.allreduce_seconds(size, ranks))) for size, each in points)
    return replace(plain, excess=excess) if any(each > 0 for _, each in excess) else plain


def probed_seconds(probes: Mapping[float, float], size: float) -> float | None:
    """Return the seconds of a message from probes of other sizes in bytes, between them along their logarithms.

    Parameters
    ----------
    probes : mapping of float to float
        Message size in bytes -> seconds of an all-reduce of it, both above 0.
    size : float
        Size asked for, in bytes.

    Returns
    -------
    float or None
        Below the smallest probe its seconds, above the largest in proportion to the size; None without a probe or for a
        size of 0 or less.
    """
    known = sorted(probes.items())
    if not known or size <= 0:
        return None
    if size <= known[0][0]:
        return known[0][1]
    for (low, short), (high, long) in itertools.pairwise(known):
        if size <= high:
            along = math.log(size / low) / math.log(high / low)
            return math.exp((1.0 - along) * math.log(short) + along * math.log(long))
    return known[-1][1] * size / known[-1][0]
