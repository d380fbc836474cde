"""The runner that reprovisions, with stand-ins for Salt's client, the boot record and the image store."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import salt._logging
from salt.exceptions import CommandExecutionError

from bottleneck.profile import load_profile
from bottleneck.profile.local_overrides import set_mac
from bottleneck.profile.paths import repository_directory
from control import gateway, locks, node_starts, reprovision_attempts, reprovisioning
from tests import sealing
from tests.by_file import load

REPOSITORY = Path(__file__).parents[2]
PROFILE = repository_directory() / "profiles" / "arc-a770" / "v0.1.yaml"
RECORD = {
    "deployment": "pp2",
    "overrides": {"max_num_seqs": 4},
    "workers": [
        {"node": "node0", "name": "pp2-0", "head": True, "api_port": 8000},
        {"node": "node1", "name": "pp2-0", "head": False, "api_port": None},
    ],
}


class World:
    """Two nodes that boot what is active, the boot record, the images; `broken` images do not come back."""

    def __init__(self) -> None:
        self.active, self.previous, self.canary = "new", "old", None
        self.runs = {"node0": "old", "node1": "old"}
        self.boots = {"node0": 1, "node1": 1}
        self.broken: set[str] = set()
        self.silent: set[str] = set()
        self.requests = {"running": 0.0, "waiting": 0.0}
        self.deployed: dict[str, Any] = dict(RECORD)
        self.done: list[str] = []
        self.states_fail = False
        self.deaf: dict[str, int] = {}  # how many questions a minion that has just begun misses

    def reboot(self, node: str) -> None:
        self.done.append(f"reboot {node}")
        if self.active not in self.broken:
            self.runs[node] = self.active
            self.boots[node] += 1

    # Runners

    def functions(self) -> dict[str, Callable[..., Any]]:
        return {
            "image.active": lambda: {"digest": self.active, "previous": self.previous, "canary": self.canary},
            "image.rollback": self.rollback,
            "boot.status": lambda node: {
                **{"node": node, "boot": str(self.boots[node]), "image": self.runs[node], "stuck": None},
                "stages": {"script": {"at": 1.0}, "enrolled": {"at": 2.0}},
            },
            "boot.arm": lambda node: self.done.append(f"arm {node}"),
            "cluster.undeploy": self.undeploy,
            "cluster.deploy": self.deploy,
            "cluster.apply": self.apply,
            "cluster.deployment_record": lambda: self.deployed,
        }

    def rollback(self) -> None:
        self.done.append("rollback")
        self.active = self.previous

    def undeploy(self) -> None:
        self.done.append("undeploy")
        self.deployed = {}
        if self.silent:
            raise CommandExecutionError("node1 did not answer: its workers may still run")

    def deploy(self, deployment: str, overrides: dict[str, Any] | None) -> None:
        self.done.append(f"deploy {deployment} {overrides}")

    def apply(self, only: list[str]) -> dict[str, Any]:
        self.done.append(f"apply {only[0]}")
        failed = [{"id": "base", "comment": "it broke"}] if self.states_fail else []
        return {only[0]: {"failed": failed}}


class Client:
    """Stands in for Salt's client."""

    world: World

    def __init__(self, mopts: Any) -> None:
        pass

    def cmd(self, hosts: list[str], function: str, arguments: Any = (), **keywords: Any) -> dict[str, Any]:
        world = self.world
        answers: dict[str, Any] = {}
        for host in hosts:
            if host in world.silent:
                continue
            if function == "worker.status":
                requests = world.requests if host == "node0" else {}
                answers[host] = {"pp2-0": {"stage": "stopped", "requests": requests}}
            elif function == "file.read":
                answers[host] = json.dumps({"digest": "0" * 16}) if host == "node0" else "no such file"
            elif function == "test.ping" and world.boots[host] > 1 and world.deaf.get(host, 0) > 0:
                world.deaf[host] -= 1
                continue
            else:
                answers[host] = True
        return answers

    def cmd_async(self, host: str, function: str) -> None:
        assert function == "system.reboot"
        self.world.reboot(host)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World()


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World) -> Any:
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    (tmp_path / "arc-a770").mkdir()
    shutil.copy(PROFILE.parents[1] / "engines.yaml", tmp_path)
    profile = tmp_path / "arc-a770" / "v0.1.yaml"
    text = PROFILE.read_text().replace("drain: 5 min", "drain: 1 ms").replace("return: 15 min", "return: 1 ms")
    profile.write_text(
        text.replace("power: {by: wake-on-lan}", f"power: {{by: command, cycle: [touch, {tmp_path}/on]}}")
    )
    for number, node in enumerate(("node0", "node1")):
        set_mac(profile, node, "ethernet", f"02:77:00:00:00:1{number}")
    sealing.nodes_answer(monkeypatch)
    monkeypatch.setattr("control.nodes.salt.client.LocalClient", type("Local", (Client,), {"world": world}))
    monkeypatch.setattr(reprovisioning, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(reprovisioning, "PROMOTION_SECONDS", 0.0)
    for name in ("drain", "serve"):

        def asked(_opts: Any, nodes: list[str], name: str = name) -> None:
            world.done.append(f"{name} {' '.join(nodes)}")

        monkeypatch.setattr(gateway, name, asked)
    module = load("_runners/reprovision.py")
    module.__opts__ = {"cluster_profile": str(profile), "cluster_directory": str(tmp_path / "state")}
    module.__salt__ = world.functions()
    return module


def one(node: str) -> list[str]:
    return [f"arm {node}", f"reboot {node}", f"apply {node}"]


DOWN = ["drain node0", "undeploy"]
UP = "deploy pp2 {'max_num_seqs': 4}"


def test_all_nodes_come_back_with_the_new_image(runner: Any, world: World) -> None:
    result = runner.run()
    assert result["ok"], result["summary"]
    assert world.done == [*DOWN, *one("node0"), *one("node1"), UP]
    assert world.runs == {"node0": "new", "node1": "new"}
    assert runner.status()["summary"] == "node0, node1 came back"


def test_a_dry_run_touches_nothing(runner: Any, world: World) -> None:
    planned = runner.run(["node1"], test=True)
    assert (planned["waiting"], planned["renewed"], planned["image"]) == (("node1",), ["node1"], "new")
    assert world.done == [] and runner.status() == {}


def test_an_image_that_does_not_come_back_is_rolled_back(runner: Any, world: World) -> None:
    world.broken = {"new"}
    result = runner.run()
    assert not result["ok"] and result["restored"] == ("node0",) and result["image"] == "old"
    assert world.done == [*DOWN, "arm node0", "reboot node0", "rollback", *one("node0"), UP]
    assert "boot node0 failed: not back" in result["summary"] and "reached: nothing yet" in result["summary"]


def test_an_image_that_was_rolled_back_by_itself_is_not_rolled_back_twice(
    runner: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.broken = {"new"}
    original = world.reboot

    def reboot(node: str) -> None:
        original(node)
        # The boot service ends a trial whose canary stays away.
        world.active, world.previous = "old", "older"

    monkeypatch.setattr(world, "reboot", reboot)
    result = runner.run()
    assert "rollback" not in world.done and world.active == "old"
    assert result["restored"] == ("node0",)


def test_nothing_is_sent_to_a_minion_that_does_not_listen_yet(runner: Any, world: World) -> None:
    world.deaf = {"node0": 3}
    profile = Path(runner.__opts__["cluster_profile"])
    profile.write_text(profile.read_text().replace("return: 1 ms", "return: 1 min"))
    assert runner.run(["node0"])["ok"]
    assert world.deaf == {"node0": 0}


def test_a_minion_that_never_answers_is_not_back(runner: Any, world: World) -> None:
    world.deaf = {"node0": 10**6}
    assert "node0 is enrolled, but its minion does not answer" in runner.run(["node0"])["summary"]


def test_states_that_fail_are_named(runner: Any, world: World) -> None:
    world.runs = {"node0": "new", "node1": "new"}
    world.states_fail = True
    result = runner.run(["node1"])
    assert "apply node1 failed: base: it broke" in result["summary"]
    assert "rollback" not in world.done, "the image is the one that it ran before"


def test_requests_that_do_not_end_keep_it_serving(runner: Any, world: World) -> None:
    world.requests = {"running": 2.0, "waiting": 1.0}
    result = runner.run()
    assert world.done == ["drain node0", "serve node0"]
    assert "3 requests did not end" in result["summary"] and "--force" in result["summary"]
    world.done.clear()
    assert runner.run(force=True)["ok"]
    assert world.done[:2] == DOWN


def test_a_silent_node_is_switched_by_its_power_hook(runner: Any, world: World, tmp_path: Path) -> None:
    world.silent = {"node1"}
    result = runner.run(["node1"])
    assert (tmp_path / "on").exists()
    # Nothing booted it here, so it is missed; but that it was silent did not keep the deployment from being taken down.
    assert "undeploy" in world.done and "reboot node1" not in world.done
    assert [failure["kind"] for failure in result["failures"]] == ["boot", "boot"]


def test_a_run_that_was_cut_off_still_knows_what_was_deployed(runner: Any, world: World, tmp_path: Path) -> None:
    def interrupted(only: list[str]) -> None:
        raise KeyboardInterrupt

    runner.__salt__["cluster.apply"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert runner.status()["summary"] == "cut off before it ended, at: apply node0"
    runner.__salt__["cluster.apply"] = world.apply
    assert runner.run()["ok"]
    assert world.done[-1] == UP


def test_two_at_the_same_time_are_refused(runner: Any, tmp_path: Path) -> None:
    with (
        locks.exclusive({"cluster_directory": tmp_path / "state"}, locks.REPROVISION, "x"),
        pytest.raises(CommandExecutionError, match="being reprovisioned already"),
    ):
        runner.run()


def test_what_cannot_be_booted_is_refused(runner: Any, world: World, tmp_path: Path) -> None:
    with pytest.raises(CommandExecutionError, match="no node node7"):
        runner.run(["node7"])
    (tmp_path / "arc-a770" / "v0.1.local.yaml").unlink()
    with pytest.raises(CommandExecutionError, match=r"mac: unknown; expected the MAC address of node0"):
        runner.run()
    runner.__opts__["cluster_profile"] = str(repository_directory() / "profiles" / "embedded.yaml")
    with pytest.raises(CommandExecutionError, match="do not boot over the network"):
        runner.run()
    assert world.done == []


def applied(runner: Any, node: str, profile: str) -> None:
    """Put on record under which profile the control node configured a node."""
    node_starts.write(runner.__opts__, node, node_starts.Applied(profile=profile))


def test_who_is_due_is_known_by_the_records(runner: Any, world: World) -> None:
    world.runs["node1"] = "new"
    digest = load_profile(runner.__opts__["cluster_profile"]).digest
    applied(runner, "node0", "0" * 16)
    assert runner.due() == {
        "node0": ["it runs image old; active is new", f"configured under profile {'0' * 16}; now {digest}"]
    }


def test_no_node_is_asked_whether_it_is_due(runner: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that says again and again that it was configured under another profile moves nothing."""
    world.runs = {"node0": "new", "node1": "new"}
    asked: list[str] = []
    original = Client.cmd

    def cmd(self: Any, hosts: list[str], function: str, *arguments: Any, **keywords: Any) -> Any:
        asked.append(function)
        if function == "file.read":
            return {host: json.dumps({"digest": "f" * 16}) for host in hosts}
        return original(self, hosts, function, *arguments, **keywords)

    monkeypatch.setattr(Client, "cmd", cmd)
    runner.__opts__["cluster_reprovision_on_change"] = True
    applied(runner, "node0", load_profile(runner.__opts__["cluster_profile"]).digest)
    assert [runner.changed() for _ in range(5)] == [{"due": {}}] * 5
    assert world.done == [] and asked == []


def test_the_reactor_starts_nothing_unless_it_may(runner: Any, world: World) -> None:
    assert runner.changed()["started"] is False
    assert world.done == []
    runner.__opts__["cluster_reprovision_on_change"] = True
    assert runner.changed()["ok"] is True
    assert "reboot node0" in world.done
    # A forged event finds nobody due whose records do not say so.
    world.done.clear()
    world.runs = {"node0": "new", "node1": "new"}
    runner.__salt__["image.active"] = lambda: {"digest": "new", "previous": "old", "canary": None}
    assert runner.changed() == {"due": {}} and world.done == []
    assert reprovision_attempts.read(runner.__opts__) == {}, "what worked is not counted any more"


class Clock:
    now = 1_795_000_000.0

    def time(self) -> float:
        return self.now


@pytest.mark.timeout(120)
def test_attempts_are_counted_spaced_and_at_last_left_to_a_person(
    runner: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(runner, "time", clock)
    runner.__opts__["cluster_reprovision_on_change"] = True
    world.runs["node1"] = "new"
    world.states_fail = True
    runner.__salt__["image.active"] = lambda: {"digest": "new", "previous": "older", "canary": None}
    runner.__salt__["image.rollback"] = lambda: None
    # Whatever is done, the record says again that it is due.
    runner.__salt__["boot.status"] = lambda node: {
        **{"node": node, "boot": str(world.boots[node]), "image": "old" if node == "node0" else "new", "stuck": None},
        "stages": {"enrolled": {"at": 2.0}},
    }
    began = clock.now
    tried: list[float] = []
    for _ in range(20):
        world.done.clear()
        if runner.changed().get("started"):
            tried.append(clock.now - began)
        clock.now += 300.0
    assert tried == [0.0, 600.0, 1800.0]
    assert world.done == []
    assert runner.due()["node0"][-1] == "given up after 3 attempts; when it is mended: cluster node clear node0"
    assert runner.clear("node0") == {"node": "node0", "cleared": True}
    assert runner.changed()["started"] is True
    assert runner.clear("node1")["cleared"] is False
    with pytest.raises(CommandExecutionError, match="no node stranger"):
        runner.clear("stranger")


@pytest.mark.parametrize("odd", ["", "[]", "{", '{"node0": 1}', '{"node0": ["x"]}'])
def test_without_a_count_nothing_is_rebooted(runner: Any, world: World, odd: str) -> None:
    runner.__opts__["cluster_reprovision_on_change"] = True
    path = Path(runner.__opts__["cluster_directory"]) / reprovision_attempts.FILE
    path.parent.mkdir(exist_ok=True)
    path.write_text(odd)
    with pytest.raises(CommandExecutionError, match="take the file away"):
        runner.changed()
    assert world.done == []
