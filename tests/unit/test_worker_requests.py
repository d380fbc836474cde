"""Requests of a head's engine, from its metrics."""

from __future__ import annotations

import pytest

from tests.by_file import load

TEXT = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } b"} 3.0
vllm:num_requests_running{engine="1",model_name="a } b"} 4.0 1700000000000
vllm:num_requests_waiting{engine="0"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 2.0
vllm:num_requests_swapped{engine="0"} 9.0
"""


@pytest.mark.parametrize(
    ("head", "text", "expected"),
    [
        (True, TEXT, {"running": 7.0, "waiting": 2.0}),
        (True, None, {}),
        (True, "vllm:num_requests_running 1\n", {"running": 1.0}),
        (False, TEXT, {}),
    ],
)
def test_requests_are_summed_over_engines(
    monkeypatch: pytest.MonkeyPatch, head: bool, text: str | None, expected: dict[str, float]
) -> None:
    worker = load("_modules/worker.py")
    monkeypatch.setattr(worker, "_get", lambda worker, path: text)
    assert worker.requests({"head": head}) == expected
