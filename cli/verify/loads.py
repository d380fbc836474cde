"""The loads of the benchmark, drawn from ranges: short and long prompts and answers, few clients and many."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# A round of a load (each client one request) is to take no longer than this on one core a node, or a run would take
# minutes: seconds a prompt token and a step of the engine take there, roughly (measured on the embedded model).
LONGEST_ROUND_SECONDS = 3.0
PROMPT_TOKEN_SECONDS = 1 / 1500
STEP_SECONDS = 0.03


@dataclass(frozen=True)
class Load:
    """One load.

    Attributes
    ----------
    kind
        The range that it was drawn from.
    rate_per_second
        Requests that arrive in a second, at random (open loop); None where `concurrency` clients each wait for their
        answer (closed loop).
    """

    kind: str
    concurrency: int
    input_tokens: int
    output_tokens: int
    rate_per_second: float | None = None

    @property
    def round_seconds(self) -> float:
        """The length of one round, roughly."""
        prompts = self.concurrency * self.input_tokens * PROMPT_TOKEN_SECONDS
        return prompts + self.output_tokens * STEP_SECONDS

    def bench(self, requests: int, seed: int) -> dict[str, Any]:
        """Return the bench's arguments: a sweep of one point."""
        loop = (
            {"concurrency": [self.concurrency]}
            if self.rate_per_second is None
            else {"rate": [round(self.rate_per_second, 4)]}
        )
        shape = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        return {**shape, **loop, "requests": requests, "seed": seed}

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Load:
        """Read what `to_json` returned."""
        return cls(**document)


# kind -> ranges of concurrency, input tokens, output tokens
RANGES: Mapping[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "mixed": ((2, 8), (64, 384), (8, 32)),
    "prompts": ((1, 4), (384, 1024), (2, 6)),
    "answers": ((2, 8), (16, 64), (32, 96)),
    "alone": ((1, 1), (16, 256), (16, 64)),
    "crowd": ((7, 12), (32, 192), (8, 32)),
    "long": ((2, 6), (384, 768), (32, 96)),
}


def draw(kind: str, rng: random.Random) -> Load:
    """Return a load of a kind, its numbers drawn evenly in their logarithm."""
    ranges = RANGES[kind]
    for _ in range(100):
        concurrency, prompt, answer = (_log_uniform(rng, *each) for each in ranges)
        load = Load(kind, concurrency, prompt, answer)
        if load.round_seconds <= LONGEST_ROUND_SECONDS:
            return load
    # The smallest of the kind: every drawn one was too long.
    return Load(kind, *(low for low, _ in ranges))


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))
