"""The live view: one frame of a recorded state, in terminals of any width."""

from __future__ import annotations

import io
import json
import random
from datetime import datetime
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from bottleneck.profile import load_profile
from bottleneck.telemetry.recent_rates import recent
from cli import top as top_module
from cli.control import ControlError
from cli.top import follow, frame, top
from tests.run_builder import PROFILE, STARTED, Shape, batches
from tests.run_verdict import verdict

Latest = dict[str, Any]


@pytest.fixture
def latest() -> Latest:
    """The answer of the telemetry.latest runner, eight seconds into the run, as it comes over the wire."""
    shape, now = Shape(), STARTED + 8
    seen = [batch for batch in batches(shape, "m", random.Random(1)) if now - 6 <= batch["t0"] < now]
    measured = {"link": {"name": "direct", "capacity_bytes_per_second": shape.link_ceiling}}
    found = {"window": {"start": now - 14, "end": now - 4}, "verdict": {**verdict(shape), "measured": measured}}
    state: Latest = json.loads(json.dumps({**recent(seen, load_profile(PROFILE), now), "verdict": found}))
    return state


def drawn(latest: Latest, width: int = 100, note: str = "") -> str:
    text = io.StringIO()
    console = Console(width=width, file=text, color_system=None, legacy_windows=False)
    console.print(frame(latest, width, note))
    return text.getvalue()


def test_frame_has_verdict_nodes_links_and_engine(latest: Latest) -> None:
    lines = drawn(latest).splitlines()
    assert "2 of 2 nodes up" in lines[0]
    assert any("Bandwidth of link direct  confidence 86% (strong), 4 s old" in line for line in lines)
    node1 = next(line for line in lines if line.startswith("node1"))
    assert "1.9 GiB of 5 GiB" in node1
    # The link's share is of the ceiling that the verdict was made with, not of the profile's 8 Gbit/s.
    direct = next(line for line in lines if line.startswith("direct node0"))
    assert "20 Mbit/s" in direct and "65%" in direct
    engine = lines[next(index for index, line in enumerate(lines) if line.startswith("engine")) + 1]
    assert engine.split()[:4] == ["node0", "4", "0", "6%"]


def test_frame_says_since_when_the_bottleneck_is_this_one_and_what_was_before(latest: Latest) -> None:
    assert "since" not in drawn(latest)
    before = {"class": "cpu_throttling", "node": "node1", "link": None}
    latest["verdict"]["window"] |= {"since": STARTED, "before": before}
    moment = datetime.fromtimestamp(STARTED).strftime("%H:%M:%S")
    assert f"since {moment}; before that: cpu_throttling node1" in drawn(latest)


@pytest.mark.parametrize("width", [30, 40, 56, 60, 90, 200])
def test_no_line_is_wider_than_the_terminal(latest: Latest, width: int) -> None:
    assert max(len(line) for line in drawn(latest, width).splitlines()) <= width


def test_narrow_terminal_keeps_the_numbers(latest: Latest) -> None:
    text = drawn(latest, 46)
    assert "…" not in text
    assert "98%" in text and "13.1 Mbit/s" in text


def test_lost_node_and_no_verdict_are_reported(latest: Latest) -> None:
    latest["nodes"]["node1"] = {"up": False, "age_seconds": 7.2}
    latest["nodes"]["node2"] = {"up": False, "age_seconds": None}
    latest["verdict"] = None
    text = drawn(latest)
    assert "1 of 3 nodes up" in text
    assert "node1  lost, silent for 7.2 s" in text
    assert "node2  never heard of" in text
    assert "no verdict yet" in text


def test_unknown_values_are_dashes() -> None:
    node: dict[str, Any] = {
        "up": True,
        "age_seconds": 1.0,
        "busy_ratio": None,
        "links": {"l": {}},
        "engine": {"running": None},
    }
    text = drawn({"time": 1.0, "nodes": {"n": node}, "verdict": {"verdict": {}}})
    assert "None" not in text and "nan" not in text
    assert drawn({})


def test_markup_in_names_is_only_text(latest: Latest) -> None:
    latest["nodes"] = {"[red]x[/red]": latest["nodes"]["node0"]}
    latest["verdict"]["verdict"]["title"] = "[blink]y"
    text = drawn(latest)
    assert "[red]x[/red]" in text and "[blink]y" in text


class FakeControl:
    """Answers like the control node: every entry of `lives` is one life of the watch runner, its frames or its end."""

    def __init__(self, latest: Latest, lives: list[int | Exception] | None = None) -> None:
        self.latest, self.lives = latest, lives or []
        self.calls: list[str] = []

    def runner(self, function: str, arguments: Any = None, on_progress: Any = None) -> Any:
        self.calls.append(function)
        if function == "telemetry.latest":
            return self.latest
        life = self.lives.pop(0) if self.lives else KeyboardInterrupt()
        if isinstance(life, int):
            for _ in range(life):
                on_progress(self.latest)
            return {}
        raise life


def followed(control: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Follow until the key q; return the note of every frame."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        follow(control, 2.0, lambda state, note: notes.append(note))
    return notes


def test_one_runner_sends_all_frames(latest: Latest, monkeypatch: pytest.MonkeyPatch) -> None:
    control = FakeControl(latest, [3])
    assert followed(control, monkeypatch) == ["", "", "", "the control node stopped sending; asking again"]
    assert control.calls == ["telemetry.watch", "telemetry.watch"]


def test_last_frame_stays_while_the_control_node_is_away(latest: Latest, monkeypatch: pytest.MonkeyPatch) -> None:
    control = FakeControl(latest, [1, ControlError("gone"), 1])
    notes = followed(control, monkeypatch)
    assert "the control node does not answer: gone" in notes
    assert notes[-2:] == ["", "the control node stopped sending; asking again"]


def test_no_answer_at_all_ends_it(latest: Latest) -> None:
    control: Any = FakeControl(latest, [ControlError("no store")])
    with pytest.raises(ControlError, match="no store"):
        follow(control, 2.0, lambda state, note: None)


def test_once_prints_one_frame_and_json_the_data(latest: Latest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_module, "connect", lambda profile, lab: FakeControl(latest))
    app = typer.Typer()
    app.command()(top)
    done = CliRunner().invoke(app, ["--once"])
    assert done.exit_code == 0, done.output
    assert "Bandwidth of link direct" in done.stdout
    document = json.loads(CliRunner().invoke(app, ["--json"]).stdout)
    assert document["schema"] == 1
    assert set(document["nodes"]) == {"node0", "node1"}
