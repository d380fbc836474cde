"""Whatever comes over a boundary ends in an answer or in the boundary's own error: no traceback, no hang, nothing dead.

Batches are in test_batch_checks.py, internal events in test_internal_events.py, run folders, scenarios and records of
runs in test_broken_records.py, metrics as the sampler's and the analysis' one parser read them in test_exposition.py.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from salt.exceptions import CommandExecutionError

from bottleneck.profile import Profile, ProfileError, load_profile
from bottleneck.telemetry import cluster_state, cluster_view
from bottleneck.telemetry.cluster_view import Settings
from bottleneck.telemetry.database import StoreError
from bottleneck.telemetry.engine_work import engine_work
from bottleneck.telemetry.prometheus_text import MetricsText
from bottleneck.telemetry.store import Store
from bottleneck.telemetry.store_recovery import open_or_begin_anew
from control import audit, hangs, records, serving
from control.nodes import Nodes
from netboot.boot import dhcp_log, enrolment
from netboot.boot.state import State as BootState
from tests import run_builder
from tests.by_file import load

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import engine_metrics
import journal
import spool
import worker_exits
import workers

NOW = 1_795_000_000.0
# The same examples in every run: what is found here is found again, and what passes does so everywhere.
quick = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, 10**400, -1, 0, float("nan"), float("inf")])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=12),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=8), part, max_size=3),
    max_leaves=8,
)
SEEDS = st.integers(0, 2**32)
BAD: tuple[Any, ...] = (
    None,
    True,
    "",
    "x",
    "\ud800",
    -1,
    1e308,
    float("nan"),
    10**400,
    [],
    {},
    [[]],
    {"a": {}},
    "1 parsec",
)


def broken(document: Any, chance: random.Random) -> Any:
    """Return a document with one place of it, at any depth, replaced by something that does not belong there."""
    if isinstance(document, dict) and document and chance.random() < 0.9:
        key = chance.choice(list(document))
        if chance.random() < 0.15:
            return {name: part for name, part in document.items() if name != key}
        return document | {key: broken(document[key], chance)}
    if isinstance(document, list) and document and chance.random() < 0.9:
        index = chance.randrange(len(document))
        return [*document[:index], broken(document[index], chance), *document[index + 1 :]]
    return copy.deepcopy(chance.choice(BAD))


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return content with a piece of it overwritten, cut out or doubled."""
    start = chance.randrange(len(content) + 1)
    end = min(len(content), start + chance.choice((1, 16, 512, 5000)))
    middle = chance.choice((b"", chance.randbytes(end - start), content[start:end] * 2))
    return content[:start] + middle + content[end:]


# -- profiles


@quick
@given(SEEDS)
def test_a_broken_profile_is_explained(seed: int) -> None:
    chance = random.Random(seed)
    document = yaml.safe_load(run_builder.PROFILE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "p.yaml")
        if chance.random() < 0.3:
            path.write_bytes(damaged(run_builder.PROFILE.read_bytes(), chance))
        else:
            path.write_text(yaml.safe_dump(broken(document, chance), allow_unicode=False), encoding="utf-8")
        try:
            load_profile(path)
        except ProfileError as error:
            assert str(error)


# -- answers


@quick
@given(
    JSON, st.dictionaries(st.sampled_from(["boot", "sequence", "missing", "former", "refused"]), JSON | st.just("b"))
)
def test_no_acknowledgement_ends_the_sampler(whatever: Any, parts: dict[str, Any]) -> None:
    kept = spool.Spool("b", 10, 25.0)
    for number in range(3):
        kept.add({"n": number})
    for answer in (whatever, {"boot": "b", "sequence": 1, **parts}):
        kept.acknowledge(answer)
    assert len(kept.due(1.0)) == len(kept) <= 3


@cache
def embedded() -> Profile:
    return load_profile(run_builder.PROFILE)


SPECS = [
    {"node": "node0", "name": "tp2-0", "head": True, "api_address": "10.0.0.1", "api_port": 8000},
    {"node": "node1", "name": "tp2-0", "head": False},
]


@quick
@given(st.dictionaries(st.sampled_from(["node0", "node1"]), JSON), SEEDS)
def test_whatever_nodes_answer_a_deployment_serves_or_there_is_a_reason(answers: dict[str, Any], seed: int) -> None:
    chance = random.Random(seed)
    sound: dict[str, Any] = {"tp2-0": {"stage": "ready", "reason": None, "stopped_processes": [], "cut_links": []}}
    given_ = {node: answers.get(node, broken(sound, chance)) for node in ("node0", "node1")}
    nodes: Any = Nodes({}, embedded())
    nodes.ask = lambda _function, names, timeout: given_

    def ask(_url: str, content: Any, _timeout: float) -> str:
        return "{}" if content else "vllm:num_requests_running 0\n"

    found = serving.trouble(nodes, SPECS, "tiny", False, ask, lambda _seconds: None)
    assert found is None or isinstance(found, str)


