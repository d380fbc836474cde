"""Export metrics: a catalogue of metrics, and their values for a state.

Pure: no HTTP, no client library. `_engines/telemetry.py` serves it, `python -m bottleneck.telemetry.exporter` prints
the reference page. vLLM's own metrics are not copied: Prometheus reads them from the head itself.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bottleneck.json_numbers import number
from bottleneck.telemetry.cluster_view import NodeState, State
from bottleneck.telemetry.sample_schema import CORE_FIELDS, LINK_FIELDS

# Labels are bounded by the profile and by the code; a metric with any other label is a mistake.
LABELS = ("node", "link", "core", "card", "resource", "phase", "class", "deployment")
# Names that the sampler gives to cards, and how many a node may have: a node cannot make up more series.
CARD_NAME = re.compile(r"(card|accel|nvidia)\d{1,3}")
MOST_CARDS = 32
# A verdict older than this many windows says nothing about now.
VERDICT_WINDOWS = 5


@dataclass(frozen=True)
class Metric:
    """One metric family; `kind` is `counter` or `gauge`."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


Value = tuple[str, tuple[str, ...], float]

_NODE = ("node",)
_LINK = ("node", "link")
_CORE = ("node", "core")
_CARD = ("node", "card")
_WORKER = ("node", "deployment")
_PLACE = ("deployment", "phase", "node", "link", "resource")
_VERDICT = ("class", "node", "link", "deployment")

