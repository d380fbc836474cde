"""Answers and batches count when the node that they name has sealed them with its own key."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import salt.loader
import salt.payload
import salt.utils.event
from salt.exceptions import CommandExecutionError

from bottleneck import node_seal
from control import node_keys, refused_answers, sealed_answers
from control.nodes import Nodes
from tests import sealing
from tests.by_file import load
from tests.functional.minion_options import minion_options

JOB = "20260101000000000000"
NODE, OTHER = "node0", "node1"


@pytest.fixture
def opts(tmp_path: Path) -> dict[str, Any]:
    return {"cluster_directory": str(tmp_path / "cluster"), "sock_dir": str(tmp_path)}


class Bus:
    """The master's bus and Salt's client on it: a job is answered by events that are made when it is published."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.script: list[Callable[[dict[str, Any]], list[dict[str, Any]]]] = []
        self.events: list[dict[str, Any]] = []
        self.published: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(salt.utils.event, "get_event", lambda *_, **__: self)

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run_job(self, minions: list[str], function: str, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        self.published.append((function, keywords))
        job = {
            "jid": f"{JOB[:-2]}{len(self.published):02d}",
            "function": function,
            "nonce": keywords.get("executor_opts", {}).get("nonce"),
        }
        for make in self.script:
            self.events += make(job)
        return {"jid": job["jid"], "minions": minions}

    def get_event(self, wait: float, tag: str, **_: Any) -> dict[str, Any] | None:
        # One queue for all questions: what is for another stays in it.
        found = next((event for event in self.events if event["tag"].startswith(tag)), None)
        if found is None:
            time.sleep(min(wait, 0.005))
        else:
            self.events.remove(found)
        return found


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Bus:
    monkeypatch.setattr(sealed_answers, "STILL_WORKS_SECONDS", 0.2)
    monkeypatch.setattr(sealed_answers, "SETTLE_SECONDS", 0.01)
    return Bus(monkeypatch)


def returned(minion: str, value: Any) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """Return what makes the event of a return; `value` may be a function of the job."""

    def make(job: dict[str, Any]) -> list[dict[str, Any]]:
        found = value(job) if callable(value) else value
        return [{"tag": f"salt/job/{job['jid']}/ret/{minion}", "data": {"id": minion, "return": found}}]

    return make


def sealed(
    opts: dict[str, Any], signer: str, named: str, content: Any = True, **changed: Any
) -> Callable[[dict[str, Any]], str]:
    def make(job: dict[str, Any]) -> str:
        of_job = {"job": job["jid"], "nonce": job["nonce"], "function": job["function"], "failed": False}
        key = node_keys.key_of(opts, signer)
        return sealing.answer(key, named, **{**of_job, "content": content, **changed})

    return make


def ask(opts: dict[str, Any], bus: Bus, *minions: str, **more: Any) -> list[sealed_answers.Answer]:
    return list(sealed_answers.ask(opts, bus, minions or (NODE,), "test.ping", timeout=0.05, **more))


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda opts: True,
    "text": lambda opts: "True",
    "of another shape": lambda opts: {"sealed": True},
    "without parts": lambda opts: "sealed:",
    "with the other's key, in the node's name": lambda opts: sealed(opts, OTHER, NODE),
    "with the other's key, in its own name": lambda opts: sealed(opts, OTHER, OTHER),
    "to another job": lambda opts: sealed(opts, NODE, NODE, job="1"),
    "with another nonce": lambda opts: sealed(opts, NODE, NODE, nonce="0" * 32),
    "of another function": lambda opts: sealed(opts, NODE, NODE, function="test.version"),
    "changed after it was sealed": lambda opts: lambda job: sealed(opts, NODE, NODE)(job) + "AAAA",
    "with no seal before a text": lambda opts: lambda job: "sealed::" + sealed(opts, NODE, NODE)(job).split(":", 2)[2],
    "sealed as a batch": lambda opts: lambda job: _as_batch(opts, job),
    "no base64": lambda opts: lambda job: _raw(opts, "%%%"),
    "no packing": lambda opts: lambda job: _raw(opts, base64.b64encode(b"\xc1" * 40).decode()),
    "no mapping": lambda opts: lambda job: _raw(opts, base64.b64encode(salt.payload.dumps([1])).decode()),
}


