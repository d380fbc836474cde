"""The rules: one scorer per class, and the judge that weighs the candidates.

To add a class: an entry in `bottleneck/diagnosis/taxonomy/`, a scorer in one of these modules, its name in `SCORERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from bottleneck.diagnosis.evidence import Candidate, Case
from bottleneck.diagnosis.rules.between import score_link_bandwidth, score_link_latency, score_pipeline_bubble
from bottleneck.diagnosis.rules.front import score_api_server, score_client_limited
from bottleneck.diagnosis.rules.node import (
    score_host_overhead,
    score_memory_capacity,
    score_numa_pcie,
    score_thermal_throttling,
)
from bottleneck.diagnosis.rules.start import score_weight_loading
from bottleneck.diagnosis.rules.straggler import score_straggler
from bottleneck.diagnosis.rules.waiting import score_kv_cache_capacity, score_sequence_limit
from bottleneck.diagnosis.rules.work import score_decode_compute, score_decode_memory_bandwidth, score_prefill_compute

__all__ = ["SCORERS"]

SCORERS: tuple[Callable[[Case], Candidate], ...] = (
    score_prefill_compute,
    score_decode_memory_bandwidth,
    score_decode_compute,
    score_host_overhead,
    score_straggler,
    score_thermal_throttling,
    score_numa_pcie,
    score_link_bandwidth,
    score_link_latency,
    score_pipeline_bubble,
    score_sequence_limit,
    score_kv_cache_capacity,
    score_memory_capacity,
    score_api_server,
    score_client_limited,
    score_weight_loading,
)
