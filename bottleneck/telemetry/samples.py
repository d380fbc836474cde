"""Samples as time series: from batches to rates and totals per node, link, core and worker.

Counters arrive raw and cumulative. Between two samples of one boot a counter grows, or it has started again (then
that step says nothing), or a sample is missing in between (then the step is longer, and its mean rate still holds).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bottleneck.json_numbers import number
from bottleneck.telemetry.sample_schema import CORE_FIELDS, LINK_FIELDS

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """Growth of a counter from sample to sample.

    Attributes
    ----------
    start, end : array, shape (n,)
        Unix seconds of each step.
    growth : array, shape (n,)
        How much the counter grew in the step, in its own unit.
    resets : int
        Steps left out because the counter went backwards.
    """

    start: Array
    end: Array
    growth: Array
    resets: int = 0

    @property
    def rate(self) -> Array:
        """Growth per second, shape (n,)."""
        return self.growth / (self.end - self.start)

    @property
    def seconds(self) -> Array:
        """Length of each step, shape (n,)."""
        return self.end - self.start

    def within(self, start: float, end: float) -> Steps:
        """Return the steps cut to an interval; a step across its border is shared out by time.

        Parameters
        ----------
        start, end : float
            Unix seconds.
        """
        if self.start.size == 0:
            return self
        first, last = np.maximum(self.start, start), np.minimum(self.end, end)
        keep = last > first
        share = (last[keep] - first[keep]) / (self.end[keep] - self.start[keep])
        return Steps(first[keep], last[keep], self.growth[keep] * share, self.resets)

    def increase(self, start: float = -math.inf, end: float = math.inf) -> float | None:
        """Return the total growth in an interval; None when no step lies in it.

        Parameters
        ----------
        start, end : float
            Unix seconds; from the first step to the last where they are left out.

        Returns
        -------
        float or None
            In the unit of the field; None is no measurement, 0 is one of no growth.
        """
        inside = self.within(start, end)
        return float(inside.growth.sum()) if inside.growth.size else None

    def covered(self, start: float, end: float) -> float:
        """Return the share of an interval that the steps cover, 0 to 1.

        Parameters
        ----------
        start, end : float
            Unix seconds; an interval without length is covered to 0.
        """
        if end <= start:
            return 0.0
        return min(1.0, float(self.within(start, end).seconds.sum()) / (end - start))


@dataclass
class NodeSamples:
    """All samples of one node, in order of time.

    Attributes
    ----------
    times : array, shape (n,)
        Unix seconds.
    boots : array of int, shape (n,)
        Which boot each sample belongs to; counters are never subtracted across boots.
    missing_batches : int
        Sequence numbers that never arrived.
    dropped : int
        Samples that the node's sampler says it dropped.
    """

    node: str
    times: Array
    boots: npt.NDArray[np.int64]
    samples: list[dict[str, Any]] = field(repr=False)
    missing_batches: int = 0
    dropped: int = 0
    # A window asks for the same counters again and again, and for many of one part; what was worked out once is kept.
    _known_parts: dict[tuple[str | int, ...], list[Any]] = field(default_factory=dict, repr=False, compare=False)
    _known_values: dict[tuple[str | int, ...], Array] = field(default_factory=dict, repr=False, compare=False)
    _known_steps: dict[tuple[str | int, ...], Steps] = field(default_factory=dict, repr=False, compare=False)
    _known_keys: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    def values(self, *path: str | int) -> Array:
        """Return one field of every sample, shape (n,), NaN where a sample does not have it.

        Parameters
        ----------
        path
            Keys and indices from a sample down to the field.
        """
        if path not in self._known_values:
            self._known_values[path] = _numbers(_entries(self._parts(path[:-1]), path[-1]))
        return self._known_values[path]

    def _parts(self, path: tuple[str | int, ...]) -> list[Any]:
        """Return a part of every sample, None where a sample does not have it: what changes slowly is in some alone."""
        if not path:
            return self.samples
        if path not in self._known_parts:
            self._known_parts[path] = _entries(self._parts(path[:-1]), path[-1])
        return self._known_parts[path]

    def last(self, *path: str | int, until: float = math.inf) -> float | None:
        """Return the latest value of a field that was known by a time, in unix seconds; else the first after it.

        Parameters
        ----------
        *path : str or int
            As in `values`.
        until : float
            Unix seconds.

        Returns
        -------
        float or None
            None when no sample has the field.
        """
        values = self.values(*path)
        known = np.flatnonzero(np.isfinite(values))
        if not known.size:
            return None
        by_then = int(np.searchsorted(self.times[known], until, side="right"))
        return float(values[known[max(by_then - 1, 0)]])

    def steps(self, *path: str | int) -> Steps:
        """Return how a cumulative field grows.

        Parameters
        ----------
        *path : str or int
            As in `values`; of a counter in any unit.
        """
        if path not in self._known_steps:
            self._known_steps[path] = self._grow(self.values(*path))
        return self._known_steps[path]

    def _grow(self, values: Array) -> Steps:
        known = np.isfinite(values)
        times, values, boots = self.times[known], values[known], self.boots[known]
        if times.size < 2:
            empty = np.empty(0)
            return Steps(empty, empty, empty)
        seconds, growth = np.diff(times), np.diff(values)
        same = (np.diff(boots) == 0) & (seconds > 0)
        backwards = same & (growth < 0)
        keep = same & ~backwards
        return Steps(times[:-1][keep], times[1:][keep], growth[keep], int(backwards.sum()))

    def keys(self, name: str) -> tuple[str, ...]:
        """Return the keys that a part of the samples ever had: cores, links, workers.

        Parameters
        ----------
        name : str
            Part of a sample that is a mapping, such as "links".

        Returns
        -------
        tuple[str, ...]
            Sorted; empty when no sample has the part.
        """
        if name not in self._known_keys:
            parts = (sample.get(name) for sample in self.samples)
            self._known_keys[name] = tuple(
                sorted({str(key) for part in parts if isinstance(part, dict) for key in part})
            )
        return self._known_keys[name]

    def link(self, name: str, quantity: str) -> Steps:
        """Return the growth of one of a link's counters (a name of `LINK_FIELDS`).

        Parameters
        ----------
        name : str
            Network of the link, as the profile calls it.
        quantity : str
            Name of a counter, which says its unit, such as "receive_bytes".

        Raises
        ------
        ValueError
            For a counter that links do not have.
        """
        return self.steps("links", name, LINK_FIELDS.index(quantity))

    def cores(self, quantity: str, start: float, end: float) -> float | None:
        """Return the seconds that all of the node's cores spent in a state (a name of `CORE_FIELDS`).

        Parameters
        ----------
        quantity
            A name of `CORE_FIELDS`.
        start
            Start, unix seconds.
        end
            End, unix seconds.
        """
        index = CORE_FIELDS.index(quantity)
        parts = [self.steps("cpu", core, index).increase(start, end) for core in self.keys("cpu")]
        known = [part for part in parts if part is not None]
        return sum(known) if known else None

    def workers(self, quantity: str, start: float, end: float, prefix: str = "") -> float | None:
        """Return the growth of a counter summed over the node's workers whose name starts with `prefix`.

        Parameters
        ----------
        quantity
            A field of the part `workers`.
        start
            Start, unix seconds.
        end
            End, unix seconds.
        prefix
            Of the workers' names; empty is all.
        """
        names = [name for name in self.keys("workers") if name.startswith(prefix)]
        parts = [self.steps("workers", name, quantity).increase(start, end) for name in names]
        known = [part for part in parts if part is not None]
        return sum(known) if known else None

    @property
    def resets(self) -> int:
        """Count how often a link counter went backwards inside a boot."""
        return sum(self.link(name, "transmit_bytes").resets for name in self.keys("links"))


def _entries(parts: list[Any], key: str | int) -> list[Any]:
    """Return an entry of every part, None where there is none."""
    try:
        return [part[key] for part in parts]
    except (KeyError, IndexError, TypeError):
        return [_entry(part, key) for part in parts]


def _entry(part: object, key: str | int) -> Any:
    """Return an entry of a part, or None where there is none."""
    if isinstance(part, dict):
        return part.get(key)
    if isinstance(part, list) and isinstance(key, int) and key < len(part):
        return part[key]
    return None


def _numbers(column: list[Any]) -> Array:
    if all(type(value) is float or type(value) is int for value in column):
        # A whole number may be larger than any float.
        with contextlib.suppress(OverflowError):
            return np.array(column, dtype=np.float64)
    return np.array([number(value) for value in column], dtype=np.float64)


def node_samples(batches: Iterable[dict[str, Any]]) -> dict[str, NodeSamples]:
    """Sort batches into one series per node.

    Parameters
    ----------
    batches : iterable of dict
        In any order; a batch that is there twice (same node, boot and sequence) counts once.

    Returns
    -------
    dict
        Node name to its samples. Parts that are not samples are left out.
    """
    seen: dict[tuple[str, str, int], dict[str, Any]] = {}
    for position, batch in enumerate(batches):
        sequence = number(batch.get("sequence"))
        # A batch without a number cannot be a copy of another one.
        identity = int(sequence) if math.isfinite(sequence) else -1 - position
        seen.setdefault((str(batch.get("node", "")), str(batch.get("boot", "")), identity), batch)
    by_node: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for (node, boot, sequence_number), batch in seen.items():
        by_node.setdefault(node, {}).setdefault(boot, {})[sequence_number] = batch
    return {node: _one_node(node, boots) for node, boots in sorted(by_node.items())}


def _one_node(node: str, boots: dict[str, dict[int, dict[str, Any]]]) -> NodeSamples:
    rows: list[tuple[float, int, dict[str, Any]]] = []
    missing = dropped = 0
    for index, (_, batches) in enumerate(sorted(boots.items())):
        numbers = [value for value in batches if value >= 0]
        if numbers:
            missing += max(numbers) - min(numbers) + 1 - len(numbers)
        counts = [
            value
            for batch in batches.values()
            if math.isfinite(value := number(_entry(batch.get("sampler"), "dropped")))
        ]
        dropped += int(max(counts, default=0.0))
        for batch in batches.values():
            samples = batch.get("samples")
            for sample in samples if isinstance(samples, list) else []:
                moment = number(sample.get("t")) if isinstance(sample, dict) else math.nan
                if math.isfinite(moment):
                    rows.append((moment, index, sample))
    rows.sort(key=lambda row: row[0])
    return NodeSamples(
        node=node,
        times=np.array([row[0] for row in rows], dtype=np.float64),
        boots=np.array([row[1] for row in rows], dtype=np.int64),
        samples=[row[2] for row in rows],
        missing_batches=missing,
        dropped=dropped,
    )
