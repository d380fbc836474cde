"""Points of batch and prompt length, ready for a model of step times to be evaluated at many times over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bottleneck.whatif.schedule import Floats, Steps, run_steps
from bottleneck.whatif.step import prefill_overhead, step_parts
from bottleneck.whatif.sweep import Accelerator, Served


@lru_cache(maxsize=4096)
def _steps(batch: int, prompt: int, output_tokens: int, budget: int) -> Steps:
    return run_steps(batch, prompt, output_tokens, budget)


@dataclass(frozen=True)
class WorkPoints:
    """What a model and its engine do at some points.

    Attributes
    ----------
    batch, prompt : array of shape (points,)
    steps : Steps
        Of all points one after the other: those to the first token, then those to the last.
    starts : array of shape (2 * points,)
        Where the steps of each point begin.
    """

    served: Served
    accelerator: Accelerator
    output_tokens: int
    batch: NDArray[np.int64]
    prompt: NDArray[np.int64]
    steps: Steps
    starts: NDArray[np.intp]

    @classmethod
    def of(
        cls, served: Served, accelerator: Accelerator, points: Sequence[tuple[int, int]], output_tokens: int
    ) -> WorkPoints:
        """Play the engine's scheduler through at every (batch, prompt tokens)."""
        runs = [
            _steps(batch, prompt, tokens, served.max_num_batched_tokens)
            for batch, prompt in points
            for tokens in (1, output_tokens)
        ]
        columns = (
            np.concatenate([getattr(run, name) for run in runs])
            for name in ("tokens", "sequences", "context", "pairs", "prompt_tokens")
        )
        starts = np.cumsum([0, *(run.count for run in runs[:-1])])
        pairs = np.array(points, dtype=np.int64).reshape(-1, 2)
        return cls(served, accelerator, output_tokens, pairs[:, 0], pairs[:, 1], Steps(*columns), starts)

    def seconds(self, parameters: NDArray[np.float64]) -> Floats:
        """Return prefill seconds of every point, then seconds of a decode step of every point; shape (2 * points,)."""
        total = step_parts(self.steps, self.served, self.accelerator, parameters).total
        runs = np.add.reduceat(total, self.starts)
        first, whole = runs[0::2], runs[1::2]
        prefill = first + prefill_overhead(self.batch, parameters)
        # Above the first token, an answer's steps; the mixed ones of a chunked prefill cost their difference.
        return np.concatenate([prefill, (whole - first) / max(1, self.output_tokens - 1)])
