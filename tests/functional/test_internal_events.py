"""Events that lead to action are the control node's own: a node's, under the same tag, are refused."""

import json
import multiprocessing
import stat
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import salt._logging
import salt.payload
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from salt.exceptions import CommandExecutionError

from bottleneck.telemetry import cluster_view
from bottleneck.telemetry.cluster_view import LOST_TAG, WINDOW_TAG
from control import internal_events, records, shared_secrets
from tests.by_file import load

WINDOW = {"window": "1795469400", "start": 1795469400.0, "end": 1795469410.0, "nodes": ["node0"]}


@pytest.fixture
def opts(tmp_path: Path) -> dict[str, Any]:
    return {"cluster_directory": str(tmp_path)}


@pytest.fixture
def runner(opts: dict[str, Any]) -> ModuleType:
    module = load("_runners/internal.py", "internal_runner")
    salt._logging.shutdown_temp_handler()
    module.__opts__ = opts
    module.acted = []

    def noting(function: str) -> Any:
        return lambda *arguments: module.acted.append((function, *arguments))

    module.__salt__ = {action.function: noting(action.function) for action in internal_events.ACTIONS.values()}
    return module


def received(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event as a reactor has it: through the bus, which adds a stamp, and through JSON."""
    found = salt.payload.loads(salt.payload.dumps({**event, "_stamp": "2026-11-27T12:00:00.000000"}))
    return dict(json.loads(json.dumps(found)))


# What the engine announces under each tag -> what is called.
ANNOUNCED: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    cluster_view.WINDOW_TAG: (WINDOW, ("telemetry.aggregate", WINDOW)),
    LOST_TAG: ({"node": "node0", "since": 1e-05}, ("recover.node_lost", "node0")),
    cluster_view.STILL_LOST_TAG: ({"node": "node0", "since": 1.0, "times": 2}, ("recover.node_lost", "node0")),
    cluster_view.EXITED_TAG: (
        {"node": "node0", "workers": ["tp2-0"], "what": "stopped", "at": 1.0},
        ("recover.worker_exited", "node0", ["tp2-0"], "stopped"),
    ),
    cluster_view.STALLED_TAG: ({"node": "node0", "seconds": 9.5}, ("recover.engine_stalled", "node0", 9.5)),
}


def test_everything_that_the_reactor_acts_on_is_sealed_or_asks_for_nothing() -> None:
    """Of the others, one looks at the boot record alone, and two ask who is due by the control node's records."""
    entries = yaml.safe_load((Path(__file__).parents[2] / "reactor" / "reactor.conf").read_text())["reactor"]
    tags = {tag for entry in entries for tag in entry}
    looked_at_only = {"salt/minion/*/start", "cluster/image/changed", "cluster/profile/changed"}
    assert tags - looked_at_only == set(internal_events.ACTIONS) == set(ANNOUNCED)


@pytest.mark.parametrize("tag", ANNOUNCED)
def test_what_the_engine_sealed_is_acted_on(runner: ModuleType, opts: dict[str, Any], tag: str) -> None:
    content, called = ANNOUNCED[tag]
    runner.take(tag, received(internal_events.sealed(opts, tag, content)))
    assert runner.acted == [called]


def test_what_is_outside_the_seal_is_not_read(runner: ModuleType, opts: dict[str, Any]) -> None:
    event = internal_events.sealed(opts, LOST_TAG, {"node": "node0"})
    runner.take(LOST_TAG, {**event, "node": "node1"})
    assert runner.acted == [("recover.node_lost", "node0")]


@pytest.mark.parametrize(
    "change",
    [
        {"sealed": None},
        {"seal": None},
        {"seal": ""},
        {"seal": "0" * 64},
        {"seal": "\u00e9" * 64},
        {"seal": 7},
        {"sealed": json.dumps({"node": "node1"})},
        {"sealed": "\ud800"},
        {"sealed": ["node1"]},
    ],
)
def test_a_forged_event_is_refused(runner: ModuleType, opts: dict[str, Any], change: dict[str, Any]) -> None:
    event = {**internal_events.sealed(opts, LOST_TAG, {"node": "node0"}), **change}
    with pytest.raises(CommandExecutionError, match="not the control node's own"):
        runner.take(LOST_TAG, event)
    assert runner.acted == []


def test_a_seal_is_for_one_tag_and_one_control_node(runner: ModuleType, opts: dict[str, Any], tmp_path: Path) -> None:
    for event in (
        internal_events.sealed(opts, WINDOW_TAG, {"node": "node0"}),
        internal_events.sealed({"cluster_directory": str(tmp_path / "other")}, LOST_TAG, {"node": "node0"}),
        {"node": "node0", "id": "node0", "data": {"node": "node0"}},
        {},
        None,
        "node0",
    ):
        with pytest.raises(CommandExecutionError, match="not the control node's own"):
            runner.take(LOST_TAG, event)
    assert runner.acted == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    event=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["sealed", "seal", "node"]) | st.text(), inner),
        max_leaves=8,
    )
)
def test_no_event_that_a_node_makes_up_leads_to_anything(runner: ModuleType, event: Any) -> None:
    for tag in (*internal_events.ACTIONS, "cluster/node/back", "salt/minion/node0/start", ""):
        with pytest.raises(CommandExecutionError):
            runner.take(tag, event)
    assert runner.acted == []


# -- the secret behind it


def _derive(folder: str, begin: Any, answers: Any) -> None:
    begin.wait(60)
    answers.put(shared_secrets.derived({"cluster_directory": folder}, "a"))


def test_processes_that_come_first_together_make_one_secret(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begin, answers = context.Event(), context.Queue()
    others = [context.Process(target=_derive, args=(str(tmp_path), begin, answers)) for _ in range(8)]
    for other in others:
        other.start()
    begin.set()
    assert len({answers.get(timeout=60) for _ in others}) == 1
    for other in others:
        other.join(60)
    folder = tmp_path / "secrets"
    assert [path.name for path in folder.iterdir()] == ["root.key"]
    assert stat.S_IMODE((folder / "root.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_purposes_have_keys_of_their_own(opts: dict[str, Any]) -> None:
    purposes = [("a",), ("b",), ("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", "c"), ("1:a",)]
    keys = [shared_secrets.derived(opts, *purpose) for purpose in purposes]
    assert len(set(keys)) == len(keys) and {len(key) for key in keys} == {32}
    assert shared_secrets.derived(opts, "a") == keys[0]


def test_a_damaged_secret_is_named(opts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "root.key").write_bytes(b"short")
    with pytest.raises(records.RecordError, match=r"root\.key: 5 bytes, expected 32"):
        shared_secrets.derived(opts, "a")
