"""Bytes, operations and messages of steps, and the least time that they can take at given ceilings."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from bottleneck.performance.messages import latency_seconds, sent_bytes_per_token
from bottleneck.performance.model import (
    WHOLE,
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
        Of its messages, by the link's latency and by their bytes.
    """

    weight_bytes: Floats
    operations: Floats
    activation_bytes: Floats
    cache_bytes: Floats
    attention_operations: Floats
    latency_seconds: Floats
    transfer_seconds: Floats


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
    latency, transfer = _messages(steps.tokens, served, split, stage)
    return Demand(
        weight_bytes=read * served.weight_scale,
        operations=steps.tokens * body + steps.sequences * head,
        activation_bytes=steps.tokens * activation_bytes_per_token(shape, split, stage),
        cache_bytes=cache,
        attention_operations=attention,
        latency_seconds=latency,
        transfer_seconds=transfer,
    )


def _messages(tokens: Floats, served: Served, split: Split, stage: int | None) -> tuple[Floats, Floats]:
    if split.link is None:
        return np.zeros_like(tokens), np.zeros_like(tokens)
    sent = tokens * sent_bytes_per_token(served.shape, split, stage)
    latency = np.full_like(tokens, latency_seconds(served.shape, split, stage))
    return latency, sent / split.link.bytes_per_second


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
    return Floor(
        weights=asked.weight_bytes / memory_bytes_per_second,
        arithmetic=asked.operations / (flops_per_second * served.weights.arithmetic_gain),
        activations=asked.activation_bytes / memory_bytes_per_second,
        cache=asked.cache_bytes / memory_bytes_per_second,
        attention=asked.attention_operations / flops_per_second,
        latency=asked.latency_seconds,
        transfer=asked.transfer_seconds,
    )
