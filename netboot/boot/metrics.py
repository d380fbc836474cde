"""The record for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from netboot.boot import progress_report
from netboot.boot.state import State

CONTENT_TYPE = CONTENT_TYPE_LATEST

# name, help, labels
GAUGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("cluster_boot_stage_seconds", "How long a stage of the node's newest boot took.", ("node", "stage")),
    ("cluster_boot_stage_timestamp_seconds", "When the node's newest boot reached a stage.", ("node", "stage")),
    (
        "cluster_boot_attributed_ratio",
        "Share of the newest boot's time that is attributed to one stage, 0 to 1.",
        ("node",),
    ),
    ("cluster_boot_stuck", "1 while a stage of the node is past its deadline.", ("node", "stage")),
    ("cluster_boot_unknown_machines", "Machines that asked to boot and are no node.", ()),
    ("cluster_boot_refusals", "Requests that were refused, among those that are remembered.", ("what", "reason")),
)


class _Collector(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def families(state: State, now: float, limits: Mapping[str, float]) -> list[Metric]:
    """Return the metric families of the record."""
    found = {name: GaugeMetricFamily(name, text, labels=labels) for name, text, labels in GAUGES}
    for name, node in state.nodes.items():
        late = progress_report.stuck(name, node, now, limits)
        if late:
            found["cluster_boot_stuck"].add_metric((name, late.stage), 1.0)
        if node.boot is None:
            continue
        spans = progress_report.trace(node.boot)
        for span in spans:
            found["cluster_boot_stage_seconds"].add_metric((name, span.stage), span.seconds)
            found["cluster_boot_stage_timestamp_seconds"].add_metric((name, span.stage), span.end)
        found["cluster_boot_attributed_ratio"].add_metric((name,), progress_report.attributed_ratio(spans))
    found["cluster_boot_unknown_machines"].add_metric((), float(len(state.unknown)))
    refusals: dict[tuple[str, str], int] = {}
    for refusal in state.refusals:
        key = (refusal.what, refusal.reason)
        refusals[key] = refusals.get(key, 0) + refusal.count
    for key, count in refusals.items():
        found["cluster_boot_refusals"].add_metric(key, float(count))
    return list(found.values())


def exposition(state: State, now: float, limits: Mapping[str, float]) -> bytes:
    """Return the record in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(families(state, now, limits)))
    return generate_latest(registry)
