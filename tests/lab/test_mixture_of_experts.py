"""The arithmetic of a mixture of experts beside a real one: random weights, vLLM's CPU build, no Salt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.mixture_of_experts import MIXTURE, engine, measure

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def installed() -> None:
    try:
        engine()
    except SystemExit as missing:
        pytest.skip(str(missing))
    if not os.access(Path(engine().directory()) / "bin" / "vllm", os.X_OK):
        pytest.skip("the engine's environment belongs to somebody else")


def test_a_mixture_is_as_large_and_works_as_much_as_counted(installed: None, tmp_path: Path) -> None:
    found = measure("mixture", MIXTURE, engine(), tmp_path)
    # Norms of heads included, to the last one.
    assert found.counted_bytes == found.checkpoint_bytes
    assert found.counted_cache_tokens == found.cache_tokens
    # vLLM's own account of what it computes and reads (--enable-mfu-metrics): only the experts that tokens choose.
    assert found.counted_flops == pytest.approx(found.flops, rel=0.1)
    assert found.counted_read_bytes == pytest.approx(found.read_bytes, rel=0.1)
    assert found.counted_read_bytes < found.checkpoint_bytes / 3
