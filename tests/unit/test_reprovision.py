"""The order in which nodes are reprovisioned, with a failure injected at every step."""

import json
from pathlib import Path
from typing import Any

import pytest

from bottleneck.profile.machine_types import Node
from netboot.reprovision import power, sequence
from netboot.reprovision.sequence import Action, State, after, begin, next_action

TP2 = {"deployment": "tp2", "overrides": {"max_num_seqs": 4}}
BOTH = frozenset({"node0", "node1"})
WHOLE = [
    *("drain", "undeploy"),
    *("arm node0", "reboot node0", "boot node0", "apply node0"),
    *("arm node1", "reboot node1", "boot node1", "apply node1"),
    "redeploy",
]


def named(action: Action) -> str:
    return f"{action.kind} {action.node}" if action.node else action.kind


def drive(state: State, failing: dict[int, str] | None = None) -> tuple[State, list[str]]:
    """Carry a run out; the actions with the numbers in `failing` go wrong."""
    done: list[str] = []
    for number in range(200):
        action = next_action(state)
        if action.kind == "end":
            return state, done
        done.append(named(action))
        state = after(state, (failing or {}).get(number))
    raise AssertionError(f"no end after {done}")


def test_one_node_at_a_time_the_canary_first() -> None:
    state = begin(["node0", "node1"], canary="node1", deployment=TP2, renewed=BOTH)
    ended, done = drive(state)
    assert done == [*WHOLE[:2], *WHOLE[6:10], *WHOLE[2:6], "redeploy"]
    assert ended.ok and ended.done == ("node1", "node0")
    assert sequence.summary(ended) == "node1, node0 came back"


def test_without_a_deployment_none_is_taken_down_or_put_back() -> None:
    ended, done = drive(begin(["node0", "node0"]))
    assert done == WHOLE[2:6] and ended.ok


def test_no_node_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        begin([])


# What is done after the action at which it goes wrong, with an image that the nodes did not run before.
BACK0 = ["arm node0", "reboot node0", "boot node0", "apply node0"]
BACK1 = ["arm node1", "reboot node1", "boot node1", "apply node1"]
AFTERWARDS: dict[str, list[str]] = {
    "drain": [],
    "undeploy": ["redeploy"],
    "arm node0": ["redeploy"],
    "reboot node0": ["redeploy"],
    "boot node0": ["rollback", *BACK0, "redeploy"],
    "apply node0": ["rollback", *BACK0, "redeploy"],
    "arm node1": ["redeploy"],
    "reboot node1": ["redeploy"],
    "boot node1": ["rollback", *BACK1, *BACK0, "redeploy"],
    "apply node1": ["rollback", *BACK1, *BACK0, "redeploy"],
    "redeploy": [],
}


@pytest.mark.parametrize("step", AFTERWARDS)
def test_a_failure_at_any_step(step: str) -> None:
    number = WHOLE.index(step)
    ended, done = drive(begin(["node0", "node1"], deployment=TP2, renewed=BOTH), {number: "it broke"})
    assert done[: number + 1] == WHOLE[: number + 1]
    assert done[number + 1 :] == AFTERWARDS[step]
    assert not ended.ok
    (failure,) = ended.failures
    assert named(Action(failure.kind, failure.node)) == step and failure.text == "it broke"
    assert f"{step} failed: it broke" in sequence.summary(ended)


@pytest.mark.parametrize("step", AFTERWARDS)
def test_an_image_that_the_nodes_ran_before_is_not_to_blame(step: str) -> None:
    number = WHOLE.index(step)
    ended, done = drive(begin(["node0", "node1"], deployment=TP2), {number: "it broke"})
    assert "rollback" not in done and not ended.ok
    assert done.count("redeploy") == (0 if step == "drain" else 1)


@pytest.mark.parametrize("first", range(len(WHOLE)))
@pytest.mark.parametrize("second", range(1, 12))
def test_two_failures_still_end_and_leave_nothing_undeployed(first: int, second: int) -> None:
    state = begin(["node0", "node1"], deployment=TP2, renewed=BOTH, attempts=2)
    ended, done = drive(state, {first: "one", first + second: "two"})
    assert ended.stage == "ended" and len(ended.failures) >= 1
    # Whatever was taken down was at least tried to be put back, once.
    assert done.count("redeploy") == (0 if done[-1] == "drain" else 1)
    assert done.count("rollback") <= 1
    assert max(done.count(f"reboot {node}") for node in BOTH) <= 3


