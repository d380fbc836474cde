"""Starts of minions, which anyone may forge: one apply after each boot on record, one at a time, and never a flood."""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import salt._logging
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bottleneck.profile.paths import repository_directory
from control import node_starts, records
from control.node_starts import MOST_APPLIES, WITHIN_SECONDS, Applied, refusal
from netboot.boot import storage
from netboot.boot.state import Boot, NodeState, Reached, State
from tests.by_file import load

PROFILES = repository_directory() / "profiles"
NETBOOTED, LAB = PROFILES / "arc-a770" / "v0.1.yaml", PROFILES / "embedded.yaml"
NOW = 1_795_000_000.0


class Applies:
    """Stands in for `state.apply` on the nodes."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failed: list[dict[str, str]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self, _opts: Any, nodes: Any, names: list[str], test: bool, states: str | None) -> dict[str, Any]:
        self.done += names
        self.meanwhile()
        return {name: {"states": 1, "changed": [], "failed": self.failed} for name in names}


@pytest.fixture
def applies() -> Applies:
    return Applies()


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, applies: Applies) -> ModuleType:
    module = load("_runners/cluster.py", "cluster_runner")
    salt._logging.shutdown_temp_handler()
    module.__opts__ = {"cluster_directory": str(tmp_path), "cluster_profile": str(NETBOOTED)}
    monkeypatch.setattr(module.state_apply, "apply", applies)
    monkeypatch.setattr(module, "_refuse_open", lambda _: None)
    return module


def enrol(folder: Path, boot: str, node: str = "node1", stage: Any = "enrolled") -> None:
    reached = (Reached("script", NOW), Reached(stage, NOW + 1))
    known = storage.read(folder / records.BOOT) or State(nodes={})
    before = known.nodes[node].boots if node in known.nodes else ()
    boots = (*before, Boot(boot, NOW, "image", "02:00:00:00:00:01", node, reached=reached))
    storage.write(folder / records.BOOT, State(nodes={**known.nodes, node: NodeState(boots=boots)}))


def minion(runner: ModuleType, node: str = "node1") -> str:
    return str(runner.Nodes(runner.__opts__).minion(node))


def test_twelve_starts_of_a_boot_are_one_apply(runner: ModuleType, applies: Applies, tmp_path: Path) -> None:
    enrol(tmp_path, "b" * 32)
    outcomes = [runner.node_started(minion(runner)) for _ in range(12)]
    assert applies.done == ["node1"]
    assert [outcome["applied"] for outcome in outcomes] == [True] + [False] * 11
    assert "configured since boot bbbbbbbb" in outcomes[1]["reason"]


def test_the_next_boot_is_applied_to(runner: ModuleType, applies: Applies, tmp_path: Path) -> None:
    for boot in ("a" * 32, "b" * 32):
        enrol(tmp_path, boot)
        assert runner.node_started(minion(runner))["applied"]
    assert applies.done == ["node1", "node1"]


def test_a_start_without_a_boot_on_record_leads_to_nothing(
    runner: ModuleType, applies: Applies, tmp_path: Path
) -> None:
    assert "no boot of it" in runner.node_started(minion(runner))["reason"]
    # One that was only given a script has not enrolled: nothing is known of it.
    enrol(tmp_path, "c" * 32, stage="kernel")
    assert "no boot of it" in runner.node_started(minion(runner))["reason"]
    assert "not a node" in runner.node_started("stranger")["reason"]
    assert applies.done == []


def test_a_failed_apply_is_tried_again_but_not_for_ever(runner: ModuleType, applies: Applies, tmp_path: Path) -> None:
    enrol(tmp_path, "b" * 32)
    applies.failed = [{"id": "x", "name": "x", "comment": "it broke"}]
    outcomes = [runner.node_started(minion(runner)) for _ in range(12)]
    assert len(applies.done) == MOST_APPLIES
    assert outcomes[0]["failed"] == ["node1"] and "starts of it were acted on" in outcomes[-1]["reason"]


def test_without_a_record_of_boots_a_flood_is_a_few(runner: ModuleType, applies: Applies) -> None:
    runner.__opts__["cluster_profile"] = str(LAB)
    for _ in range(50):
        runner.node_started(minion(runner))
    assert len(applies.done) == MOST_APPLIES
    runner.node_started(minion(runner, "node0"))
    assert applies.done[-1] == "node0", "one node's flood costs another nothing"


def test_one_apply_at_a_time(runner: ModuleType, applies: Applies, tmp_path: Path) -> None:
    """A start while states are applied returns at once (no reactor thread waits); a person's apply waits."""
    enrol(tmp_path, "b" * 32)
    during: list[Any] = []
    waiting = threading.Thread(target=lambda: runner.apply(only=["node1"]))

    def meanwhile() -> None:
        applies.meanwhile = lambda: None
        during.extend(runner.node_started(minion(runner)) for _ in range(12))
        waiting.start()
        assert applies.done == ["node1"]

    applies.meanwhile = meanwhile
    assert runner.node_started(minion(runner))["applied"]
    waiting.join(60)
    assert {outcome["reason"] for outcome in during} == {"an apply is under way on it"}
    assert applies.done == ["node1", "node1"]


def _hold(folder: str, has: Any, go: Any) -> None:
    with node_starts.alone({"cluster_directory": folder}, ["node1", "node0"]):
        has.set()
        go.wait(60)
        os._exit(9)


def test_a_process_that_is_killed_leaves_no_lock(tmp_path: Path) -> None:
    opts = {"cluster_directory": str(tmp_path)}
    context = multiprocessing.get_context("fork")
    has, go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), has, go))
    other.start()
    assert has.wait(60)
    with node_starts.alone(opts, ["node0"], wait=False) as free:
        assert not free
    go.set()
    other.join(60)
    with node_starts.alone(opts, ["node0"], wait=False) as free:
        assert free


@pytest.mark.parametrize(
    "odd", ["", "{", "[]", '{"boot": 1}', '{"boot": "b", "moments": ["x"], "profile": ""}', "\x00"]
)
def test_a_damaged_record_is_none(tmp_path: Path, odd: str) -> None:
    opts = {"cluster_directory": str(tmp_path)}
    (tmp_path / node_starts.FOLDER).mkdir()
    (tmp_path / node_starts.FOLDER / "node1.json").write_text(odd)
    assert node_starts.read(opts, "node1") == Applied()
    node_starts.write(opts, "node1", Applied("b", (1.0,), "p"))
    assert node_starts.read(opts, "node1") == Applied("b", (1.0,), "p")
    assert json.loads((tmp_path / node_starts.FOLDER / "node1.json").read_text())["boot"] == "b"


# A busy machine is no fault of it.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(0, 10_000), max_size=60).map(sorted), st.booleans())
def test_whenever_starts_come_few_lead_to_an_apply(moments: list[float], boots_on_record: bool) -> None:
    known, acted = Applied(), []
    for moment in moments:
        if refusal(known, "b" if boots_on_record else None, boots_on_record, moment) is None:
            known = node_starts.began(known, moment)
            acted.append(moment)
    for moment in acted:
        assert sum(moment <= other < moment + WITHIN_SECONDS for other in acted) <= MOST_APPLIES


def test_time_is_given() -> None:
    assert refusal(Applied("", (NOW,) * MOST_APPLIES), None, False, NOW + WITHIN_SECONDS + 1) is None
    assert refusal(Applied("", (time.time() + 1e6,) * MOST_APPLIES), None, False, NOW)
