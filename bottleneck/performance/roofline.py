"""Bytes, operations and messages of steps, and the least time that they can take at given ceilings."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from bottleneck.performance.collectives import Link, algorithm, moved_bytes
from bottleneck.performance.messages import allreduces, latency_seconds, sends, sent_bytes_per_token
from bottleneck.performance.model import (
    WHOLE,
    ModelShape,
    Split,
    activation_bytes_per_token,
    attention_kinds,
    experts,
    flops_per_token,
    layer_kv_bytes,
    read_copies,
    shared_weight_bytes,
)
from bottleneck.performance.scheduler import Floats, Steps
from bottleneck.performance.served import Served


@dataclass(frozen=True)
class Demand:
    """Demands of steps on one rank; every attribute has shape (steps,).

    Attributes
    ----------
    weight_bytes, cache_bytes, activation_bytes
        Moved through its memory.
    operations, attention_operations
        Floating point operations of the linear layers, and of prompts' attention.
    latency_seconds, transfer_seconds
        Of its messages, by the link's latency (and what the software of middle sizes costs), and by their bytes.
    shaped_seconds, burst_seconds
        Of the same bytes at the rate of the link's shaper, and of what passes that at once: 0 without one.
    """

    weight_bytes: Floats
    operations: Floats
    activation_bytes: Floats
    cache_bytes: Floats
    attention_operations: Floats
    latency_seconds: Floats
    transfer_seconds: Floats
    shaped_seconds: Floats
    burst_seconds: Floats

    def waited_transfer(self, own_seconds: Floats) -> Floats:
        """Return the seconds that steps wait for their messages' bytes: the link's own, or longer its shaper's.

        A shaper's bucket fills while a rank works and empties at once: with equal pauses between messages, each waits
        for its bytes less the fewer of what the bucket holds and what the pause let in.

        Parameters
        ----------
        own_seconds : Floats
            All other seconds of each step, latency among them; shape (steps,).
        """
        return np.maximum(self.transfer_seconds, self.shaped_seconds - np.minimum(self.burst_seconds, own_seconds))


def demand(steps: Steps, served: Served, split: Split = WHOLE, stage: int | None = None) -> Demand:
    """Return what steps ask of one rank.

    Parameters
    ----------
    steps : Steps
        Steps to be made; every field has shape (steps,).
    served : Served
        The model as it is served.
    split : Split
        Split of the model over ranks.
    stage : int or None
        Pipeline stage of the rank. None is all of them, which take turns, so that it adds up to one whole step.
    """
    shape, weights = served.shape, served.weights
    body = flops_per_token(shape, split, stage, output_head=False)
    head = flops_per_token(shape, split, stage) - body
    read = np.full_like(steps.tokens, shared_weight_bytes(shape, weights, split, stage))
    for each in experts(shape, weights, split, stage):
        read = read + each.copy_bytes * read_copies(each, steps.tokens)
    cache, attention = np.zeros_like(steps.tokens), np.zeros_like(steps.tokens)
    for kind, count in attention_kinds(shape, split, stage):
        seen, pairs = steps.context, steps.pairs
        if kind.window is not None:
            seen = np.minimum(seen, steps.sequences * kind.window)
            pairs = np.minimum(pairs, steps.prompt_tokens * kind.window)
        cache = cache + count * seen * layer_kv_bytes(kind, split, served.kv_value_bytes)
        # A state is read and written for every token.
        cache = cache + count * steps.sequences * 2 * kind.state_bytes / split.tensor_parallel
        attention = attention + count * pairs * kind.pair_operations / split.tensor_parallel
    latency, sent, messages = _messages(steps.tokens, served, split, stage)
    rate, shaper = (split.link.bytes_per_second, split.link.shaper) if split.link else (math.inf, None)
    return Demand(
        weight_bytes=read * served.weight_scale,
        operations=steps.tokens * body + steps.sequences * head,
        activation_bytes=steps.tokens * activation_bytes_per_token(shape, split, stage),
        cache_bytes=cache,
        attention_operations=attention,
        latency_seconds=latency,
        transfer_seconds=sent / rate,
        shaped_seconds=sent / shaper.bytes_per_second if shaper else np.zeros_like(sent),
        burst_seconds=np.full_like(sent, messages * shaper.burst_bytes / shaper.bytes_per_second if shaper else 0.0),
    )


def carried_bytes_of_steps(
    tokens: Floats, shape: ModelShape, split: Split, backend: str, stage: int | None = None
) -> Floats:
    """Return the bytes that a rank sends in each step, with the flags that a backend sends beside small messages.

    Parameters
    ----------
    tokens : Floats
        Tokens of each step; shape (steps,).
    shape, split, stage
        As in `messages.sent_bytes_per_token`.
    backend : str
        Name in `collectives.ALGORITHMS`.

    Returns
    -------
    Floats
        Shape (steps,).
    """
    reduced = allreduces(shape, split, stage)
    sizes = tokens * reduced.bytes_per_token
    flags = np.where(sizes <= algorithm(backend).doubled_bytes, sizes, 0.0)
    sent = tokens * sent_bytes_per_token(shape, split, stage)
    return np.asarray(sent + reduced.count * moved_bytes(flags, split.tensor_parallel))


def _messages(tokens: Floats, served: Served, split: Split, stage: int | None) -> tuple[Floats, Floats, int]:
    """Return seconds without bytes, the bytes sent, and how many messages they are."""
    link, reduced = split.link, allreduces(served.shape, split, stage)
    if link is None:
        return np.zeros_like(tokens), np.zeros_like(tokens), 0
    sizes = tokens * reduced.bytes_per_token
    sent = carried_bytes_of_steps(tokens, served.shape, split, link.backend, stage)
    latency = latency_seconds(served.shape, split, stage) + reduced.count * _excess(link, sizes)
    return latency, sent, reduced.count + sends(served.shape, split, stage).count


def _excess(link: Link, sizes: Floats) -> Floats:
    """Return `Link.excess_seconds` of an array of sizes."""
    if not link.excess:
        return np.zeros_like(sizes)
    known, seconds = np.array(link.excess).T
    return np.asarray(np.interp(np.log(np.maximum(sizes, 1.0)), np.log(known), seconds))


@dataclass(frozen=True)
class Floor:
    """Least seconds of steps by what they go to; every attribute has shape (steps,).

    Reads of weights and the arithmetic of the linear layers overlap perfectly; the rest is done by other kernels, one
    after the other.
    """

    weights: Floats
    arithmetic: Floats
    activations: Floats
    cache: Floats
    attention: Floats
    latency: Floats
    transfer: Floats

    @property
    def linear(self) -> Floats:
        """Seconds of the linear layers: the longer of reading and multiplying."""
        return np.maximum(self.weights, self.arithmetic)

    @property
    def total(self) -> Floats:
        """Seconds of each step."""
        messages = self.latency + self.transfer
        return self.linear + self.activations + self.cache + self.attention + messages

    def times(self, count: float) -> Floor:
        """Return the floor of so many of these steps.

        Parameters
        ----------
        count : float
            Number of steps; at least 0, not always whole.
        """
        return Floor(*(count * getattr(self, each.name) for each in fields(self)))


def step_floor(
    steps: Steps,
    served: Served,
    flops_per_second: float,
    memory_bytes_per_second: float,
    split: Split = WHOLE,
    stage: int | None = None,
) -> Floor:
    """Return the least time of steps: every ceiling reached, nothing spent beside.

    Parameters
    ----------
    steps : Steps
        Steps to be made; every field has shape (steps,).
    served : Served
        The model as it is served.
    flops_per_second, memory_bytes_per_second : float
        Ceilings of a rank: large bfloat16 matrix products, reads of its memory; infinite where one is not known.
    split, stage : Split, int or None
        As in `demand`.
    """
    asked = demand(steps, served, split, stage)
    floor = Floor(
        weights=asked.weight_bytes / memory_bytes_per_second,
        arithmetic=asked.operations / (flops_per_second * served.weights.arithmetic_gain),
        activations=asked.activation_bytes / memory_bytes_per_second,
        cache=asked.cache_bytes / memory_bytes_per_second,
        attention=asked.attention_operations / flops_per_second,
        latency=asked.latency_seconds,
        transfer=np.zeros_like(asked.transfer_seconds),
    )
    return replace(floor, transfer=asked.waited_transfer(floor.total))