def test_a_node_is_rebooted_again_before_its_image_is_to_blame() -> None:
    state = begin(["node0"], renewed=frozenset({"node0"}), attempts=2)
    ended, done = drive(state, {2: "slow"})
    assert done == [*BACK0[:3], *BACK0]
    assert ended.done == ("node0",) and len(ended.failures) == 1


def test_a_node_that_stays_away_with_the_old_image_too_does_not_stop_the_others_from_going_back() -> None:
    state = begin(["node0", "node1"], renewed=BOTH)
    ended, done = drive(state, {6: "lost", 10: "still lost"})
    assert done == [*BACK0, *BACK1[:3], "rollback", *BACK1[:3], *BACK0]
    assert ended.restored == ("node0",)
    assert "brought back to the image before: node0" in sequence.summary(ended)


def test_a_rollback_that_fails_ends_it() -> None:
    _, done = drive(begin(["node0"], renewed=BOTH, deployment=TP2), {4: "lost", 5: "no image before"})
    assert done == [*WHOLE[:5], "rollback", "redeploy"]


def test_a_state_is_plain_data_and_says_where_it_is() -> None:
    state = after(after(begin(["node0"], deployment=TP2)))
    document = json.loads(json.dumps(sequence.to_document(state)))
    assert document["stage"] == "nodes" and document["undeployed"] is True and document["ok"] is False
    assert sequence.summary(state) == "cut off before it ended, at: arm node0"


# Power ---------------------------------------------------------------------------------------------------------------


def node(tmp_path: Path, way: dict[str, Any] | None) -> Node:
    return Node.model_validate(
        {
            **{"hostname": "node0", "cores": 1, "memory": "1 GiB", "power": way},
            "accelerator": {"kind": "cpu", "memory": "1 GiB"},
            "links": {"ethernet": {"interface": "eth0", "mac": "02:77:00:00:00:10", "address": "127.0.0.1"}},
        }
    )


def switch(machine: Node, tmp_path: Path) -> list[str]:
    reported: list[str] = []
    power.cycle(
        machine,
        "ethernet",
        source="127.0.0.1",
        broadcast="127.0.0.1",
        tell=reported.append,
        secrets=tmp_path / "secrets",
    )
    return reported


def test_a_password_is_never_on_a_command_line(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "bmc").write_text("hunter2")
    (secrets / "bmc").chmod(0o600)
    machine = node(tmp_path, {"by": "ipmi", "address": "192.0.2.1", "user": "admin", "secret": "bmc"})
    lines = power.commands(machine, secrets)
    assert [line[-3:] for line in lines] == [["chassis", "bootdev", "pxe"], ["chassis", "power", "cycle"]]
    assert all("hunter2" not in word for line in lines for word in line)
    assert lines[0][lines[0].index("-f") + 1] == str(secrets / "bmc")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "bmc").write_text("hunter2")
    (tmp_path / "bmc").chmod(mode)
    with pytest.raises(power.PowerError, match=rf"mode {mode:o}.*chmod 600"):
        power.secret_file("bmc", tmp_path)
    with pytest.raises(power.PowerError, match="expected the password in it"):
        power.secret_file("none", tmp_path)


@pytest.mark.starts_programs
def test_a_command_is_run_as_it_is_written(tmp_path: Path) -> None:
    mark = tmp_path / "a b; c"
    assert switch(node(tmp_path, {"by": "command", "cycle": ["touch", str(mark)]}), tmp_path) == []
    assert mark.exists()
    with pytest.raises(power.PowerError, match="false ended with status 1: it said nothing"):
        switch(node(tmp_path, {"by": "command", "cycle": ["false"]}), tmp_path)
    with pytest.raises(power.PowerError, match="no-such-program is not installed on the control node"):
        switch(node(tmp_path, {"by": "command", "cycle": ["no-such-program"]}), tmp_path)


def test_a_person_is_reported(tmp_path: Path) -> None:
    assert switch(node(tmp_path, None), tmp_path) == [power.BY_HAND]
    assert switch(node(tmp_path, {"by": "hand", "instructions": "pull the plug"}), tmp_path) == ["pull the plug"]


def test_the_packet_that_wakes(tmp_path: Path) -> None:
    packet = power.magic_packet("02:77:00:00:00:10")
    assert len(packet) == 102 and packet[:6] == b"\xff" * 6
    assert packet[6:12] == packet[-6:] == bytes([2, 0x77, 0, 0, 0, 0x10])
    assert "woken" in switch(node(tmp_path, {"by": "wake-on-lan"}), tmp_path)[0]
