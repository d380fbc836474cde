"""How a model is split over ranks, and what the messages between them cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bottleneck.performance.fit import allreduce_messages, pipeline_messages
from bottleneck.performance.scheduler import Floats

if TYPE_CHECKING:
    from bottleneck.profile.types import Shape


@dataclass(frozen=True)
class Link:
    """What carries messages between ranks; the latency is one way, of a small message, software included."""

    latency_seconds: float
    bytes_per_second: float

    def allreduce_seconds(self, message_bytes: Floats | float, ranks: int) -> Floats:
        """Return the time of an all-reduce.

        Small messages are exchanged in log2(ranks) rounds (recursive doubling); 2 (n - 1) / n of the bytes leave each
        rank (Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005).
        Between two ranks that is one exchange of the whole message.
        """
        rounds = math.ceil(math.log2(ranks)) if ranks > 1 else 0
        moved = 2 * (ranks - 1) / ranks * np.asarray(message_bytes, dtype=np.float64)
        return rounds * self.latency_seconds + moved / self.bytes_per_second

    def send_seconds(self, message_bytes: Floats | float) -> Floats:
        """Return the time of a message from one rank to the next."""
        return self.latency_seconds + np.asarray(message_bytes, dtype=np.float64) / self.bytes_per_second


@dataclass(frozen=True)
class Split:
    """Ranks that share every layer, stages that take turns, and the link between them."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    link: Link | None = None

    @property
    def ranks(self) -> int:
        """Ranks of one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    def problem(self, shape: Shape) -> str | None:
        """Return why a model cannot be split like this, or None."""
        tensor = self.tensor_parallel
        if shape.attention_heads % tensor or shape.key_value_heads % tensor:
            return (
                f"tensor parallel {tensor}; expected a divisor of {shape.attention_heads} attention heads "
                f"and {shape.key_value_heads} key and value heads"
            )
        if self.pipeline_parallel > shape.layers:
            return f"pipeline parallel {self.pipeline_parallel}; expected at most one stage a layer, {shape.layers}"
        if self.ranks > 1 and self.link is None:
            return f"{self.ranks} ranks and no link between them; expected its rate and latency"
        return None

    def allreduces_seconds(self, shape: Shape, tokens: Floats) -> Floats:
        """Return what the all-reduces of steps with some tokens take; zero for one rank."""
        if self.tensor_parallel == 1 or self.link is None:
            return np.zeros_like(tokens)
        each = allreduce_messages(shape, 1, self.tensor_parallel)
        return each.count * self.link.allreduce_seconds(tokens * each.message_bytes, self.tensor_parallel)

    def sends_seconds(self, shape: Shape, tokens: Floats) -> Floats:
        """Return what the transfers between pipeline stages of steps with some tokens take; zero for one stage."""
        if self.pipeline_parallel == 1 or self.link is None:
            return np.zeros_like(tokens)
        each = pipeline_messages(shape, 1, self.pipeline_parallel)
        return each.count * self.link.send_seconds(tokens * each.message_bytes)
