"""The steps an engine takes for a batch of equal prompts."""

from __future__ import annotations

import pytest

from bottleneck.performance.scheduler import padded, run_steps


def test_one_prompt_is_one_step_and_then_one_a_token() -> None:
    steps = run_steps(batch=1, prompt=100, output_tokens=4, budget=8192)
    assert steps.count == 4
    assert steps.prompt_tokens.tolist() == [100, 0, 0, 0]
    assert steps.pairs.tolist() == [100 * 101 / 2, 0, 0, 0]
    # The first token came out of the prompt's step, so the next one sees 101 tokens.
    assert steps.context.tolist() == [0, 101, 102, 103]


@pytest.mark.parametrize(("batch", "prompt", "budget"), [(1, 5000, 2048), (7, 900, 2048), (128, 1024, 8192), (3, 1, 2)])
def test_every_token_is_computed_once(batch: int, prompt: int, budget: int) -> None:
    steps = run_steps(batch, prompt, 5, budget)
    assert steps.prompt_tokens.sum() == batch * prompt
    assert steps.pairs.sum() == batch * prompt * (prompt + 1) / 2
    assert steps.sequences.sum() == batch * 5
    assert (steps.prompt_tokens <= budget).all()


def test_a_chunked_prefill_lets_early_sequences_decode_beside_it() -> None:
    steps = run_steps(batch=16, prompt=1024, output_tokens=9, budget=8192)
    # Eight prompts fill the first step; they decode in the second, which leaves room for a little less of the others.
    assert steps.prompt_tokens[:3].tolist() == [8192, 8184, 8]
    assert steps.sequences[:4].tolist() == [8, 15, 16, 16]
    # The first eight are done before the last.
    assert steps.sequences[-1] == 1


def test_batches_are_padded_to_recorded_graphs() -> None:
    assert [padded(count) for count in (1, 3, 9, 256, 257, 600)] == [1, 4, 16, 256, 272, 600]
