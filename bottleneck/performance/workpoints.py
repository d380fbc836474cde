"""Points of batch and prompt length, ready for a model of step times to be evaluated at many times over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bottleneck.performance.model import WHOLE, Split
from bottleneck.performance.scheduler import Floats, Steps, run_steps
from bottleneck.performance.served import Accelerator, Served
from bottleneck.performance.step import prefill_overhead, step_parts

_COLUMNS = ("tokens", "sequences", "context", "pairs", "prompt_tokens")
_RUNS = 3


@lru_cache(maxsize=4096)
def _steps(batch: int, prompt: int, output_tokens: int, budget: int) -> Steps:
    return run_steps(batch, prompt, output_tokens, budget)


@dataclass(frozen=True)
class WorkPoints:
    """Work of a model and its engine at some points.

    Pipeline stages work on parts of the batch side by side: as many as there are stages, if there are sequences
    enough and the engine overlaps them. A part goes through all stages, one after the other, to get a token for each of
    its sequences; the stages' times add up to a whole step on the part.

    Attributes
    ----------
    batch, prompt : array of shape (points,)
    steps : Steps
        Three runs of every point, one after the other: the whole batch to the first token, a part of it to the first
        token, a part of it to the last.
    starts : array of shape (3 * points,)
        Where the steps of each run begin.
    """

    served: Served
    accelerator: Accelerator
    output_tokens: int
    split: Split
    batch: NDArray[np.int64]
    prompt: NDArray[np.int64]
    steps: Steps
    starts: NDArray[np.intp]

    @classmethod
    def of(
        cls,
        served: Served,
        accelerator: Accelerator,
        points: Sequence[tuple[int, int]],
        output_tokens: int,
        split: Split = WHOLE,
    ) -> WorkPoints:
        """Play the engine's scheduler through at every (batch, prompt tokens).

        Parameters
        ----------
        served : Served
            The model and how its engine is set.
        accelerator : Accelerator
            What it runs on.
        points : Sequence[tuple[int, int]]
            (batch, tokens of a prompt) each.
        output_tokens : int
            Tokens of an answer.
        split : Split
            How the model is cut into ranks and stages, and the link between them.

        Returns
        -------
        WorkPoints
            Steps of every point, and where each point's begin.
        """
        runs = []
        for batch, prompt in points:
            part = -(-batch // min(split.busy_stages, batch))
            runs += [
                _steps(size, prompt, tokens, served.max_num_batched_tokens)
                for size, tokens in ((batch, 1), (part, 1), (part, output_tokens))
            ]
        columns = (np.concatenate([getattr(run, name) for run in runs]) for name in _COLUMNS)
        starts = np.cumsum([0, *(run.count for run in runs[:-1])])
        pairs = np.array(points, dtype=np.int64).reshape(-1, 2)
        return cls(served, accelerator, output_tokens, split, pairs[:, 0], pairs[:, 1], Steps(*columns), starts)

    def seconds(self, parameters: NDArray[np.float64]) -> Floats:
        """Return prefill seconds of every point, then seconds of a decode step of every point; shape (2 * points,).

        Parameters
        ----------
        parameters : array of shape (len(PARAMETERS),)
            Natural logarithms, in the order of `PARAMETERS`.
        """
        total = step_parts(self.steps, self.served, self.accelerator, parameters, self.split).total
        runs = np.add.reduceat(total, self.starts)
        whole, first, last = (runs[index::_RUNS] for index in range(_RUNS))
        stages = self.split.busy_stages
        if stages > 1:
            # Chunks of prompts follow each other through the stages: the longest of them fills and drains the rest.
            longest = np.maximum.reduceat(total, self.starts)[0::_RUNS]
            whole = whole / stages + longest * (stages - 1) / stages
        prefill = whole + prefill_overhead(self.batch, parameters)
        # Above the first token, an answer's steps; the mixed ones of a chunked prefill cost their difference.
        return np.concatenate([prefill, (last - first) / max(1, self.output_tokens - 1)])

    def decode_shares(self, parameters: NDArray[np.float64], point: int = 0) -> dict[str, float]:
        """Return the seconds of one point's decode step by what they go to; they add up to the step.

        Parameters
        ----------
        parameters : array of shape (len(PARAMETERS),)
            Natural logarithms, in the order of `PARAMETERS`.
        point : int
            Index of the point, in the order in which they were given.
        """
        return self._shares(parameters, 3 * point + 2, 3 * point + 1, max(1, self.output_tokens - 1))

    def prefill_shares(self, parameters: NDArray[np.float64], point: int = 0) -> dict[str, float]:
        """Return the seconds of one point's prefill by what they go to, pipeline overlap not among them.

        Parameters
        ----------
        parameters : array of shape (len(PARAMETERS),)
            Natural logarithms, in the order of `PARAMETERS`.
        point : int
            Index of the point, in the order in which they were given.
        """
        shares = self._shares(parameters, 3 * point, None, 1)
        shares["host"] += float(prefill_overhead(self.batch[[point]], parameters)[0])
        return shares

    def _shares(self, parameters: NDArray[np.float64], run: int, less: int | None, divisor: float) -> dict[str, float]:
        parts = step_parts(self.steps, self.served, self.accelerator, parameters, self.split)
        power = 1.0 + float(np.exp(parameters[2]))
        # Reading and multiplying overlap: their common time goes to each by its part of the smooth maximum.
        reading = 1.0 / (1.0 + np.exp(np.clip(power * np.log(parts.arithmetic / parts.weights), -700, 700)))
        columns = {
            "weight bytes": parts.linear * reading,
            "FLOPs": parts.linear * (1 - reading) + parts.attention,
            "KV bytes": parts.cache,
            "activation bytes": parts.activations,
            "messages": parts.messages,
            "host": parts.host,
        }
        sums = {name: np.add.reduceat(column, self.starts) for name, column in columns.items()}
        return {name: float(each[run] - (0 if less is None else each[less])) / divisor for name, each in sums.items()}
