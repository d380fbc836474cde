"""Output of `cluster boot` and `cluster node`, from a record as the control node gives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli import boot
from cli.control import ControlError
from cli.main import app
from netboot.boot import progress_report
from netboot.boot.events import (
    DhcpAsked,
    Refused,
    ScriptGiven,
    StageReached,
    Troubled,
    UnknownAsked,
)
from netboot.boot.state import apply, begin

LIMITS = progress_report.deadlines({})


def view(now: float = 400.0) -> dict[str, Any]:
    """Return a record: node0 is stuck at its image, node1 has never booted, a stranger asked."""
    state = begin(["node0", "node1"], 0.0)
    for event in (
        DhcpAsked(1.0, "node0"),
        ScriptGiven(5.0, "node0", "b" * 32, "aa" * 32, 305.0, "1" * 16, "02:00:00:00:00:01", "node0"),
        StageReached(8.0, "node0", "b" * 32, "kernel"),
        StageReached(12.0, "node0", "b" * 32, "initramfs"),
        Troubled(100.0, "node0", "image", "sha256 of root.squashfs is 12, expected 34, try 9", "b" * 32),
        UnknownAsked(50.0, "02:66:00:00:00:66", "", "UEFI x86-64"),
        Refused(60.0, "claim", "node1", "10.0.0.9", "late"),
    ):
        state = apply(event, state)
    shown: dict[str, Any] = json.loads(json.dumps(progress_report.view(state, now, LIMITS)))
    return shown


class Answering:
    """A control node that answers runners from a table."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any] | None]] = []

    def runner(self, function: str, arguments: dict[str, Any] | None = None, *_: object, **__: object) -> Any:
        self.asked.append((function, arguments))
        answer = self.answers[function]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Answering]:
    def answer(answers: dict[str, Any]) -> Answering:
        found = Answering(answers)
        monkeypatch.setattr(boot, "connect", lambda _profile, _lab: found)
        return found

    return answer


def printed(renderable: Any, width: int = 160) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_what_is_stuck_is_named_with_its_cause() -> None:
    text = printed(boot.frame(view(), 400.0))
    assert "stuck image for 6.47 min: sha256 of root.squashfs is 12, expected 34, try 9" in text
    assert "has not booted yet" in text
    assert "02:66:00:00:00:66" in text and "cluster node discover" in text
    assert "a claim from 10.0.0.9 as node1, late (1x)" in text


def test_what_is_under_way_is_shown_with_its_deadline() -> None:
    text = printed(boot.frame(view(20.0), 20.0))
    # Trouble is not kept back until the deadline.
    assert "image for 8 s of 180 s, trouble: sha256 of root.squashfs is 12, expected 34, try 9" in text


def test_watch_as_json_is_the_record(control: Callable[[dict[str, Any]], Answering]) -> None:
    control({"boot.show": view()})
    finished = CliRunner().invoke(app, ["boot", "watch", "--json"])
    assert finished.exit_code == 0
    assert json.loads(finished.stdout)["nodes"]["node0"]["stuck"]["stage"] == "image"


def test_show_says_where_the_time_went_and_fails_for_a_stuck_node(
    control: Callable[[dict[str, Any]], Answering],
) -> None:
    control({"boot.show": view()})
    finished = CliRunner().invoke(app, ["boot", "show", "node0"])
    assert finished.exit_code == 1
    assert "kernel" in finished.stdout and "100% of the time is attributed" in finished.stdout
    assert CliRunner().invoke(app, ["boot", "show", "node1"]).exit_code == 0
    assert CliRunner().invoke(app, ["boot", "show", "node9"]).exit_code == 2


def test_arm_and_block_reach_the_control_node(control: Callable[[dict[str, Any]], Answering]) -> None:
    asked = control({"boot.arm": {"node": "node0"}, "boot.block": {"node": "node0"}})
    assert CliRunner().invoke(app, ["boot", "arm", "node0", "--powered-on"]).exit_code == 0
    assert CliRunner().invoke(app, ["boot", "block", "node0"]).exit_code == 0
    assert asked.asked == [("boot.arm", {"node": "node0", "powered_on": True}), ("boot.block", {"node": "node0"})]


def test_discover_lists_strangers(control: Callable[[dict[str, Any]], Answering]) -> None:
    entry = {"mac": "02:66:00:00:00:66", "first": 1.0, "last": 2.0, "count": 3, "address": "", "detail": "UEFI x86-64"}
    control({"boot.discover": [entry]})
    assert "02:66:00:00:00:66" in CliRunner().invoke(app, ["node", "discover"]).stdout
    found = json.loads(CliRunner().invoke(app, ["node", "discover", "--json"]).stdout)
    assert found["machines"] == [entry]


def test_without_a_boot_engine_the_reason_is_reported(control: Callable[[dict[str, Any]], Answering]) -> None:
    control({"boot.show": ControlError("there is no boot record: is the boot engine running?")})
    finished = CliRunner().invoke(app, ["boot", "watch"])
    assert finished.exit_code == 1
    assert "is the boot engine running" in finished.output