def _raw(opts: dict[str, Any], text: str) -> str:
    return f"sealed:{node_seal.seal(node_keys.key_of(opts, NODE), node_seal.ANSWER, NODE, text)}:{text}"


def _as_batch(opts: dict[str, Any], job: dict[str, Any]) -> str:
    text = sealed(opts, NODE, NODE)(job).split(":", 2)[2]
    return f"sealed:{node_seal.seal(node_keys.key_of(opts, NODE), node_seal.BATCHES, NODE, text)}:{text}"


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_answer_is_refused_and_the_node_s_own_is_waited_for(
    name: str, opts: dict[str, Any], bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    node_keys.key_of(opts, NODE)
    bus.script = [returned(NODE, FORGED[name](opts))]
    assert ask(opts, bus) == []
    count = refused_answers.read(opts)[NODE]
    assert count >= 1 and "in the name of node0" in caplog.text
    bus.script.append(returned(NODE, sealed(opts, NODE, NODE, {"a": [1.5, None]})))
    assert ask(opts, bus) == [sealed_answers.Answer(NODE, {"a": [1.5, None]}, False)]
    assert refused_answers.read(opts)[NODE] > count


def test_no_answer_is_taken_of_a_node_that_never_had_a_key(opts: dict[str, Any], bus: Bus) -> None:
    bus.script = [returned(NODE, lambda _: "sealed:" + "0" * 64 + ":AAAA")]
    assert ask(opts, bus) == []


def test_a_node_that_works_is_waited_for_and_one_that_is_silent_is_not(opts: dict[str, Any], bus: Bus) -> None:
    """A node's word that it works is sealed, too: a forged one makes nobody wait."""
    rounds: list[str] = []

    def works(job: dict[str, Any]) -> list[dict[str, Any]]:
        if job["function"] != "saltutil.find_job":
            return []
        rounds.append(job["jid"])
        asked = {"jid": f"{JOB[:-2]}01"}
        if len(rounds) < 3:
            return returned(NODE, sealed(opts, NODE, NODE, asked))(job) + returned(OTHER, asked)(job)
        nonce = bus.published[0][1]["executor_opts"]["nonce"]
        return returned(NODE, sealed(opts, NODE, NODE))({"function": "test.ping", "nonce": nonce, **asked})

    bus.script = [works]
    for minion in (NODE, OTHER):
        node_keys.key_of(opts, minion)
    assert ask(opts, bus, NODE, OTHER) == [sealed_answers.Answer(NODE, True, False)]
    assert len(rounds) == 3 and refused_answers.read(opts)[OTHER] >= 1


def test_what_a_function_raised_is_a_failure_with_its_text(
    opts: dict[str, Any], bus: Bus, monkeypatch: pytest.MonkeyPatch, profile_opts: dict[str, Any]
) -> None:
    monkeypatch.setattr(Nodes, "client", bus)
    trace = "Traceback ...\nRuntimeError: no such card"
    bus.script = [returned(NODE, sealed(profile_opts, NODE, NODE, trace, failed=True))]
    with pytest.raises(CommandExecutionError, match=r"^node0: no such card$"):
        Nodes(profile_opts).call("node0", "test.ping")


@pytest.fixture
def profile_opts(opts: dict[str, Any]) -> dict[str, Any]:
    from bottleneck.profile import find_profile

    return {**opts, "cluster_profile": str(find_profile("embedded"))}


# -- who is there


def node(opts: dict[str, Any], has_key: list[str]) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """Return what makes the answers of a node that runs, and that takes its key over when it is asked to."""

    def make(job: dict[str, Any]) -> list[dict[str, Any]]:
        if job["function"] == "node_key.learn":
            has_key.append(job["jid"])
        if job["nonce"] is None:
            return returned(NODE, True)(job)
        return returned(NODE, sealed(opts, NODE, NODE) if has_key else "Executor 'sealed' is not available")(job)

    return make


def test_a_node_that_enrolled_or_lost_its_key_is_given_it_and_is_there_once_it_has_sealed(
    opts: dict[str, Any], bus: Bus
) -> None:
    for enrolled in (True, False):
        has_key: list[str] = []
        if enrolled:
            node_keys.renew(opts, NODE, keep_former=False)
        bus.script = [node(opts, has_key)]
        assert sealed_answers.present(opts, bus, [NODE], 0.05) == {NODE}
        assert len(has_key) == 1 and node_keys.is_proven(opts, NODE)
    bus.published.clear()
    assert sealed_answers.present(opts, bus, [NODE], 0.05) == {NODE}
    assert [function for function, _ in bus.published] == ["test.ping"]


def test_a_node_for_which_another_answers_is_not_there(
    opts: dict[str, Any], bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be one that was up for days, or one that was never configured: that is kept, and nothing acts on it."""
    monkeypatch.setattr(sealed_answers, "INTRODUCTION_SECONDS", 0.3)
    monkeypatch.setattr(sealed_answers, "FIRST_SEALED_SECONDS", 0.05)
    bus.script = [
        lambda job: returned(NODE, True)(job),
        lambda job: returned(NODE, sealed(opts, OTHER, NODE))(job),
    ]
    node_keys.renew(opts, NODE, keep_former=False)
    assert sealed_answers.present(opts, bus, [NODE], 0.05) == set()
    assert sealed_answers.may_be_up(opts, bus, NODE, 0.05)
    text = "a batch"
    seal = node_seal.seal(node_keys.key_of(opts, NODE), node_seal.BATCHES, NODE, text)
    assert node_keys.seal_holds(opts, node_seal.BATCHES, NODE, text, seal) and node_keys.is_proven(opts, NODE)
    assert sealed_answers.present(opts, bus, [NODE], 0.05) == set()
    assert not sealed_answers.may_be_up(opts, bus, NODE, 0.05)
    bus.script = []
    assert sealed_answers.present(opts, bus, [NODE, OTHER], 0.05) == set()


# -- on a node


@pytest.fixture
def minion(tmp_path: Path) -> dict[str, Any]:
    return {"id": NODE, "cluster_node_key": str(tmp_path / "node.key")}


@pytest.fixture
def executor(minion: dict[str, Any]) -> ModuleType:
    node_key = load("_modules/node_key.py", "node_key_module")
    node_key.__opts__ = minion
    found = load("_executors/sealed.py", "sealed_executor")
    found.__salt__ = {"node_key.seal": node_key.seal}
    return found


def run(executor: ModuleType, minion: dict[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
    data = {"jid": JOB, "fun": "a.function", "executor_opts": {"nonce": "n"}}
    return executor.execute(minion, data, function, arguments, {})


@pytest.mark.parametrize(
    ("function", "content", "failed"),
    [
        (lambda: True, True, False),
        (lambda: {1: "a number as a key", "b": (1, 2)}, {1: "a number as a key", "b": [1, 2]}, False),
        (lambda: {"result": False}, {"result": False}, True),
    ],
)
def test_what_the_executor_seals_is_what_the_control_node_opens(
    executor: ModuleType, minion: dict[str, Any], opts: dict[str, Any], function: Any, content: Any, failed: bool
) -> None:
    Path(minion["cluster_node_key"]).write_text(node_keys.key_of(opts, NODE).hex())
    found = sealed_answers.opened(opts, NODE, run(executor, minion, function))
    assert found == {
        "minion": NODE,
        "job": JOB,
        "nonce": "n",
        "function": "a.function",
        "content": content,
        "failed": failed,
    }
    with pytest.raises(sealed_answers.AnswerError):
        sealed_answers.opened(opts, OTHER, run(executor, minion, function))


def test_a_function_that_raises_has_a_sealed_answer_and_a_node_without_a_key_has_none(
    executor: ModuleType, minion: dict[str, Any], opts: dict[str, Any]
) -> None:
    def raising() -> None:
        raise RuntimeError("no such card")

    with pytest.raises(CommandExecutionError, match="cluster apply"):
        run(executor, minion, raising)
    Path(minion["cluster_node_key"]).write_text(node_keys.key_of(opts, NODE).hex())
    found = sealed_answers.opened(opts, NODE, run(executor, minion, raising))
    assert found["failed"] and found["content"].endswith("RuntimeError: no such card\n")


def test_salt_s_loader_finds_the_executor_where_a_sync_puts_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    assert (root / "salt" / "_executors" / "sealed.py").samefile(root / "_executors" / "sealed.py")
    found = salt.loader.executors(minion_options(tmp_path, NODE, module_dirs=[str(root)]), functions={})
    assert "sealed.execute" in found