@quick
@given(st.dictionaries(st.sampled_from(["node0", "node1"]), JSON), SEEDS, st.booleans())
def test_whatever_nodes_answer_of_their_processes_it_is_a_hang_or_it_is_not_known(
    answers: dict[str, Any], seed: int, on_cpu: bool
) -> None:
    process = {"pid": 7, "name": "rank", "state": "S", "user": 0.0, "system": 0.0}
    sound = {"processes": [process], "link_bytes_per_second": 0.0, "unreachable": []}
    given_ = {node: answers.get(node, broken(sound, random.Random(seed))) for node in ("node0", "node1")}
    found = hangs.judge(given_, on_cpu)
    assert found is None or found.kind in ("stopped", "cut", "still", "loop")


# -- windows


@cache
def telemetry_runner() -> Any:
    runner = load("_runners/telemetry.py", "telemetry_runner_boundaries")
    runner.__context__ = {}
    return runner


@quick
@given(JSON, st.dictionaries(st.sampled_from(["window", "start", "end", "nodes"]), JSON | NUMBERS))
def test_a_window_that_cannot_be_is_refused(whatever: Any, parts: dict[str, Any]) -> None:
    runner = telemetry_runner()
    with tempfile.TemporaryDirectory() as name:
        runner.__opts__ = {
            "cluster_profile": str(run_builder.PROFILE),
            "cluster_store": f"{name}/store.db",
            "cluster_directory": name,
        }
        for window in (whatever, {"window": "1", "start": NOW, "end": NOW + 15.0, **parts}):
            try:
                found = runner.aggregate(window)
            except CommandExecutionError as error:
                assert str(error)
            else:
                assert found["class"] is None


@quick
@given(st.lists(st.tuples(st.sampled_from(["arrived", "tick", "set", "asked", "refused"]), NUMBERS), max_size=12))
def test_windows_and_hearts_outlive_every_order_of_events(steps: list[tuple[str, Any]]) -> None:
    state = cluster_state.begin(Settings(senders={"node0": "host0"}), NOW)
    now = NOW
    for number, (what, value) in enumerate(steps, 1):
        seconds = min(max(float(value), -1e6), 1e6) if abs(value) < 1e300 else 1e6
        now += seconds if seconds == seconds else 0.0
        batch = {"node": "node0", "boot": "b", "sequence": number, "t0": now, "t1": now, "samples": [{"t": now}]}
        events: dict[str, cluster_view.Event] = {
            "arrived": cluster_view.Arrived(now, batch, True, number),
            "tick": cluster_view.Tick(now),
            "set": cluster_view.ClockSet(now, 5.0),
            "asked": cluster_view.Asked(now, "node0"),
            "refused": cluster_view.Rejected(now),
        }
        state = cluster_state.apply(events[what], state)
        assert len(state.announcements) <= 102, "as many windows as may be open, and the node"


# -- files


@quick
@given(SEEDS)
def test_a_damaged_store_is_set_aside_or_refused_and_never_a_traceback(seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "store.db")
        batch = {"node": "node0", "boot": "b", "t0": NOW, "t1": NOW + 1, "samples": [{"t": NOW, "x": "y" * 3000}]}
        with Store(path) as store:
            store.put_batches([{**batch, "sequence": number} for number in range(1, 20)])
        for file in chance.sample(sorted(Path(name).iterdir()), 1):
            content = file.read_bytes()
            file.write_bytes(damaged(content, chance) if content else chance.randbytes(64))
        try:
            store, _ = open_or_begin_anew(path, NOW)
        except StoreError as error:
            assert str(error)
            return
        with store:
            try:
                store.put_batches([{**batch, "sequence": 99}])
                store.batches(NOW - 5, NOW + 5)
                store.stored("node0", "b")
                store.prune(NOW - 1, NOW + 9)
            except StoreError as error:
                assert str(error)


