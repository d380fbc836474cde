"""Stalls by the gaps between a client's tokens."""

import numpy as np
import pytest

from bottleneck.diagnosis.observations.client import stalled_share

PACE = [0.1] * 20


def test_a_wait_for_another_requests_prompt_is_a_stall() -> None:
    assert stalled_share([np.array([*PACE, 0.5, *PACE]), np.array(PACE)]) == pytest.approx(0.4 / 6.5)


def test_tokens_that_are_made_in_time_and_sent_late_are_no_stall() -> None:
    """One token is sent 0.3 s late and the next three, made meanwhile, right behind it."""
    assert stalled_share([np.array([*PACE, 0.4, 0.0, 0.0, 0.0, *PACE])]) == pytest.approx(0.0)


def test_what_the_next_tokens_make_up_for_counts_only_once() -> None:
    assert stalled_share([np.array([*PACE, 0.5, 0.0, *PACE, 0.05, *PACE])]) == pytest.approx(0.3 / 6.55)


@pytest.mark.parametrize("answers", [[], [np.empty(0)], [np.zeros(3)]], ids=["no request", "one token", "no time"])
def test_without_gaps_nothing_stalled(answers: list[np.ndarray]) -> None:
    assert stalled_share(answers) == 0.0