METRICS = (
    Metric("cluster_node_up", "gauge", "1 while the node's sampler reports, else 0.", _NODE),
    Metric("cluster_node_last_batch_timestamp_seconds", "gauge", "When the node's last batch came.", _NODE),
    Metric(
        "cluster_node_delay_seconds",
        "gauge",
        "From the end of the newest batch to its arrival: the way, and the difference of the clocks.",
        _NODE,
    ),
    Metric(
        "cluster_node_clock_ahead_seconds",
        "gauge",
        "How far the node's clock is ahead, where that is so far that its times are put right; else 0.",
        _NODE,
    ),
    Metric("cluster_core_busy_seconds_total", "counter", "Time a core did work, of any kind.", _CORE),
    Metric("cluster_core_system_seconds_total", "counter", "Part of it inside the kernel.", _CORE),
    Metric("cluster_core_iowait_seconds_total", "counter", "Time a core was idle while a disk was waited for.", _CORE),
    Metric("cluster_core_steal_seconds_total", "counter", "Time the hypervisor gave a core to others.", _CORE),
    Metric(
        "cluster_pressure_some_seconds_total",
        "counter",
        "Time in which at least one task stood still for lack of cpu, memory or io.",
        ("node", "resource"),
    ),
    Metric(
        "cluster_pressure_full_seconds_total",
        "counter",
        "Time in which every task stood still for lack of cpu, memory or io.",
        ("node", "resource"),
    ),
    Metric("cluster_node_memory_total_bytes", "gauge", "Main memory.", _NODE),
    Metric("cluster_node_memory_available_bytes", "gauge", "Main memory that can be had without swapping.", _NODE),
    Metric("cluster_node_disk_read_bytes_total", "counter", "Read from whole disks.", _NODE),
    Metric("cluster_node_disk_written_bytes_total", "counter", "Written to whole disks.", _NODE),
    Metric("cluster_node_memory_read_bytes_total", "counter", "Read by the memory controllers, where counted.", _NODE),
    Metric(
        "cluster_node_memory_written_bytes_total", "counter", "Written by the memory controllers, where counted.", _NODE
    ),
    Metric("cluster_node_throttled_seconds_total", "counter", "Time that the node's CPU quota took from it.", _NODE),
    Metric("cluster_node_quota_cores", "gauge", "Cores the quota allows; absent without one.", _NODE),
    Metric("cluster_link_receive_bytes_total", "counter", "Received over a node's end of a link.", _LINK),
    Metric("cluster_link_transmit_bytes_total", "counter", "Sent over a node's end of a link.", _LINK),
    Metric("cluster_link_receive_packets_total", "counter", "Packets received.", _LINK),
    Metric("cluster_link_transmit_packets_total", "counter", "Packets sent.", _LINK),
    Metric("cluster_link_receive_errors_total", "counter", "Packets received broken.", _LINK),
    Metric("cluster_link_transmit_errors_total", "counter", "Packets that could not be sent.", _LINK),
    Metric("cluster_link_receive_dropped_total", "counter", "Received packets dropped for lack of room.", _LINK),
    Metric("cluster_link_transmit_dropped_total", "counter", "Packets dropped before they were sent.", _LINK),
    Metric(
        "cluster_link_capacity_bytes_per_second", "gauge", "What the link can carry one way, by the profile.", _LINK
    ),
    Metric("cluster_worker_cpu_seconds_total", "counter", "CPU time of a worker's processes.", _WORKER),
    Metric(
        "cluster_worker_run_delay_seconds_total",
        "counter",
        "Time a worker's threads could run but had no core, summed over its threads.",
        _WORKER,
    ),
    Metric(
        "cluster_worker_storage_read_bytes_total",
        "counter",
        "Read from storage, not from the page cache, by a worker's processes.",
        _WORKER,
    ),
    Metric(
        "cluster_worker_storage_wait_seconds_total",
        "counter",
        "Time in which a process of a worker waited for what it read.",
        _WORKER,
    ),
    Metric("cluster_worker_resident_memory_bytes", "gauge", "Resident memory of a worker's processes.", _WORKER),
    Metric("cluster_worker_processes", "gauge", "Processes of a worker.", _WORKER),
    Metric("cluster_worker_exits_total", "counter", "Processes of workers that were seen to end.", _NODE),
    Metric("cluster_accelerator_busy_ratio", "gauge", "Share of time in which the card computed, 0 to 1.", _CARD),
    Metric(
        "cluster_accelerator_memory_busy_ratio",
        "gauge",
        "Share of time in which the card's memory was read or written, 0 to 1.",
        _CARD,
    ),
    Metric("cluster_accelerator_idle_seconds_total", "counter", "Time in which the card slept.", _CARD),
    Metric("cluster_accelerator_frequency_hertz", "gauge", "Clock of the card's cores.", _CARD),
    Metric("cluster_accelerator_frequency_limit_hertz", "gauge", "The most that clock can be.", _CARD),
    Metric("cluster_accelerator_memory_frequency_hertz", "gauge", "Clock of the card's memory.", _CARD),
    Metric("cluster_accelerator_energy_joules_total", "counter", "Energy the card has used.", _CARD),
    Metric("cluster_accelerator_power_watts", "gauge", "Power the card draws, where it tells it.", _CARD),
    Metric("cluster_accelerator_power_limit_watts", "gauge", "The most power it may draw.", _CARD),
    Metric("cluster_accelerator_temperature_celsius", "gauge", "Temperature of the card.", _CARD),
    Metric("cluster_accelerator_memory_temperature_celsius", "gauge", "Temperature of its memory.", _CARD),
    Metric("cluster_accelerator_power_throttled", "gauge", "1 while a limit of power lowers its clock, else 0.", _CARD),
    Metric("cluster_accelerator_heat_throttled", "gauge", "1 while heat lowers its clock, else 0.", _CARD),
    Metric("cluster_accelerator_memory_used_bytes", "gauge", "Memory of the card in use.", _CARD),
    Metric("cluster_accelerator_memory_total_bytes", "gauge", "Memory of the card.", _CARD),
    Metric("cluster_accelerator_bus_bytes_per_second", "gauge", "Rate of the card's PCIe link now.", _CARD),
    Metric("cluster_accelerator_bus_limit_bytes_per_second", "gauge", "The most that rate could be.", _CARD),
    Metric("cluster_sampler_cpu_seconds_total", "counter", "CPU time of the node's sampler.", _NODE),
    Metric("cluster_sampler_batches_stored_total", "counter", "Batches of the node that were stored.", _NODE),
    Metric(
        "cluster_sampler_batches_repeated_total", "counter", "Batches that came again after they were stored.", _NODE
    ),
    Metric(
        "cluster_sampler_batches_dropped_total",
        "counter",
        "Batches the sampler gave up because its spool was full.",
        _NODE,
    ),
    Metric("cluster_sampler_batches_waiting", "gauge", "Batches that wait to be acknowledged.", _NODE),
    Metric(
        "cluster_sampler_ticks_late_total", "counter", "Samples that were not taken because the node was late.", _NODE
    ),
    Metric(
        "cluster_collector_batches_rejected_total",
        "counter",
        "Batches refused: malformed, too large, of another's node, or of a time that cannot be.",
    ),
    Metric("cluster_answers_refused_total", "counter", "Answers in the node's name without its seal.", _NODE),
    Metric(
        "cluster_collector_failures_total",
        "counter",
        "Errors in taking batches or closing windows that were caught; each is in the log with its traceback.",
    ),
    Metric(
        "cluster_collector_store_refusals_total",
        "counter",
        "Times the store took nothing (a full disk, a lock): the nodes keep their batches and send them again.",
    ),
    Metric(
        "cluster_pending_keys_dropped_total", "counter", "Keys of strangers that were too many or too large to keep."
    ),
    Metric("cluster_collector_windows_total", "counter", "Windows closed and handed to the analysis."),
    Metric("cluster_collector_cpu_seconds_total", "counter", "CPU time of the process that takes the batches."),
    Metric(
        "cluster_verdict_confidence_ratio",
        "gauge",
        "Confidence of the newest window's verdict, 0 to 1; only the class it names is there.",
        _VERDICT,
    ),
    Metric(
        "cluster_verdict_gain_seconds",
        "gauge",
        "What an output token would take less without the bottleneck.",
        _VERDICT,
    ),
    Metric("cluster_verdict_window_end_timestamp_seconds", "gauge", "End of the window the newest verdict is about."),
    Metric(
        "cluster_ledger_output_token_seconds",
        "gauge",
        "Where the time of an output token went in the newest window; all parts add up to the whole.",
        _PLACE,
    ),
)

