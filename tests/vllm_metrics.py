"""vLLM's metrics as its exposition text has them, for what makes up runs and scenarios."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

INTER_TOKEN_BOUNDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    math.inf,
)


def series_name(name: str, model: str, **labels: str) -> str:
    """Return a series as the text writes it: labels in the order of their names."""
    found = sorted({"engine": "0", "model_name": model, **labels}.items())
    inside = ",".join(f'{label}="{value}"' for label, value in found)
    return f"vllm:{name}{{{inside}}}"


def series(numbers: Mapping[str, float], model: str) -> dict[str, float]:
    """Return numbers by the name of their series."""
    return {series_name(name, model): float(value) for name, value in numbers.items()}


def inter_token_buckets(gaps_seconds: Iterable[float], model: str) -> dict[str, float]:
    """Return the buckets of the gaps between tokens, each with all that is below it."""
    counts = np.searchsorted(np.sort(np.fromiter(gaps_seconds, float)), INTER_TOKEN_BOUNDS, side="right")
    texts = ["+Inf" if bound == math.inf else str(bound) for bound in INTER_TOKEN_BOUNDS]
    keys = [series_name("inter_token_latency_seconds_bucket", model, le=text) for text in texts]
    return dict(zip(keys, counts.astype(float).tolist(), strict=True))


def exposition(metrics: Mapping[str, float]) -> str:
    """Return series as text, one a line."""
    return "".join(f"{key} {value!r}\n" for key, value in metrics.items())
