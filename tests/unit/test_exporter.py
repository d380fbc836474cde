"""The exporter: what the catalogue promises is what the registry gives; no port is opened, no process started."""

import itertools
import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import prometheus_client
import pytest
import salt._logging

from bottleneck.profile import load_profile
from bottleneck.telemetry import cluster_state, cluster_view, exporter, sample_schema
from bottleneck.telemetry.store import Store
from tests import run_builder, sealing
from tests.by_file import load

REPOSITORY = Path(__file__).parents[2]
SHAPE = run_builder.Shape()


def load_engine() -> ModuleType:
    """Load the engine as Salt does, without Salt."""
    module = load("_engines/telemetry.py", "telemetry_engine")
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    return module


class Clock:
    now = run_builder.STARTED

    def __call__(self) -> float:
        return self.now


class Bus:
    def __init__(self) -> None:
        self.fired: list[tuple[str, dict[str, Any]]] = []

    def fire_event(self, data: dict[str, Any], tag: str) -> None:
        self.fired.append((tag, data))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.db") as opened:
        yield opened


@pytest.fixture
def collector(store: Store, clock: Clock) -> Any:
    profile = load_profile(run_builder.PROFILE)
    made = load_engine().Collector({"cluster_directory": store.path.parent}, profile, store, clock, clock)
    made._bus = Bus()
    return made


def batches() -> list[dict[str, Any]]:
    return run_builder.batches(SHAPE, "m", random.Random(1))


def send(collector: Any, clock: Clock, found: list[dict[str, Any]]) -> None:
    for batch in found:
        clock.now = batch["t1"] + 0.02
        node = batch["node"]
        data = sealing.event(collector._store.path.parent, node, [batch])
        collector.take(f"cluster/telemetry/batch/{node}", data)


def scrape(collector: Any) -> dict[str, list[tuple[dict[str, str], float]]]:
    registry = prometheus_client.CollectorRegistry()
    registry.register(collector)
    text = prometheus_client.generate_latest(registry).decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(found: dict[str, list[tuple[dict[str, str], float]]], name: str, **labels: str) -> float:
    matching = [number for seen, number in found[name] if labels.items() <= seen.items()]
    assert len(matching) == 1, f"{name}{labels}: {found[name]}"
    return matching[0]


# -- the catalogue


