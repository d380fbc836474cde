"""The page that compares engines is made of what was measured, and says with which load, versions and machine."""

from typing import Any

import pytest

from tests.by_file import load


def start(deployment: str, rate: float, seconds: float) -> dict[str, Any]:
    spread = {"median": 0.5, "mean": 0.6, "p99": 0.9}
    headline = {"output_tokens_per_second": rate, "ttft_seconds": spread, "tpot_seconds": spread, "failed": 0}
    versions = {"nodes": {"node0": {"engine": {"vllm": "0.32.0"}}}}
    return {
        "deployment": deployment,
        "day": "2026-11-28",
        "start_seconds": seconds,
        "headline": headline,
        "versions": versions,
    }


def test_the_page_has_medians_over_starts_with_load_versions_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("bench")
    module: Any = load("bench/engine_comparison.py", "engine_comparison")
    machine = {"cpu_model": "Some Processor", "cores": 1}
    document = {
        "load": ["--requests", "16"],
        "ceilings": {"nodes": {"node0": {"machine": machine}, "node1": {"machine": machine}}},
        "measured": [start("tp2", 50.0, 60.0), start("tp2", 70.0, 40.0), start("genai", 300.0, 9.0)],
    }
    text = module.page(document)
    assert "| tp2 | 2 | 0 | 60 | 500 | 500 | 50 to 70 | 50 |\n" in text
    assert "| genai | 1 | 0 | 300 | 500 | 500 | 300 to 300 | 9 |\n" in text
    assert "nodes of 1 core of Some Processor" in text and "vllm 0.32.0" in text and "--requests 16" in text
    with pytest.raises(SystemExit, match="nothing was measured yet"):
        module.page({**document, "measured": []})
