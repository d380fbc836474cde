"""No batch that a node can send ends the engine: what is not sound is refused and counted, and the next is taken."""

import datetime
import logging
import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import salt._logging
import salt.payload
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bottleneck.profile import load_profile
from bottleneck.telemetry import batch_checks, cluster_state, cluster_view
from bottleneck.telemetry.batch_checks import AHEAD_SECONDS, DEEPEST, LONGEST_SECONDS
from bottleneck.telemetry.store import Store
from tests import run_builder
from tests.by_file import load

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import machine

NOW = 1_795_000_000.0
SETTINGS = cluster_view.Settings(senders={"node0": "host0", "node1": "host1"})


def batch(**change: Any) -> dict[str, Any]:
    return {
        "node": "node0",
        "boot": "b",
        "sequence": 1,
        "t0": NOW,
        "t1": NOW + 0.9,
        "samples": [{"t": NOW, "cpu": {"0": [1.0, 0.5, 0.5, 2.0, 0, 0]}}],
        "engine": None,
        "sampler": {"cpu_s": 0.1, "dropped": 0},
        **change,
    }


def sample(**parts: Any) -> dict[str, Any]:
    return {"samples": [{"t": NOW, **parts}]}


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


# What a node may send in its own name -> a part of the reason.
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "t0 -inf": ({"t0": -math.inf}, "two moments"),
    "t1 nan": ({"t1": math.nan}, "two moments"),
    "t1 inf": ({"t1": math.inf}, "two moments"),
    "times as text": ({"t0": "1", "t1": "1e308"}, "two moments"),
    "times reversed": ({"t0": NOW + 5, "t1": NOW}, "two moments"),
    "a day ahead": ({"t0": NOW + 86400, "t1": NOW + 86401}, "control node's time"),
    "1e300 s ahead": ({"t1": 1e300}, "s long"),
    "long ago": ({"t0": 0.0, "t1": 1.0}, "control node's time"),
    "an hour long": ({"t0": NOW - 3600}, "s long"),
    "bytes": (sample(x=b"\xff"), "type bytes"),
    "a datetime": (sample(x=datetime.datetime.now()), "type datetime"),
    "a key of bytes": ({"samples": [{"t": NOW, b"x": 1}]}, "key"),
    "a key that is a number": ({"samples": [{"t": NOW, 7: 1}]}, "key"),
    "deep": (sample(x=nested(DEEPEST)), "nested"),
    "deeper than the stack": (sample(x=nested(50_000)), "nested"),
    "wide": (sample(x=[0] * (batch_checks.MOST_VALUES + 1)), "values"),
    "a lone surrogate": ({"boot": "\ud800"}, "no Unicode"),
    "a lone surrogate as key": (sample(**{"\udfff": 1}), "key"),
    "a long text": (sample(x="x" * 5000), "longer than"),
    "a huge number": (sample(x=10**5000), "64 bits"),
    "a huge sequence": ({"sequence": 1 << 60}, "sequence"),
    "a NaN counter": (sample(cpu={"0": [math.nan] * 6}), "schema"),
    "a counter as text": (sample(cpu={"0": ["1"]}), "schema"),
    "a core that is a label": (sample(cpu={'0",node="node1': [1.0]}), "name of a core"),
    "a resource made up": (sample(psi={"cpu0": [1.0, 0.0]}), "name of a resource"),
    "a worker with an escape": (sample(workers={"\x1b[2J": {}}), "name of a worker"),
    "a thousand cores and more": (sample(cpu={str(core): [0] for core in range(2000)}), "items"),
    "a part that is a list": (sample(links=[1]), "mapping"),
    "a part with a part": (sample(mem={"total": {}}), "numbers"),
    "a sample far from the batch": ({"samples": [{"t": 1.0}]}, "without a time"),
    "a sample that is a list": ({"samples": [[]]}, "without a time"),
    "a metric as text": ({"engine": {"t": NOW, "metrics": {"a": "1"}}}, "no number"),
    "a metric that is a list": ({"engine": {"t": NOW, "metrics": {"a": []}}}, "no number"),
    "a reading of another time": ({"engine": {"t": 1e300, "metrics": {}}}, "without a time"),
    "a sampler part with a list": ({"sampler": {"oldest": [1]}}, "sampler part"),
    "a true sampler value": ({"sampler": {"oldest": True}}, "sampler part"),
}


