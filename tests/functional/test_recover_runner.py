"""Recovery of a deployment, with stand-ins for nodes and engine, and real records."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from control import audit, gateway, locks, records, recovery, serving
from tests.by_file import load

SPECS = [
    {"node": "node0", "name": "tp2-0", "head": True, "api_address": "10.0.0.1", "api_port": 8000},
    {"node": "node1", "name": "tp2-0", "head": False, "api_address": None, "api_port": None},
]
RECORD = {"deployment": "tp2", "overrides": {"max_num_seqs": 4}, "workers": SPECS, "started": 1000.0}


class World:
    """Two nodes, a clock that only waiting moves, and a deployment that is sick until it was started often enough."""

    def __init__(self, directory: Path) -> None:
        self.opts = {"cluster_directory": str(directory)}
        self.now = 5000.0
        self.sick = 1
        self.fails: list[str] = []
        self.done: list[str] = []
        self.silent: set[str] = set()
        self.profile = SimpleNamespace(model=SimpleNamespace(name="tiny"))
        records.write(self.opts, records.DEPLOYMENT, RECORD)

    def ask(self, function: str, arguments: list[Any], names: list[str], timeout: float) -> None:
        # Every worker of the node, and none is given time to end by itself.
        assert (function, arguments) == ("worker.stop", [None, True])
        self.done.append(f"{function.partition('.')[2]} {' '.join(names)}")

    def answering(self, names: set[str], timeout: float) -> set[str]:
        return set(names) - self.silent

    def look(self, _nodes: Any, _specs: Any, _model: str, _settle: bool, exchanges: int) -> str | None:
        self.exchanges = exchanges
        return "tp2-0 on node1 has ended: it was killed" if self.sick else None

    def deploy(self, name: str, overrides: dict[str, Any], again: float) -> dict[str, Any]:
        assert overrides == RECORD["overrides"] and again == RECORD["started"]
        self.done.append(f"deploy {name} at {self.now:.0f}")
        if self.fails:
            raise CommandExecutionError(self.fails.pop())
        self.sick = 0
        return {"ready": self.now + 40, "first_token": self.now + 41}

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def run(self) -> dict[str, Any]:
        functions = {"cluster.deploy": self.deploy}
        nodes: Any = self
        return recovery.Recovery(self.opts, nodes, functions, self.wait, lambda: self.now, self.look).run("x", True)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)

    def withdraw(_opts: Any, nodes: list[str], awaited: bool) -> None:
        made.done.append(f"withdraw {' '.join(nodes)}{', awaited' if awaited else ''}")

    monkeypatch.setattr(gateway, "withdraw", withdraw)
    return made


def test_all_ranks_end_and_start_again_and_it_is_on_record(world: World) -> None:
    assert world.run() == {"serves": True, "restarted": True, "reason": "tp2-0 on node1 has ended: it was killed"}
    # What clients wait for fails first: the ranks may take their time to end.
    assert world.done == ["withdraw node0, awaited", "stop node0 node1", "deploy tp2 at 5000"]
    (entry,) = audit.entries(world.opts, 5)
    assert (entry["action"], entry["result"]) == ("restart", "serves again")
    assert "it was killed" in entry["cause"]
    assert (entry["started_seconds"], entry["first_token_seconds"]) == (40.0, 1.0)
    assert entry["detected"] == 5000.0


def test_what_serves_is_left_alone(world: World) -> None:
    world.sick = 0
    assert world.run()["serves"] is True
    assert world.done == [] and audit.entries(world.opts, 5) == []


def test_restarts_wait_longer_each_time_and_end_after_three(world: World) -> None:
    world.fails = ["no memory"] * 10
    found = world.run()
    assert found["serves"] is False and "3 restarts in the last hour did not help" in found["reason"]
    assert [step for step in world.done if step.startswith("deploy")] == [
        "deploy tp2 at 5000",
        "deploy tp2 at 5010",
        "deploy tp2 at 5070",
    ]
    # Nothing serves, nothing is awaited, and nothing is left half alive: the last thing done was to stop it.
    assert world.done[-2:] == ["withdraw node0", "stop node0 node1"]
    assert records.read(world.opts, records.DEPLOYMENT) == {}
    given_up = records.read(world.opts, records.RECOVERY)["given_up"]
    assert "no memory" in given_up["reason"] and "cluster deploy tp2" in given_up["next"]
    assert [entry["action"] for entry in audit.entries(world.opts, 9)] == ["restart"] * 3 + ["give up"]


def test_restarts_of_an_hour_ago_are_forgotten(world: World) -> None:
    for _ in range(5):
        world.sick = 1
        assert world.run()["serves"] is True
        world.now += 1300.0
    assert len(records.read(world.opts, records.RECOVERY)["restarts"]) <= recovery.MOST_RESTARTS


def test_a_person_who_undeploys_meanwhile_is_not_overruled(world: World) -> None:
    world.fails = ["no memory"]
    deploy = world.deploy

    def and_undeploy(name: str, overrides: dict[str, Any], again: float) -> dict[str, Any]:
        records.forget(world.opts, records.DEPLOYMENT)
        return deploy(name, overrides, again)

    world.deploy = and_undeploy  # type: ignore[method-assign]
    assert world.run()["serves"] is None
    assert len([step for step in world.done if step.startswith("deploy")]) == 1


def test_workers_that_a_person_stops_are_not_started_again(world: World) -> None:
    """They end before the record goes: seen in the lab, where a deployment came back after `cluster undeploy`."""
    with locks.exclusive(world.opts, locks.DEPLOYMENT, "an undeploy"):
        found = world.run()
    assert found["serves"] is None and "an undeploy is under way" in found["reason"]
    assert world.done == [] and audit.entries(world.opts, 5) == []
    # It ended between the look and the lock.
    look = world.look

    def ended_meanwhile(*arguments: Any, **more: Any) -> str | None:
        records.forget(world.opts, records.DEPLOYMENT)
        return look(*arguments, **more)

    world.look = ended_meanwhile  # type: ignore[method-assign, assignment]
    assert world.run()["serves"] is None
    assert world.done == []


def test_a_person_who_takes_over_in_the_wait_before_a_restart_has_it(world: World) -> None:
    def taken(name: str, overrides: dict[str, Any], again: float) -> dict[str, Any]:
        raise locks.LockedError("a deploy of pp2 is under way")

    world.deploy = taken  # type: ignore[method-assign]
    assert world.run() == {"serves": None, "reason": "a deploy of pp2 is under way"}
    assert audit.entries(world.opts, 5) == []


def test_nothing_is_done_while_paused_or_while_others_work_on_it(world: World) -> None:
    records.write(world.opts, records.PAUSED, {"since": 1.0, "reason": "cables"})
    assert "paused" in world.run()["reason"]
    records.forget(world.opts, records.PAUSED)
    records.write(world.opts, records.STARTING, {"deployment": "pp2", "began": world.now - 5})
    assert "pp2 is being deployed" in world.run()["reason"]
    records.forget(world.opts, records.STARTING)
    with locks.exclusive(world.opts, locks.REPROVISION, "busy"):
        assert "reprovisioned" in world.run()["reason"]
    assert world.done == []


def test_a_node_that_does_not_come_back_is_waited_for_and_named(world: World) -> None:
    world.silent = {"node1"}
    found = world.run()
    assert found["serves"] is False and "node1 did not answer in 300 s" in found["reason"]
    # Its peers were stopped at once: their requests would have waited for minutes.
    assert world.done[:2] == ["withdraw node0, awaited", "stop node0 node1"]
    assert not any(step.startswith("deploy") for step in world.done)


class Engine:
    """Answers of a head: each of `counters` is what one reading of its metrics shows; then the last again."""

    def __init__(self, *counters: tuple[int, int], canary: str | None = None) -> None:
        self.counters = list(counters)
        self.canary = canary
        self.asked: list[str] = []

    def ask(self, url: str, content: Any, _timeout: float) -> str:
        self.asked.append(url.rpartition("/")[2])
        if content is not None:
            if self.canary:
                raise CommandExecutionError(self.canary)
            return "{}"
        requests, tokens = self.counters.pop(0) if len(self.counters) > 1 else self.counters[0]
        return f"vllm:num_requests_running {requests}\nvllm:generation_tokens_total {tokens}\n"


def answer(stage: str = "ready", reason: str | None = None) -> dict[str, Any]:
    return {"tp2-0": {"stage": stage, "reason": reason}}


IDLE = {"pid": 7, "name": "VLLM::Worker_TP", "state": "S", "user": 0.0, "system": 0.0}
SPINS = {**IDLE, "name": "VLLM::EngineCor", "state": "R", "user": 0.2, "system": 0.7}
COMPUTES = {**IDLE, "state": "R", "user": 0.9, "system": 0.1}


def activity(*processes: dict[str, Any], sent: float = 3e3, unreachable: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"processes": list(processes), "link_bytes_per_second": sent, "unreachable": list(unreachable)}


WORKS = {"node0": activity(SPINS, COMPUTES), "node1": activity(IDLE)}


def trouble(
    answers: dict[str, Any],
    engine: Engine,
    settle: bool = False,
    activities: Any = None,
    kind: str = "cpu",
    exchanges: int = 0,
) -> str | None:
    clock = [0.0]

    def wait(seconds: float) -> None:
        clock[0] += seconds

    def ask(function: str, _arguments: Any, names: list[str], timeout: float) -> Any:
        assert function == "worker_activity.measure" and names == ["node0", "node1"]
        clock[0] += timeout
        return WORKS if activities is None else activities

    node = SimpleNamespace(accelerator=SimpleNamespace(kind=kind))
    profile = SimpleNamespace(nodes={"node0": node, "node1": node})
    nodes: Any = SimpleNamespace(ask_workers=lambda _names, timeout: answers, ask=ask, profile=profile)
    return serving.trouble(nodes, SPECS, "tiny", settle, engine.ask, wait, lambda: clock[0], exchanges)


def test_the_rank_that_ended_by_itself_is_named_and_not_its_peer() -> None:
    lost = "the other rank could not be reached"
    answers = {"node0": answer("failed", lost), "node1": answer("failed", "it was killed (signal 9)")}
    assert trouble(answers, Engine((0, 0))) == "tp2-0 on node1 has ended: it was killed (signal 9)"


def test_a_worker_that_is_not_there_is_trouble() -> None:
    assert trouble({"node0": answer(), "node1": {}}, Engine((0, 0))) == "tp2-0 on node1 has ended: it does not run"


@pytest.mark.parametrize("engine", [Engine((2, 100)), Engine((0, 100), canary="timed out")], ids=["requests", "idle"])
def test_a_silent_node_is_trouble_when_its_engine_makes_nothing(engine: Engine) -> None:
    assert trouble({"node0": answer(), "node1": None}, engine) == "node1 did not answer in 10 s"


@pytest.mark.parametrize("engine", [Engine((2, 100), (2, 101)), Engine((0, 100))], ids=["requests", "idle"])
def test_a_node_whose_minion_alone_is_silent_keeps_its_engine(engine: Engine) -> None:
    """A minion that was killed and a master that starts again made the cluster restart ranks that served."""
    assert trouble({"node0": answer(), "node1": None}, engine) is None


def test_a_busy_engine_serves_as_long_as_it_makes_tokens() -> None:
    answers = {"node0": answer(), "node1": answer()}
    engine = Engine((8, 100), (8, 100), (8, 101), canary="it would be late")
    assert trouble(answers, engine) is None
    assert engine.asked == ["metrics"] * 3


def test_an_engine_that_makes_nothing_of_its_requests_is_trouble() -> None:
    found = trouble({"node0": answer(), "node1": answer()}, Engine((3, 100)), settle=True)
    assert found == "tp2-0 on node0: 3 requests, and no token in 30 s"


@pytest.mark.parametrize(
    ("activities", "kind", "reason"),
    [
        (
            {**WORKS, "node1": activity({**IDLE, "state": "T"})},
            "cpu",
            "process 7 (VLLM::Worker_TP) on node1 is stopped",
        ),
        (
            {**WORKS, "node1": activity(unreachable=("10.77.1.10",))},
            "cuda",
            "node1 does not reach 10.77.1.10: the link",
        ),
        ({"node0": activity(SPINS, IDLE), "node1": activity(IDLE)}, "cpu", "no rank computed, read or sent anything"),
    ],
    ids=["stopped", "cut", "still"],
)
def test_a_hang_is_named_at_once_by_what_the_ranks_do(activities: Any, kind: str, reason: str) -> None:
    ready = {"node0": answer(), "node1": answer()}
    found = trouble(ready, Engine((3, 100)), activities=activities, kind=kind)
    assert found is not None and found.startswith(f"tp2-0 on node0: 3 requests, and no token: {reason}")
    # A token that came while it was looked: whatever was seen, it works.
    assert trouble(ready, Engine((3, 100), (3, 100), (3, 101)), activities=activities, kind=kind) is None


@pytest.mark.parametrize(
    ("activities", "kind"),
    [
        (WORKS, "cpu"),
        ({"node0": activity(IDLE, sent=1e6), "node1": activity(IDLE)}, "cpu"),
        ({"node0": activity(IDLE, sent=1e6), "node1": activity(unreachable=("10.77.1.10",))}, "cpu"),
        ({"node0": activity({**IDLE, "state": "D"}), "node1": activity(IDLE)}, "cpu"),
        ({"node0": activity(IDLE), "node1": activity(IDLE)}, "xpu"),
        ({"node0": activity(IDLE), "node1": None}, "cpu"),
        ({"node0": activity(IDLE), "node1": {"processes": [{"state": 1}]}}, "cpu"),
        ({}, "cpu"),
    ],
    ids=["computes", "sends", "sends and no echo", "reads", "on a card", "silent", "odd", "nothing"],
)
def test_a_long_step_is_waited_for(activities: Any, kind: str) -> None:
    engine = Engine(*[(3, 100)] * 6, (3, 101))
    assert trouble({"node0": answer(), "node1": answer()}, engine, activities=activities, kind=kind) is None


@pytest.mark.parametrize(
    "engine",
    [Engine((2, 100)), Engine((0, 100), canary="timed out")],
    ids=["with requests", "idle"],
)
def test_a_worker_with_a_stopped_process_is_trouble_when_its_engine_makes_nothing(engine: Engine) -> None:
    stopped = {"tp2-0": {"stage": "ready", "reason": None, "stopped_processes": [41]}}
    found = trouble({"node0": answer(), "node1": stopped}, engine)
    assert found == "process 41 of tp2-0 on node1 is stopped: the ranks wait for it"


@pytest.mark.parametrize("engine", [Engine((2, 100), (2, 101)), Engine((0, 100))], ids=["with requests", "idle"])
def test_an_engine_that_lost_a_stopped_helper_and_works_is_left_alone(engine: Engine) -> None:
    stopped = {"tp2-0": {"stage": "ready", "reason": None, "stopped_processes": [41]}}
    assert trouble({"node0": stopped, "node1": answer()}, engine, settle=True) is None


def test_a_late_canary_is_no_sign_while_tokens_come() -> None:
    ready = {"node0": answer(), "node1": answer()}
    assert trouble(ready, Engine((0, 100), (0, 100), (4, 109), canary="timed out")) is None


def test_an_idle_engine_is_asked_for_one_token() -> None:
    answers = {"node0": answer(), "node1": answer()}
    assert trouble(answers, Engine((0, 100))) is None
    assert trouble(answers, Engine((0, 100), canary="timed out")) == "tp2-0 on node0: timed out"
    # The last request ended between two looks, and the engine hangs.
    assert trouble(answers, Engine((1, 100), (0, 100), canary="timed out")) == "tp2-0 on node0: timed out"


def test_the_record_of_actions_is_bounded_and_survives_a_cut_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opts = {"cluster_directory": str(tmp_path)}
    monkeypatch.setattr(audit, "LARGEST_BYTES", 2000)
    for number in range(100):
        audit.note(opts, "restart", f"cause {number}", "x" * 100)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5000
    with (tmp_path / audit.FILE).open("a") as file:
        file.write('{"time": 1, "act')
    found = audit.entries(opts, 3)
    assert [entry["cause"] for entry in found] == ["cause 97", "cause 98", "cause 99"]


def test_a_look_that_was_asked_for_meanwhile_follows_and_the_restart_is_still_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("_runners/recover.py", "recover_runner")
    module.__opts__ = world.opts
    module.__salt__ = {}
    looks: list[str] = []
    # Ending the ranks ends processes, and each end asks for a look.
    answers = iter([{"serves": True, "restarted": True, "reason": "killed"}, {"serves": True, "reason": "x"}])

    def run(_self: Any, cause: str, _settle: bool) -> dict[str, Any]:
        looks.append(cause)
        if len(looks) == 1:
            assert module.worker_exited("node1")["serves"] is None
        return next(answers)

    monkeypatch.setattr(module, "Nodes", lambda _opts: None)
    monkeypatch.setattr(module.Recovery, "run", run)
    assert module.look() == {"serves": True, "restarted": True, "reason": "x"}
    assert len(looks) == 2
    assert not (tmp_path / module.AGAIN).exists()


def test_restarts_that_a_person_has_mended_the_cause_of_do_not_count(world: World) -> None:
    module = load("_runners/recover.py", "recover_runner_forgetting")
    module.__opts__ = world.opts
    for _ in range(2):
        world.sick = 1
        world.run()
    assert len(records.read(world.opts, records.RECOVERY)["restarts"]) == 2
    module.forget_restarts()
    assert records.read(world.opts, records.RECOVERY) == {}
    (entry,) = audit.entries(world.opts, 1)
    assert (entry["action"], entry["result"]) == ("forget restarts", "2 restarts do not count any more")
    assert recovery.decide([], world.now).restart
