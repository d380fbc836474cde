"""Work out which steps an engine takes for a batch of equal prompts: vLLM's scheduler, played through.

One step serves sequences that decode first, one token each, then prompts in their order until the step's token budget
is spent; a prompt may be cut (chunked prefill). So a sequence whose prompt is done early decodes while later prompts
are computed, and is done earlier: the last decode steps of a large batch are smaller than the batch. (vLLM 0.24,
`vllm/v1/core/sched/scheduler.py`, read.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CAPTURED_SIZES = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
"""Token counts for which vLLM records CUDA graphs by default; a decode step is padded up to the next."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """Forward passes one after the other; every attribute has shape (steps,).

    Attributes
    ----------
    tokens
        Tokens that the linear layers compute, padding of recorded graphs among them.
    sequences
        Sequences that get a token out of the step.
    context
        Tokens whose keys and values are read for sequences that decode.
    pairs
        Pairs of a prompt token and a token it attends to.
    prompt_tokens
        Tokens of prompts, without padding.
    """

    tokens: Floats
    sequences: Floats
    context: Floats
    pairs: Floats
    prompt_tokens: Floats

    @property
    def count(self) -> int:
        """The number of steps."""
        return int(self.tokens.size)

    @classmethod
    def one(
        cls, tokens: float, sequences: float, context: float = 0.0, pairs: float = 0.0, prompt_tokens: float = 0.0
    ) -> Steps:
        """Return a single step, such as the mean of many.

        Parameters
        ----------
        tokens
            Tokens that the linear layers compute.
        sequences
            Sequences that get a token out of it.
        context
            Tokens whose keys and values are read for sequences that decode.
        pairs
            Pairs of a prompt token and a token it attends to.
        prompt_tokens
            Tokens of prompts, without padding.
        """
        return cls(
            *(np.array([value], dtype=np.float64) for value in (tokens, sequences, context, pairs, prompt_tokens))
        )


def padded(tokens: int) -> int:
    """Return the size of the recorded graph that computes some tokens; unchanged above the largest.

    Parameters
    ----------
    tokens : int
        Tokens of a step, at least 1.
    """
    if tokens > CAPTURED_SIZES[-1]:
        return tokens
    return int(CAPTURED_SIZES[int(np.searchsorted(CAPTURED_SIZES, tokens))])


def run_steps(batch: int, prompt: int, output_tokens: int, budget: int) -> Steps:
    """Return the steps that take `batch` prompts of `prompt` tokens to `output_tokens` tokens each.

    Parameters
    ----------
    batch, prompt, output_tokens
        Sequences, tokens of each prompt, tokens of each answer; all at least 1.
    budget
        Tokens of one step at most (`max_num_batched_tokens`).

    Notes
    -----
    The KV cache is taken to hold the whole batch, and all requests to be there at the start.
    """
    computed = np.zeros(batch, dtype=np.int64)
    given = np.zeros(batch, dtype=np.int64)
    rows: list[tuple[float, ...]] = []
    while (active := np.flatnonzero(given < output_tokens)).size:
        decoding = active[computed[active] >= prompt][:budget]
        room = budget - decoding.size
        context = float((prompt + given[decoding]).sum())
        given[decoding] += 1
        # Prompts take what is left of the budget in their order.
        waiting = active[computed[active] < prompt]
        before = np.cumsum(prompt - computed[waiting]) - (prompt - computed[waiting])
        take = np.clip(room - before, 0, prompt - computed[waiting])
        start = computed[waiting]
        pairs = float((take * start + take * (take + 1) / 2).sum())
        computed[waiting] += take
        finished = waiting[(computed[waiting] >= prompt) & (take > 0)]
        given[finished] += 1
        prompts = int(take.sum())
        tokens = padded(int(decoding.size) + prompts)
        rows.append((tokens, decoding.size + finished.size, context, pairs, prompts))
    return Steps(*(np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)))