_EXPORTED_CORE_FIELDS = ("busy", "system", "iowait", "steal")
# metric, where it is in the node's newest sample
_SAMPLE_METRICS = (
    ("cluster_node_memory_total_bytes", ("mem", "total")),
    ("cluster_node_memory_available_bytes", ("mem", "available")),
    ("cluster_node_disk_read_bytes_total", ("disk", "read_bytes")),
    ("cluster_node_disk_written_bytes_total", ("disk", "write_bytes")),
    ("cluster_node_memory_read_bytes_total", ("membw", "read_bytes")),
    ("cluster_node_memory_written_bytes_total", ("membw", "write_bytes")),
    ("cluster_node_throttled_seconds_total", ("cgroup", "throttled_s")),
    ("cluster_node_quota_cores", ("cgroup", "quota_cores")),
)


_OF_A_CARD = "cluster_accelerator_"
# Where a card's metric is in its part of the newest sample, when not under the metric's own name.
_CARD_KEYS = {"idle_seconds_total": "idle_s", "energy_joules_total": "energy_joules"}
_CARD_METRICS = tuple(
    (metric.name, _CARD_KEYS.get(short, short))
    for metric in METRICS
    if (short := metric.name.removeprefix(_OF_A_CARD)) != metric.name
)


def values(
    state: State,
    latest: Mapping[str, Any] | None,
    now: float,
    cpu_seconds: float,
    store_refusals: int = 0,
    keys_dropped: int = 0,
) -> Iterator[Value]:
    """Return (metric, label values, value) of everything known.

    Parameters
    ----------
    state : State
        State of the cluster.
    latest : mapping or None
        `{"window", "verdict"}` as `Store.latest_verdict` gives it.
    now : float
        Unix seconds by the control node's clock.
    cpu_seconds : float
        CPU time of the exporting process.
    store_refusals : int
        How often the store took nothing.
    keys_dropped : int
        Keys of strangers that the master's key store did not keep.
    """
    yield "cluster_collector_batches_rejected_total", (), float(state.rejected)
    yield "cluster_pending_keys_dropped_total", (), float(keys_dropped)
    yield "cluster_collector_store_refusals_total", (), float(store_refusals)
    yield "cluster_collector_failures_total", (), float(state.failures)
    yield "cluster_collector_windows_total", (), float(state.windows)
    yield "cluster_collector_cpu_seconds_total", (), cpu_seconds
    for name, node in sorted(state.nodes.items()):
        for found in _node(name, node, state.settings.capacities.get(name, {})):
            if math.isfinite(found[2]):
                yield found
    if latest:
        yield from _verdict(latest, now, state.settings.window_seconds)


