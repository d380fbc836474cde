"""Work out the link's part of a step: bytes over its capacity, messages times their latency."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from bottleneck.diagnosis.attribution.parts import Both, Part, Work
from bottleneck.diagnosis.observations.observed import Observations
from bottleneck.performance.collectives import DEFAULT_BACKEND, Link, algorithm, link_of
from bottleneck.performance.messages import allreduces, latency_seconds, sends
from bottleneck.performance.model import Split
from bottleneck.performance.roofline import carried_bytes_of_steps
from bottleneck.runs.topology import Group


def link_parts(seen: Observations, group: Group, work: Work, both: Both) -> list[Part]:
    """Return the parts of one kind of work that pass on the link; none for an engine on one node.

    Parameters
    ----------
    seen
        All that was observed of the run.
    group
        The engine: its head and its nodes in rank order.
    work
        One kind of work: its steps and wall seconds.
    both
        Steps with prompts in them, and steps of decoding only.
    """
    link, profile = seen.link, seen.topology.profile
    if link is None or len(group.nodes) < 2:
        return []
    parts = []
    tokens = sum(each.tokens for each in both)
    # Every token's hidden state crosses the link the same number of times: bytes divide as tokens do.
    share = work.tokens / tokens if tokens > 0 else work.wall_seconds / sum(each.wall_seconds for each in both)
    sent = max((link.sent_bytes[node] for node in group.nodes if node in link.sent_bytes), default=None)
    source = f"samples: bytes sent / capacity ({link.capacity_source})"
    crossed = None if sent is None else sent * share
    if crossed is None and profile is not None:
        crossed, source = _expected_bytes(seen, work), f"message arithmetic / capacity ({link.capacity_source})"
    if crossed and link.capacity_bytes_per_second:
        probed = _probed_link(seen, group)
        rate = min(link.capacity_bytes_per_second, probed.bytes_per_second if probed else math.inf)
        parts.append(Part("link_transfer", crossed / rate, source, None, link.name))
    if profile is not None and link.message_latency_seconds:
        shape, split = seen.topology.model.model_shape(), linked_split_of(seen)
        seconds = work.steps * (latency_seconds(shape, split) + _software_seconds(seen, group, work))
        counted = f"{allreduces(shape, split).count} messages and {sends(shape, split).count} passings to a stage"
        origin = f"{counted} in a step x {link.message_latency_source}"
        parts.append(Part("link_latency", min(seconds, work.wall_seconds), origin, None, link.name))
    return parts


def split_of(seen: Observations) -> Split:
    """Return how the model is split over ranks.

    Parameters
    ----------
    seen : Observations
        Everything observed of a run.

    Returns
    -------
    Split
        Without a link between the ranks.
    """
    settings = seen.topology.settings
    return Split(settings.tensor_parallel, settings.pipeline_parallel, partition=settings.stage_layers)


def linked_split_of(seen: Observations) -> Split:
    """Return how the model is split, with the link between the ranks as it was observed.

    Parameters
    ----------
    seen : Observations
        Everything observed of a run.

    Returns
    -------
    Split
        Without a link where the latency of messages is not known; without a limit where the link's rate is not.
    """
    split, link = split_of(seen), seen.link
    if link is None or link.message_latency_seconds is None:
        return split
    trips = max(1, algorithm(link.backend).all_trips(split.tensor_parallel))
    rate = link.capacity_bytes_per_second or math.inf
    return replace(split, link=Link(link.message_latency_seconds / trips, rate, link.backend))


def _probed_link(seen: Observations, group: Group) -> Link | None:
    """Return the link as all-reduces of the ranks' accelerators were probed to go over it.

    Their bytes are copied by cards and hosts, too: of two H100 over a veth pair that carries 3.3 to 4.0 GB/s they went
    at 2.0 GB/s, and one of 96 KiB took twice its latency and bytes (tests/data/h100_pair). None where it was not
    probed, and on processors, whose ranks come late to a probe for other reasons.
    """
    link = seen.link
    if link is None or len(link.allreduce_seconds) < 2 or not seen.topology.on_accelerator(group.head):
        return None
    return _fitted(tuple(sorted(link.allreduce_seconds.items())), seen.topology.tensor_parallel, link.backend)


@lru_cache
def _fitted(seconds_of_bytes: tuple[tuple[float, float], ...], ranks: int, backend: str) -> Link | None:
    """Fit a link to what was probed of it: once, for every kind of work of a run asks for it twice."""
    return link_of(dict(seconds_of_bytes), ranks, backend)


def _software_seconds(seen: Observations, group: Group, work: Work) -> float:
    """Return what the all-reduces of a step take beyond latency and bytes, by the mean size of the steps' messages."""
    probed = _probed_link(seen, group)
    if probed is None or work.steps <= 0 or work.tokens <= 0:
        return 0.0
    reduced = allreduces(seen.topology.model.model_shape(), split_of(seen))
    return reduced.count * probed.excess_seconds(work.tokens / work.steps * reduced.bytes_per_token)


def _expected_bytes(seen: Observations, work: Work) -> float:
    """Return the bytes that cross the link one after the other in some steps, each of them of their mean size."""
    if work.steps <= 0:
        return 0.0
    tokens, backend = np.array([work.tokens / work.steps]), seen.link.backend if seen.link else DEFAULT_BACKEND
    shape = seen.topology.model.model_shape()
    return work.steps * float(carried_bytes_of_steps(tokens, shape, split_of(seen), backend)[0])
