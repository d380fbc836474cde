"""Names of an engine's metrics: what the analysis calls them, from what engines, versions and exporters call them.

The analysis has vLLM's names. vLLM has renamed some families; Ray's exporter puts its own prefix before a name, writes
`_` for `:`, and may leave the ending of a counter out; another engine has a dialect, which is a table here. A family is
read under any of its names, and once: where a text has the present name too, that one counts. What a dialect lacks is
missing.

The sampler of every node has this very file beside it (`salt/sampler/files` links to it), so it imports the standard
library alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final

PREFIX: Final = "vllm:"
# Requests that an engine has, and what tells that it makes something of them: sums that grow with every token, and with
# every step, since one with a part of a long prompt makes no token.
REQUESTS: Final = (f"{PREFIX}num_requests_running", f"{PREFIX}num_requests_waiting")
WORK: Final = (
    *(f"{PREFIX}prompt_tokens_total", f"{PREFIX}generation_tokens_total"),
    f"{PREFIX}iteration_tokens_total_count",
)

# Families that something here reads, by the present name, without `vllm:` and the ending of a counter.
_COUNTERS: Final = frozenset(
    {
        "num_preemptions",
        "prompt_tokens",
        "prompt_tokens_cached",
        "generation_tokens",
        "request_success",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "estimated_flops_per_gpu",
        "estimated_read_bytes_per_gpu",
        "estimated_write_bytes_per_gpu",
    }
)
_GAUGES: Final = frozenset(
    {
        "num_requests_running",
        "num_requests_waiting",
        "num_requests_waiting_by_reason",
        "kv_cache_usage_perc",
        "cache_config_info",
    }
)
_HISTOGRAMS: Final = frozenset(
    {
        "iteration_tokens_total",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_time_per_output_token_seconds",
        "request_inference_time_seconds",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
    }
)
# What vLLM called a family before: until 0.9 (the cache, V0's prefix cache) and until 0.11 (the gap between tokens).
_RENAMED: Final = {
    "gpu_cache_usage_perc": "kv_cache_usage_perc",
    "gpu_prefix_cache_queries": "prefix_cache_queries",
    "gpu_prefix_cache_hits": "prefix_cache_hits",
    "time_per_output_token_seconds": "inter_token_latency_seconds",
}


def _histograms(families: dict[str, str]) -> dict[str, str]:
    """Return the samples of histograms: their name in a dialect -> what it is called here."""
    ends = ("_bucket", "_sum", "_count", "_created")
    return {theirs + end: ours + end for theirs, ours in families.items() for end in ends}


# An engine's dialect: its prefix, and what each of its names is called here. The dialect's name is what the engine's
# interface says (`metrics.dialect`); an engine without metrics has the dialect `none`.
DIALECTS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "vllm": (PREFIX, {}),
    # llama.cpp's server (0.7.0, tools/server/server-context.cpp): the times and tokens of a request are added when its
    # prompt is done and when it ends; a step is one call of llama_decode. It counts no requests, no waiting time, and
    # has no histograms.
    "llamacpp": (
        "llamacpp:",
        {
            "requests_processing": "num_requests_running",
            "requests_deferred": "num_requests_waiting",
            "prompt_tokens_total": "prompt_tokens_total",
            "prompt_seconds_total": "request_prefill_time_seconds_sum",
            "tokens_predicted_total": "generation_tokens_total",
            "tokens_predicted_seconds_total": "request_decode_time_seconds_sum",
            "n_decode_total": "iteration_tokens_total_count",
        },
    ),
    # This project's server for OpenVINO GenAI (salt/engine/files/genai_server/metrics.py). The process that answers
    # requests is not the one that steps, as in vLLM. It knows of no preemptions and not what a step computed.
    "genai": (
        "genai_",
        {
            "requests_running": "num_requests_running",
            "requests_waiting": "num_requests_waiting",
            "cache_usage_ratio": "kv_cache_usage_perc",
            "cache_config_info": "cache_config_info",
            "prompt_tokens_total": "prompt_tokens_total",
            "generation_tokens_total": "generation_tokens_total",
            "requests_finished_total": "request_success_total",
            "steps_total": "iteration_tokens_total_count",
            **_histograms(
                {
                    "request_prompt_tokens": "request_prompt_tokens",
                    "request_generation_tokens": "request_generation_tokens",
                    "time_to_first_token_seconds": "time_to_first_token_seconds",
                    "inter_token_latency_seconds": "inter_token_latency_seconds",
                    "request_latency_seconds": "e2e_request_latency_seconds",
                    "request_queue_seconds": "request_queue_time_seconds",
                    "request_prefill_seconds": "request_prefill_time_seconds",
                    "request_decode_seconds": "request_decode_time_seconds",
                }
            ),
        },
    ),
    "none": ("", {}),
}
_TRANSLATED: Final = {
    prefix + theirs: PREFIX + ours for prefix, table in DIALECTS.values() for theirs, ours in table.items()
} | {"genai_api_server_cpu_seconds_total": "process_cpu_seconds_total"}
# How the lines begin that may hold an engine's metrics.
PREFIXES: Final = tuple(prefix for prefix, _ in DIALECTS.values() if prefix)
# Gauges that are shares of one engine's own resource: of several engines the fullest counts.
SHARES: Final = frozenset({PREFIX + "kv_cache_usage_perc"})
# How other servers' metrics begin, for a text that holds none of vLLM's.
_OTHER_SERVERS: Final = {
    "sglang:": "SGLang",
    "tgi_": "Text Generation Inference",
    "nv_inference_": "Triton Inference Server",
    "trtllm_": "TensorRT-LLM",
    "ovms_": "OpenVINO Model Server",
    "lmdeploy:": "LMDeploy",
}
_OTHER_NAME: Final = re.compile(r"(?:ray_)?vllm[_:](?P<rest>\w+)$")
_ENDINGS: Final = ("_total", "_bucket", "_sum", "_count", "_created")


@lru_cache(maxsize=4096)
def present_name(name: str) -> str:
    """Return what a sample is called here; a name that is no other name of a known family stays as it is.

    Parameters
    ----------
    name : str
        Name of a sample without its labels, of vLLM (any version) or of another server.
    """
    if name in _TRANSLATED:
        return _TRANSLATED[name]
    found = _OTHER_NAME.match(name)
    if found is None:
        return name
    rest = found["rest"]
    family, ending = rest, ""
    if rest not in _HISTOGRAMS:
        for each in _ENDINGS:
            if rest.endswith(each):
                family, ending = rest.removesuffix(each), each
                break
    family = _RENAMED.get(family, family)
    if family in _COUNTERS:
        return f"{PREFIX}{family}{ending or '_total'}"
    if family in _GAUGES | _HISTOGRAMS:
        return f"{PREFIX}{family}{ending}"
    return name


def is_engine_sample(line: str) -> bool:
    """Return whether a line of a text, or a key of a flat reading, is an engine's sample under any of its names.

    Parameters
    ----------
    line : str
        Line of exposition text, or a sample's key: a name, with or without labels.
    """
    return present_name(line.partition("{")[0].partition(" ")[0]).startswith(PREFIX)


def read_once(names: Collection[str]) -> dict[str, str | None]:
    """Return {other name: present name} of the names of one text; None for one that is there under both.

    Parameters
    ----------
    names : Collection[str]
        Names of one text, without labels.

    Returns
    -------
    dict[str, str or None]
        Of names that are the present ones already there is no entry.
    """
    changed = {name: present for name in names if (present := present_name(name)) != name}
    taken = set(names)
    found: dict[str, str | None] = {}
    for name, present in sorted(changed.items()):
        found[name] = None if present in taken else present
        taken.add(present)
    return found


def other_server(names: Iterable[str]) -> str | None:
    """Return the server that a text without a metric of vLLM is from, as far as its names show.

    Parameters
    ----------
    names : Iterable[str]
        Names of one text, without labels.

    Returns
    -------
    str or None
        Name of a server such as SGLang; None for names that are known of none.
    """
    for name in names:
        for prefix, server in _OTHER_SERVERS.items():
            if name.startswith(prefix):
                return server
    return None