def test_names_follow_the_conventions() -> None:
    names = [metric.name for metric in exporter.METRICS]
    assert len(names) == len(set(names))
    for metric in exporter.METRICS:
        assert re.fullmatch(r"cluster_[a-z_]+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert not metric.name.endswith(("_count", "_sum", "_bucket", "_milliseconds", "_percent"))
        assert set(metric.labels) <= set(exporter.LABELS)
        assert metric.help.endswith(".")


def test_the_reference_page_is_what_the_registry_has(collector: Any) -> None:
    page = (REPOSITORY / "doc" / "reference" / "metrics.md").read_text()
    assert page == exporter.reference(), (
        "write it again: python -m bottleneck.telemetry.exporter > doc/reference/metrics.md"
    )
    for family in collector.describe():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"| `{name}` | {family.type} |" in page
    assert len(list(collector.describe())) == page.count("| `cluster_")


# -- values


def test_what_the_samplers_counted_is_exported(collector: Any, clock: Clock) -> None:
    found = batches()
    found[-1]["samples"][-1]["workers"]["tp2-0"] |= {"storage_read_bytes": 7e6, "storage_wait_s": 0.5}
    send(collector, clock, found)
    newest = {batch["node"]: batch["samples"][-1] for batch in found}
    seen = scrape(collector)
    for node in run_builder.NODES:
        assert value(seen, "cluster_node_up", node=node) == 1.0
        row = newest[node]["links"]["direct"]
        assert value(seen, "cluster_link_receive_bytes_total", node=node, link="direct") == row[0]
        assert value(seen, "cluster_link_transmit_bytes_total", node=node, link="direct") == row[1]
        assert value(seen, "cluster_core_busy_seconds_total", node=node, core="0") == newest[node]["cpu"]["0"][0]
        assert value(seen, "cluster_link_capacity_bytes_per_second", node=node, link="direct") == 1e9
        worker = newest[node]["workers"]["tp2-0"]
        used = worker["cpu_user_s"] + worker["cpu_system_s"]
        assert value(seen, "cluster_worker_cpu_seconds_total", node=node, deployment="tp2") == pytest.approx(used)
        assert value(seen, "cluster_worker_processes", node=node, deployment="tp2") == 4
        assert value(seen, "cluster_sampler_batches_stored_total", node=node) == len(found) / 2
    assert value(seen, "cluster_node_delay_seconds", node="node0") == pytest.approx(0.02)
    reader = found[-1]["node"]
    assert value(seen, "cluster_worker_storage_wait_seconds_total", node=reader, deployment="tp2") == 0.5
    assert value(seen, "cluster_worker_storage_read_bytes_total", node=reader, deployment="tp2") == 7e6
    assert len(seen["cluster_worker_storage_read_bytes_total"]) == 1, "where it was not reported there is none"
    assert "cluster_node_quota_cores" not in seen  # no quota: nothing is made up


def test_accelerators_are_exported_and_a_node_cannot_make_up_names_for_them(collector: Any, clock: Clock) -> None:
    found = batches()
    row = {"driver": "xe", "energy_joules": 7.0, "heat_throttled": 1, "throttle_reasons": "thermal", "idle_s": 2.0}
    found[-1]["samples"][-1]["accelerator"] = {"card0": row, "card0{evil}": row}
    send(collector, clock, found)
    seen, node = scrape(collector), found[-1]["node"]
    assert value(seen, "cluster_accelerator_energy_joules_total", node=node, card="card0") == 7.0
    assert value(seen, "cluster_accelerator_idle_seconds_total", node=node, card="card0") == 2.0
    assert value(seen, "cluster_accelerator_heat_throttled", node=node, card="card0") == 1.0
    assert not seen.get("cluster_accelerator_power_watts"), "what the card does not tell is absent"
    assert {labels["card"] for labels, _ in seen["cluster_accelerator_heat_throttled"]} == {"card0"}


def test_every_part_of_an_accelerator_that_is_a_number_has_a_metric() -> None:
    (part,) = (part for part in sample_schema.PARTS if part.key == "accelerator")
    keys = {key for _, key in exporter._CARD_METRICS}
    # A name, a text, and what an integrated card borrows of main memory, which `mem` counts already.
    assert set(part.fields) - keys == {"driver", "throttle_reasons", "shared_memory_used_bytes"}
    assert keys < set(part.fields)


def test_labels_come_from_the_profile_only(collector: Any, clock: Clock) -> None:
    found = batches()[:1]
    found[0]["samples"][-1]["links"]["made-up"] = [1] * 8
    send(collector, clock, found)
    links = {labels["link"] for labels, _ in scrape(collector)["cluster_link_receive_bytes_total"]}
    assert links == {"direct", "ethernet"}


def test_the_ledger_and_the_verdict_of_the_newest_window(collector: Any, clock: Clock, store: Store) -> None:
    verdict = run_builder.verdict(SHAPE)
    window = {"window": "1", "start": clock.now - 12, "end": clock.now - 2, "deployment": "tp2"}
    store.put_verdict(window, verdict)
    seen = scrape(collector)
    parts = [number for _, number in seen["cluster_ledger_output_token_seconds"]]
    assert math.fsum(parts) == pytest.approx(math.fsum(entry["seconds"] for entry in verdict["ledger"]["entries"]))
    assert value(seen, "cluster_verdict_confidence_ratio", **{"class": verdict["class"]}) == verdict["confidence"]
    assert {labels["deployment"] for labels, _ in seen["cluster_ledger_output_token_seconds"]} == {"tp2"}


def test_an_old_verdict_is_not_exported_as_if_it_were_of_now(collector: Any, clock: Clock, store: Store) -> None:
    window = {"window": "1", "start": clock.now - 120, "end": clock.now - 110}
    store.put_verdict(window, run_builder.verdict(SHAPE))
    assert "cluster_ledger_output_token_seconds" not in scrape(collector)


def test_what_is_no_number_is_left_out(collector: Any, clock: Clock) -> None:
    found = batches()[:1]
    found[0]["samples"][-1]["cpu"] = {"0": [None]}
    found[0]["sampler"] = {"cpu_s": None}
    send(collector, clock, found)
    assert "cluster_core_busy_seconds_total" not in scrape(collector)


# -- taking batches


def test_each_batch_is_stored_once(collector: Any, clock: Clock, store: Store) -> None:
    found = batches()[:20]
    send(collector, clock, found + found[:5])
    assert len(store.batches(0.0, math.inf)) == 20
    seen = scrape(collector)
    assert sum(number for _, number in seen["cluster_sampler_batches_repeated_total"]) == 5


@pytest.mark.parametrize(
    ("tag", "data"),
    [
        ("cluster/telemetry/batch/node0", None),
        ("cluster/telemetry/batch/node0", {"id": "node1"}),
        ("cluster/telemetry/batch/node0", {"id": "node0", "data": {"node": "node0"}}),
        ("cluster/telemetry/batch/node0", {"id": "node0", "data": {"batches": [{"node": "node0"}]}}),
        ("cluster/telemetry/batch/node0", {"id": "node0", "data": {"text": "[]"}}),
        ("cluster/telemetry/batch/node0", {"id": "node0", "data": {"text": "[]", "seal": "0" * 64}}),
        ("cluster/telemetry/batch/node0", {"id": "node0", "data": {"text": ["[]"], "seal": b"0"}}),
        ("cluster/telemetry/batch/node9", {"id": "node9", "data": {"text": "[]", "seal": "0" * 64}}),
    ],
)
def test_a_batch_of_another_is_refused(collector: Any, store: Store, tag: str, data: Any) -> None:
    collector.take(tag, data)
    assert store.batches(0.0, math.inf) == []
    assert value(scrape(collector), "cluster_collector_batches_rejected_total") == 1


def test_tag_and_node_must_agree(collector: Any, store: Store) -> None:
    batch = batches()[0]
    assert batch["node"] == "node0"
    sealed = sealing.event(store.path.parent, "node0", [batch])
    collector.take("cluster/telemetry/batch/node1", sealed)
    # Node1 says it of node0, with its own seal, in its own name and in the other's.
    for sender in ("node0", "node1"):
        own = sealing.event(store.path.parent, "node1", [batch], sender)
        collector.take("cluster/telemetry/batch/node1", own)
        collector.take("cluster/telemetry/batch/node0", own)
    assert store.batches(0.0, math.inf) == []
    assert value(scrape(collector), "cluster_collector_batches_rejected_total") == 5
    collector.take("cluster/telemetry/batch/node0", sealed)
    assert len(store.batches(0.0, math.inf)) == 1, "the flood of another costs a node nothing"


def test_what_the_node_no_longer_has_is_not_waited_for(collector: Any, clock: Clock) -> None:
    first, *_, last = [batch for batch in batches() if batch["node"] == "node0"]
    last["sampler"]["oldest"] = last["sequence"]
    send(collector, clock, [first, last])
    stored = cluster_state.acknowledgement(collector.state, "node0", "b-node0")
    assert stored == {"boot": "b-node0", "sequence": last["sequence"], "missing": []}


def test_windows_and_losses_are_reported_on_the_bus(collector: Any, clock: Clock) -> None:
    for batch in batches():
        send(collector, clock, [batch])
        collector.tick(clock.now)
    windows = [data for tag, data in collector._bus.fired if tag == cluster_view.WINDOW_TAG]
    assert len(windows) >= 2
    assert all(late["start"] == early["end"] for early, late in itertools.pairwise(windows))
    for second in range(60):
        collector.tick(clock.now + second)
    assert [tag for tag, _ in collector._bus.fired].count(cluster_view.LOST_TAG) == 2


def test_old_batches_go(collector: Any, clock: Clock, store: Store) -> None:
    send(collector, clock, batches()[:4])
    collector.tick(clock.now + 90_000.0)
    assert store.batches(0.0, math.inf) == []


# -- acknowledgements over HTTP


def ask(collector: Any, path: str) -> tuple[str, Any]:
    statuses: list[str] = []
    body = collector._respond(None, {"PATH_INFO": path}, lambda status, headers: statuses.append(status))
    return statuses[0], json.loads(b"".join(body))


def test_a_sampler_asks_what_is_stored(collector: Any, clock: Clock) -> None:
    send(collector, clock, batches()[:8])
    assert ask(collector, "/acknowledged/node0/b-node0") == (
        "200 OK",
        {"boot": "b-node0", "sequence": 8, "missing": []},
    )
    collector.tick(clock.now)
    assert collector.state.nodes["node0"].asked == clock.now


@pytest.mark.parametrize(
    "path", ["/acknowledged/node0/other", "/acknowledged/node9/b", "/acknowledged/", "/acknowledged/x"]
)
def test_nothing_is_reported_of_what_is_not_known(collector: Any, path: str) -> None:
    assert ask(collector, path)[0].startswith("404")


def test_every_other_path_is_the_metrics(collector: Any) -> None:
    assert collector._respond(lambda environment, respond: [b"metrics"], {"PATH_INFO": "/metrics"}, None) == [
        b"metrics"
    ]
