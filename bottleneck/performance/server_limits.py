"""Settings of a server that steps and memory depend on, and what vLLM takes where they are left out."""

from __future__ import annotations

from dataclasses import dataclass

from bottleneck.units import GIB


@dataclass(frozen=True)
class ServerDefaults:
    """Defaults of vLLM's API server for settings that are left out.

    Attributes
    ----------
    batched_tokens : int
        Tokens of one forward pass at most (`max_num_batched_tokens`).
    sequences : int
        Sequences that run at the same time at most (`max_num_seqs`).
    """

    batched_tokens: int
    sequences: int


def server_defaults(memory_bytes: int = 0, name: str = "", *, on_cpu: bool = False, ranks: int = 1) -> ServerDefaults:
    """Return vLLM's defaults, which depend on the machine (`vllm/engine/arg_utils.py`, get_batch_defaults, 0.32).

    Parameters
    ----------
    memory_bytes : int
        Of one accelerator; 0 when it is not known, as vLLM takes it then.
    name : str
        Of the accelerator: an A100 gets the defaults of a small one.
    on_cpu, ranks : bool, int
        Whether the engine runs on the CPU, where the defaults grow with the ranks.
    """
    if on_cpu:
        return ServerDefaults(2048 * ranks, 128 * ranks)
    if memory_bytes >= 160 * GIB:
        return ServerDefaults(16384, 1024)
    if memory_bytes >= 70 * GIB and "a100" not in name.lower():
        return ServerDefaults(8192, 1024)
    return ServerDefaults(2048, 256)


@dataclass(frozen=True)
class Limits:
    """Settings of a server that its memory depends on.

    Attributes
    ----------
    sequence_tokens : int
        Most tokens of one sequence.
    sequences, batched_tokens : int
        Sequences that run at the same time, and tokens of one forward pass, at most.
    cache_bytes, cache_blocks : int or None
        Of one rank's KV cache, where they are set.
    """

    sequence_tokens: int
    sequences: int
    batched_tokens: int
    cache_bytes: int | None = None
    cache_blocks: int | None = None