@pytest.mark.parametrize(("change", "part"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_batch_is_refused_with_its_reason(change: dict[str, Any], part: str) -> None:
    reason = batch_checks.problem(batch(**change), "host0", SETTINGS, NOW)
    assert reason is not None and part in reason
    assert len(reason) < 400


@pytest.mark.parametrize(
    ("change", "sender", "part"),
    [
        ({"node": "node7"}, "host0", "not in the profile"),
        ({"node": ["node0"]}, "host0", "not in the profile"),
        ({}, "host1", "sent a batch of node0"),
        ({}, None, "sent a batch of node0"),
        ({}, b"host0", "sent a batch of node0"),
        ({"boot": ""}, "host0", "boot"),
        ({"boot": "x" * 101}, "host0", "boot"),
        ({"sequence": 0}, "host0", "sequence"),
        ({"sequence": 1.5}, "host0", "sequence"),
        ({"sequence": True}, "host0", "sequence"),
        ({"samples": []}, "host0", "samples"),
        ({"samples": "VALUE_TRIMMED"}, "host0", "samples"),
        ({"samples": [{}]}, "host0", "without a time"),
        ({"samples": [{"t": NOW}] * 2001}, "host0", "samples"),
        ({"engine": {"metrics": []}}, "host0", "no reading"),
        ({"engine": 7}, "host0", "no reading"),
        ({"sampler": []}, "host0", "sampler"),
    ],
)
def test_what_is_no_batch_of_its_sender_is_refused(change: dict[str, Any], sender: Any, part: str) -> None:
    reason = batch_checks.problem(batch(**change), sender, SETTINGS, NOW)
    assert reason is not None and part in reason


def test_what_samplers_send_is_taken() -> None:
    assert batch_checks.problem(batch(), "host0", SETTINGS, NOW) is None
    profile = load_profile(run_builder.PROFILE)
    for found in run_builder.batches(run_builder.Shape(), "m", random.Random(1)):
        assert batch_checks.problem(found, found["node"], cluster_view.Settings.of(profile), found["t1"]) is None
    # What an engine reports may be no number, and a machine may have what an older control node does not know.
    odd = batch(engine={"t": NOW, "metrics": {"vllm:x": math.nan}}, **sample(future={"a": [1, {"b": "c"}]}))
    assert batch_checks.problem(odd, "host0", SETTINGS, NOW) is None


def test_the_sampler_of_this_machine_is_taken() -> None:
    made = machine.Machine({"loopback": ["lo"]}, "/nonexistent")
    taken = made.parse([made.read(NOW, True), made.read(NOW + 0.1, False)])
    assert {"cpu", "links"} <= set(taken[0])
    found = batch(samples=taken, sampler={"cpu_s": 0.1, "late": 0, "dropped": 0, "waiting": 1, "oldest": 1})
    received = salt.payload.loads(salt.payload.dumps(found))
    assert batch_checks.problem(received, "host0", SETTINGS, NOW) is None


def test_a_clock_a_little_ahead_is_taken() -> None:
    assert batch_checks.problem(batch(), "host0", SETTINGS, NOW - AHEAD_SECONDS + 1) is None
    assert batch_checks.problem(batch(), "host0", SETTINGS, NOW - AHEAD_SECONDS)
    assert batch_checks.problem(batch(t0=NOW - LONGEST_SECONDS + 1), "host0", SETTINGS, NOW) is None


@pytest.mark.parametrize("odd", [None, [], "text", 7, {"node": []}, {}, {1: 2}])
def test_anything_else_is_no_batch(odd: object) -> None:
    assert batch_checks.problem(odd, "host0", SETTINGS, NOW)


# -- the engine


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def engine() -> Any:
    module = load("_engines/telemetry.py", "telemetry_engine")
    salt._logging.shutdown_temp_handler()
    return module


class Ended(BaseException):
    """Ends the engine's loop: no `Exception`, as nothing that a node sends is."""


class Bus:
    """Salt's event bus, with what it will give; an exception in it is raised by the bus itself."""

    def __init__(self, events: list[Any]) -> None:
        self._events = iter(events)
        self.fired: list[tuple[str, dict[str, Any]]] = []

    def __enter__(self) -> "Bus":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def get_event(self, **_: Any) -> Any:
        event = next(self._events, Ended())
        if isinstance(event, BaseException):
            raise event
        return event

    def fire_event(self, data: dict[str, Any], tag: str) -> None:
        self.fired.append((tag, data))


def event(*batches: Any, sender: str = "node0", node: str = "node0") -> dict[str, Any]:
    return {
        "tag": f"cluster/telemetry/batch/{node}",
        "data": {"id": sender, "data": {"batches": list(batches)}},
    }


def unsealed(_opts: Any, _minion: str | None, content: Any) -> Any:
    """Return what stands in an event as it is, JSON or not: this is about batches that have their node's seal."""
    return content.get("batches") if isinstance(content, dict) else None


def run(engine: Any, store: Store, monkeypatch: pytest.MonkeyPatch, events: list[Any]) -> Any:
    """Let the engine's own loop take events until there are no more; return its collector."""
    bus = Bus(events)
    monkeypatch.setattr(engine.salt.utils.event, "get_master_event", lambda *_, **__: bus)
    monkeypatch.setattr(engine, "FAILED_WAIT_SECONDS", 0.0)
    made = engine.Collector(
        {"sock_dir": "", "cluster_directory": store.path.parent},
        load_profile(run_builder.PROFILE),
        store,
        lambda: NOW + 1.0,
        lambda: 1.0,
    )
    monkeypatch.setattr(engine.sealed_batches, "opened", unsealed)
    with pytest.raises(Ended):
        made.run()
    return made


@pytest.mark.parametrize("name", HOSTILE)
def test_the_engine_takes_the_next_batch_after_a_hostile_one(
    name: str, engine: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, _ = HOSTILE[name]
    hostile = batch(**change)
    events = [event(hostile, batch(sequence=2)), event(batch(node="node1"), sender="node1", node="node1")]
    made = run(engine, store, monkeypatch, events)
    assert (made.state.rejected, made.state.failures) == (1, 0)
    assert sorted((found["node"], found["sequence"]) for found in store.batches(0.0, math.inf)) == [
        ("node0", 2),
        ("node1", 1),
    ]


def test_an_error_in_taking_is_logged_counted_and_survived(
    engine: Any, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, bad = store.put_batches, 2

    def put(batches: Any) -> Any:
        if any(each["sequence"] == bad for each in batches):
            raise ValueError("nobody thought of this")
        return whole(batches)

    monkeypatch.setattr(store, "put_batches", put)
    with caplog.at_level(logging.ERROR):
        made = run(engine, store, monkeypatch, [event(*(batch(sequence=number) for number in (1, bad, 3)))])
    assert [found["sequence"] for found in store.batches(0.0, math.inf)] == [1, 3]
    assert (made.state.rejected, made.state.failures) == (1, 2)
    assert "nobody thought of this" in caplog.text and "Traceback" in caplog.text
    registry = prometheus_client.CollectorRegistry()
    registry.register(made)
    assert registry.get_sample_value("cluster_collector_failures_total") == 2.0


def test_an_error_of_the_bus_or_the_clockwork_does_not_end_the_engine(
    engine: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = iter([RuntimeError("tick")])
    real = cluster_state.to_acknowledge

    def to_acknowledge(*arguments: Any) -> Any:
        for error in broken:
            raise error
        return real(*arguments)

    monkeypatch.setattr(cluster_state, "to_acknowledge", to_acknowledge)
    made = run(engine, store, monkeypatch, [ValueError("no msgpack"), {"tag": "x"}, event(batch(sequence=1))])
    assert made.state.failures == 3
    assert len(store.batches(0.0, math.inf)) == 1


def test_an_event_with_very_many_batches_is_one_refusal(
    engine: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(engine, store, monkeypatch, [event(*[7] * 100_000)])
    assert made.state.rejected == 1


def test_a_node_has_a_budget_of_its_own(engine: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that sends too much is refused the rest, and costs another node nothing."""
    burst = int(engine.BURST_BATCHES)
    events = [event(*(batch(sequence=first + number) for number in range(50))) for first in range(1, burst + 100, 50)]
    made = run(engine, store, monkeypatch, [*events, event(batch(node="node1"), sender="node1", node="node1")])
    assert made.state.nodes["node0"].stored == burst
    assert made.state.rejected == len(events) * 50 - burst
    assert made.state.nodes["node1"].stored == 1


def test_a_window_of_the_future_is_not_exported_as_the_newest(
    engine: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = run_builder.verdict(run_builder.Shape())
    store.put_verdict({"window": "ahead", "start": 4e9, "end": 4e9 + 10, "deployment": "forged"}, verdict)
    store.put_verdict({"window": "now", "start": NOW - 15, "end": NOW, "deployment": "tp2"}, verdict)
    made = run(engine, store, monkeypatch, [])
    registry = prometheus_client.CollectorRegistry()
    registry.register(made)
    assert registry.get_sample_value("cluster_verdict_window_end_timestamp_seconds") == NOW
    made.tick(NOW + 2.0)
    assert [each["window"]["window"] for each in store.verdict_history()] == ["now"]


def test_a_flood_of_refusals_writes_few_lines(
    engine: Any, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = run(engine, store, monkeypatch, [event({"node": "x"})] * 1000)
    assert made.state.rejected == 1000
    assert caplog.text.count("Batch refused") == 1


# -- anything at all

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=5)
    | st.sampled_from([NOW, NOW + 0.5, -math.inf, 1 << 70, "\ud800", b"x", "node0", "node1"])
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | SCALARS, inner, max_size=4),
    max_leaves=20,
)
PARTS = st.dictionaries(
    st.sampled_from(["cpu", "psi", "links", "workers", "mem", "accelerator", "cgroup", "x"]),
    DOCUMENTS | st.dictionaries(st.sampled_from(["0", "cpu", "direct", "tp2-0"]), DOCUMENTS, max_size=3),
    max_size=3,
)
MUTATED = st.builds(
    lambda change, parts: batch(**{"samples": [{"t": NOW, **each} for each in parts], **change}),
    st.dictionaries(st.sampled_from([*sorted(batch()), "exits"]), DOCUMENTS, max_size=2),
    st.lists(PARTS, min_size=1, max_size=3),
)


@pytest.fixture(scope="module")
def collector(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with Store(tmp_path_factory.mktemp("fuzz") / "store.db") as opened:
        made = engine.Collector(
            {"cluster_directory": opened.path.parent},
            load_profile(run_builder.PROFILE),
            opened,
            lambda: NOW + 1.0,
            lambda: 1.0,
        )
        made._bus = Bus([])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine.sealed_batches, "opened", unsealed)
            yield made


@settings(
    max_examples=int(os.environ.get("CLUSTER_FUZZ_EXAMPLES", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.one_of(DOCUMENTS, MUTATED), DOCUMENTS)
def test_whatever_comes_is_taken_or_refused_without_an_error(collector: Any, found: Any, other: Any) -> None:
    """Store, state and exporter take whatever the check lets through: `failures` counts what they would not."""
    before = collector.state.rejected + collector.state.nodes["node0"].stored + collector.state.nodes["node0"].repeated
    collector.take("cluster/telemetry/batch/node0", {"id": "node0", "data": {"batches": [found]}})
    node = collector.state.nodes["node0"]
    assert collector.state.failures == 0
    assert collector.state.rejected + node.stored + node.repeated == before + 1
    collector.take("cluster/telemetry/batch/node0", other)
    collector.take("cluster/telemetry/batch/node0", {"id": other, "data": other})
    collector.tick(NOW + 2.0)
    registry = prometheus_client.CollectorRegistry()
    registry.register(collector)
    prometheus_client.generate_latest(registry)
    assert collector.state.failures == 0