@quick
@given(st.binary(max_size=400), SEEDS)
def test_whatever_lies_in_the_journal_a_sampler_begins(noise: bytes, seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        kept = journal.Journal(name)
        for number in range(1, 5):
            kept.append("boot-1", number, b'{"samples": []}')
        kept.synchronise()
        (file,) = Path(name).iterdir()
        file.write_bytes(damaged(file.read_bytes(), chance))
        Path(name, "boot-2.000000000001.batches").write_bytes(noise)
        left = journal.Journal(name).leftovers()
        assert all(each.packed == b'{"samples": []}' for each in left if each.boot == "boot-1")


@quick
@given(JSON | st.binary(max_size=60), st.sampled_from(["pid", "keeper", "keeper_start", "exit_code"]))
def test_no_record_of_a_unit_ends_the_sampler(content: Any, key: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, f"{workers.UNIT_PREFIX}tp2-0.json")
        sound = {"pid": 2**30, "keeper": 2**30, "keeper_start": 1, "exit_code": None}
        for each in (content, {**sound, key: content if not isinstance(content, bytes) else 1}):
            path.write_bytes(each if isinstance(each, bytes) else json.dumps(each).encode())
            workers.units(name)
            worker_exits.WorkerExits(name).look(0.0)
            taken = workers.Workers(name)
            taken.refresh(0.0)
            taken.parse(taken.read(True, 0.0))


@quick
@given(JSON | st.binary(max_size=60), JSON)
def test_no_record_of_a_worker_ends_the_reading_of_its_engine(content: Any, watch: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "worker.json")
        sound = {"head": True, "api_address": "10.0.0.1", "api_port": 8000, "watch": watch}
        for each in (content, sound):
            path.write_bytes(each if isinstance(each, bytes) else json.dumps(each).encode())
            found = engine_metrics.head_metrics(str(path))
            assert found is None or isinstance(found[2], str)


@quick
@given(JSON | st.binary(max_size=60))
def test_a_record_of_the_control_node_that_is_none_is_named(content: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        opts = {"cluster_directory": name}
        written = content if isinstance(content, bytes) else json.dumps(content).encode()
        for record in (records.DEPLOYMENT, records.RECOVERY, records.PAUSED, audit.FILE):
            Path(name, record).write_bytes(written)
        assert isinstance(audit.entries(opts, 5), list)
        try:
            assert isinstance(records.read(opts, records.RECOVERY), dict)
        except records.RecordError as error:
            assert records.RECOVERY in str(error)


# -- texts


METRIC = st.from_regex(r"[a-z_:]{1,12}(\{[a-z]=\"[^\n]{0,5}\"?\}?)? ?[-+0-9eEinfaN.]{0,6}", fullmatch=True)


@quick
@given(st.lists(METRIC | st.text(max_size=30), max_size=10).map("\n".join) | st.text(max_size=200))
def test_any_text_is_metrics_or_none(text: str) -> None:
    requests, work = engine_work(MetricsText.parse(f"vllm:num_requests_running 1\n{text}"))
    assert isinstance(requests, float) and isinstance(work, float)
    assert all(isinstance(value, float) for value in engine_metrics.keep(text).values())


LINES = (
    "Nov 27 12:00:01 dnsmasq-dhcp[12]: 3127 DHCPDISCOVER(eth0) 02:77:00:00:00:10 ",
    "Nov 27 12:00:01 dnsmasq-dhcp[12]: 3127 vendor class: PXEClient:Arch:00007:UNDI:003016",
    "Nov 27 12:00:01 dnsmasq-dhcp[12]: 3127 DHCPACK(eth0) 10.77.0.10 02:77:00:00:00:10 node0",
    "Nov 27 12:00 dnsmasq-dhcp[12]: not using configured address 10.77.0.10 because it is leased to 02:77:00:00:00:9",
    "Nov 27 12:00:01 dnsmasq-tftp[12]: sent /srv/tftp/ipxe.efi to 10.77.0.10",
    "Nov 27 12:00:01 dnsmasq-tftp[12]: error 8 User aborted the transfer received from 10.77.0.10",
)


@quick
@given(st.lists(st.tuples(st.sampled_from(LINES) | st.text(max_size=80), SEEDS), max_size=12))
def test_no_line_of_dnsmasq_ends_the_reading(lines: list[tuple[str, int]]) -> None:
    reader = dhcp_log.Reader()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "dnsmasq.log")
        path.write_bytes(b"")
        tail = dhcp_log.Tail(path)
        tail.skip()
        with path.open("ab") as file:
            for line, seed in lines:
                chance = random.Random(seed)
                content = line.encode("utf-8", "surrogatepass")
                file.write((damaged(content, chance) if chance.random() < 0.5 else content) + b"\n")
        for line in tail.lines():
            found = reader.read(line)
            assert found is None or found.kind in ("asked", "given", "ignored", "sent", "trouble")


@quick
@given(st.binary(max_size=200) | JSON, st.dictionaries(st.sampled_from(enrolment.FIELDS), JSON))
def test_a_claim_that_is_none_is_refused(body: Any, parts: dict[str, Any]) -> None:
    sound = dict.fromkeys(enrolment.FIELDS, "0" * 32)
    for content in (body, {**sound, **parts}):
        written = content if isinstance(content, bytes) else json.dumps(content).encode()
        with pytest.raises(enrolment.ClaimError):
            enrolment.judge(enrolment.parse(written), BootState({}), NOW)
    with pytest.raises(enrolment.ClaimError):
        enrolment.checked_key(str(body))