def _part(sample: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = sample.get(key)
    return part if isinstance(part, Mapping) else {}


def _item(row: object, index: int) -> float:
    return number(row[index]) if isinstance(row, list) and len(row) > index else math.nan


def _node(name: str, node: NodeState, capacities: Mapping[str, float]) -> Iterator[Value]:
    yield "cluster_node_up", (name,), float(bool(node.up))
    for link, capacity in capacities.items():
        yield "cluster_link_capacity_bytes_per_second", (name, link), capacity
    if not node.sample:
        return
    yield "cluster_node_last_batch_timestamp_seconds", (name,), node.last_batch
    yield "cluster_node_delay_seconds", (name,), node.delay_seconds
    yield "cluster_node_clock_ahead_seconds", (name,), node.clock_ahead
    yield "cluster_sampler_batches_stored_total", (name,), float(node.stored)
    yield "cluster_sampler_batches_repeated_total", (name,), float(node.repeated)
    yield "cluster_worker_exits_total", (name,), float(node.exits)
    for metric, key in (
        ("cluster_sampler_cpu_seconds_total", "cpu_s"),
        ("cluster_sampler_batches_dropped_total", "dropped"),
        ("cluster_sampler_batches_waiting", "waiting"),
        ("cluster_sampler_ticks_late_total", "late"),
    ):
        yield metric, (name,), number(node.sampler.get(key))
    for metric, (part, key) in _SAMPLE_METRICS:
        yield metric, (name,), number(_part(node.sample, part).get(key))
    for core, row in _part(node.sample, "cpu").items():
        for quantity in _EXPORTED_CORE_FIELDS:
            value = _item(row, CORE_FIELDS.index(quantity))
            yield f"cluster_core_{quantity}_seconds_total", (name, str(core)), value
    for resource, row in _part(node.sample, "psi").items():
        for index, kind in enumerate(("some", "full")):
            yield f"cluster_pressure_{kind}_seconds_total", (name, str(resource)), _item(row, index)
    for link, row in _part(node.sample, "links").items():
        if link in capacities:  # the node cannot make up links
            for index, quantity in enumerate(LINK_FIELDS):
                yield f"cluster_link_{quantity}_total", (name, link), _item(row, index)
    cards = {
        str(card): row for card, row in _part(node.sample, "accelerator").items() if CARD_NAME.fullmatch(str(card))
    }
    for card in sorted(cards)[:MOST_CARDS]:
        for metric, key in _CARD_METRICS:
            yield metric, (name, card), number(_part(cards, card).get(key))
    yield from _workers(name, _part(node.sample, "workers"))


def _workers(name: str, workers: Mapping[str, Any]) -> Iterator[Value]:
    for worker, row in workers.items():
        if isinstance(row, Mapping):
            # A worker is named after its deployment and replica, and a node runs one of them.
            labels = (name, str(worker).rpartition("-")[0] or str(worker))
            used = number(row.get("cpu_user_s")) + number(row.get("cpu_system_s"))
            yield "cluster_worker_cpu_seconds_total", labels, used
            yield "cluster_worker_run_delay_seconds_total", labels, number(row.get("run_delay_s"))
            yield "cluster_worker_storage_read_bytes_total", labels, number(row.get("storage_read_bytes"))
            yield "cluster_worker_storage_wait_seconds_total", labels, number(row.get("storage_wait_s"))
            yield "cluster_worker_resident_memory_bytes", labels, number(row.get("rss_bytes"))
            yield "cluster_worker_processes", labels, number(row.get("processes"))


def _verdict(latest: Mapping[str, Any], now: float, width: float) -> Iterator[Value]:
    window, verdict = _part(latest, "window"), _part(latest, "verdict")
    end = number(window.get("end"))
    if not math.isfinite(end) or now - end > VERDICT_WINDOWS * width:
        return
    deployment = str(window.get("deployment") or "")
    where = _part(verdict, "where")
    labels = (str(verdict.get("class", "")), where.get("node") or "", where.get("link") or "", deployment)
    yield "cluster_verdict_window_end_timestamp_seconds", (), end
    yield "cluster_verdict_confidence_ratio", labels, number(verdict.get("confidence"))
    gain = number(_part(verdict, "gain").get("seconds_per_output_token"))
    if math.isfinite(gain):
        yield "cluster_verdict_gain_seconds", labels, gain
    parts: dict[tuple[str, ...], float] = {}
    for entry in _part(verdict, "ledger").get("entries") or []:
        place: tuple[str, ...] = (
            deployment,
            str(entry.get("phase") or ""),
            str(entry.get("node") or ""),
            str(entry.get("link") or ""),
            str(entry.get("resource") or ""),
        )
        parts[place] = parts.get(place, 0.0) + number(entry.get("seconds"))
    for place, seconds in parts.items():
        yield "cluster_ledger_output_token_seconds", place, seconds


def reference(metrics: tuple[Metric, ...] = METRICS) -> str:
    """Return the reference page of the exporter's metrics.

    Parameters
    ----------
    metrics : tuple[Metric, ...]
        Metrics in the order of the page's rows.

    Returns
    -------
    str
        Markdown.
    """
    lines = [
        "# Metrics",
        "",
        "What the exporter on the control node tells Prometheus. Made by `python -m bottleneck.telemetry.exporter`;",
        "a test holds it against the exporter's own registry. The engine's metrics (`vllm:...`) are scraped from the",
        "head itself and described by vLLM.",
        "",
        "Units are in the names: `_seconds`, `_bytes`, `_ratio` (0 to 1); `_total` counts up and starts again at zero",
        "when its source does.",
        "",
        "| Metric | Type | Labels | Meaning |",
        "|---|---|---|---|",
    ]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


def main(write: Callable[[str], object] = sys.stdout.write) -> None:
    """Print the reference page.

    Parameters
    ----------
    write : Callable[[str], object]
        Takes the page, such as the write method of an open file.
    """
    write(reference())


if __name__ == "__main__":
    main()
