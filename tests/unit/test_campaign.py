"""The campaign of faults: its order, what it finds wrong, its table; no lab is started."""

from __future__ import annotations

import json
import platform
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab import campaign
from lab.campaign import course, endless_loop, faults, invariants, load, table
from lab.campaign.course import Result
from lab.campaign.invariants import Footprint, Telemetry
from lab.campaign.site import wait_for
from lab.layout import LabError


def test_a_seed_makes_the_same_faults_and_every_kind_comes_before_one_comes_again() -> None:
    kinds = list(campaign.KINDS)
    assert len(kinds) >= 25
    order = campaign.chosen(3, 2 * len(kinds), kinds)
    assert order == campaign.chosen(3, 2 * len(kinds), kinds) != campaign.chosen(4, 2 * len(kinds), kinds)
    assert sorted(order[: len(kinds)]) == sorted(order[len(kinds) :]) == sorted(kinds)
    assert campaign.chosen(3, 5, kinds) == order[:5]


def test_a_kind_that_is_not_known_is_named_before_anything_is_done() -> None:
    with pytest.raises(LabError, match="no kind of fault 'x'; expected some of: kill a follower's rank"):
        next(campaign.conduct("none", 1, 1, ["x"]))


PRINT = Footprint(
    {"node0": {"VLLM::": 2, "salt-minion": 2}, "control": {"salt-master": 12}},
    {"node0": ("eth0 tbf",), "control": ()},
    3,
    40,
)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (PRINT, []),
        (replace(PRINT, processes={"node0": {"salt-minion": 6}, "control": {"salt-master": 20}}), []),
        (replace(PRINT, processes={"node0": {"VLLM::": 3}}), ["3 processes VLLM:: on node0, 2 before"]),
        (replace(PRINT, processes={"node0": {"salt-minion": 7}}), ["7 processes salt-minion on node0, 2 before"]),
        (replace(PRINT, processes={"node0": {"sampler.py": 1}}), ["1 processes sampler.py on node0, 0 before"]),
        (replace(PRINT, qdiscs={"node0": (), "control": ()}), ["queueing disciplines of node0"]),
        (replace(PRINT, namespaces=4), ["4 network namespaces, 3 before"]),
        (replace(PRINT, mounts=41), ["41 mounts, 40 before"]),
    ],
)
def test_what_there_is_more_of_than_before_is_a_leak(now: Footprint, words: list[str]) -> None:
    found = invariants.leaks(PRINT, now)
    assert len(found) == len(words) and all(text.startswith(word) for text, word in zip(found, words, strict=True))


class Lab:
    """A lab that is only answers."""

    def __init__(self) -> None:
        self.nodes = ["node0"]
        self.status: dict[str, Any] = {"boot": "b", "acknowledged": 7, "dropped": 1}
        self.entries: list[dict[str, Any]] = []
        self.called: list[str] = []

    def sampler(self, _node: str) -> dict[str, Any]:
        return self.status

    def audit(self) -> list[dict[str, Any]]:
        return self.entries

    def processes(self, _place: str) -> list[Any]:
        return []

    def runner(self, function: str, *_arguments: str) -> Any:
        self.called.append(function)
        return {
            "nodes": {"node0": {"up": True, "workers": {"tp2-0": {"name": "tp2-0", "stage": "ready"}}}},
            "recovery": {"given_up": None},
            "deployment": {"deployment": "tp2"},
        }


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ({"boot": "b", "acknowledged": 8, "dropped": 1}, None),
        ({"boot": "c", "acknowledged": 1, "dropped": 0}, None),
        ({"boot": "b", "acknowledged": 7, "dropped": 1}, "nothing of node0"),
        ({"boot": "c", "acknowledged": 0, "dropped": 0}, "nothing of node0"),
        ({"boot": "b", "acknowledged": 9, "dropped": 2}, "gave up"),
        ({}, "nothing of node0"),
    ],
)
def test_samples_must_arrive_again_and_none_be_given_up(status: dict[str, Any], word: str | None) -> None:
    lab: Any = Lab()
    since = invariants.telemetry(lab)
    assert since == Telemetry({"node0": 1}, {"node0": "b"}, {"node0": 7})
    lab.status = status
    found = invariants.arrives(lab, since)
    assert not found if word is None else (len(found) == 1 and word in found[0])


@pytest.fixture
def outlived(monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab()
    monkeypatch.setattr(course, "RESTART_SECONDS", 0.0)
    monkeypatch.setattr(course, "OUTLIVED_SECONDS", 0.0)
    monkeypatch.setattr(course, "SERVES_SECONDS", 0.0)
    monkeypatch.setattr(invariants, "footprint", lambda _site: PRINT)
    return lab


def of(lab: Any, fault: faults.Fault) -> Result:
    def outcomes() -> list[dict[str, Any]]:
        return [{"began": 9e9, "ended": 9e9 + 1, "error": None}]

    return course._one(lab, fault, random.Random(1), PRINT, outcomes)


def test_a_restart_has_its_cause_and_its_times_on_record(outlived: Lab) -> None:
    def act(_site: Any, _chance: Any) -> str:
        outlived.status = {**outlived.status, "acknowledged": 8}
        entry = {"action": "restart", "cause": "a rank has ended", "result": "serves again", "time": 9e9}
        outlived.entries.append({**entry, "detected": 9e9})
        return "it"

    found = of(outlived, faults.Fault("x", act, ("ended",)))
    assert found.violations == () and found.detected_seconds is not None and found.cause == "a rank has ended"
    assert "recover.forget_restarts" in outlived.called
    outlived.status = {**outlived.status, "acknowledged": 7}
    wrong = of(outlived, faults.Fault("x", act, ("stopped",)))
    assert any("names none of stopped" in text for text in wrong.violations)


def test_requests_that_were_under_way_failed_when_the_last_of_them_had() -> None:
    def request(began: float, ended: float, error: str | None) -> dict[str, Any]:
        return {"began": began, "ended": ended, "error": error}

    earlier, answered = request(1.0, 4.0, "reset"), request(9.0, 30.0, None)
    later, under_way = request(11.0, 40.0, "refused"), [request(8.0, 12.0, "reset"), request(9.5, 13.0, "status 500")]
    assert course._failed([earlier, answered, later, *under_way], 10.0) == 3.0
    assert course._failed([earlier, answered, later], 10.0) is None


def test_no_restart_where_there_must_be_one_and_one_where_there_must_be_none_are_violations(outlived: Lab) -> None:
    missing = of(outlived, faults.Fault("x", lambda _site, _chance: "it", ("ended",)))
    assert any(text.startswith("no restart on record") for text in missing.violations)
    assert any(text.startswith("nothing of node0") for text in missing.violations)

    def act(_site: Any, _chance: Any) -> str:
        outlived.entries.append({"action": "restart", "cause": "busy", "result": "serves again", "time": 1.0})
        return "it"

    assert "ranks were started again: busy" in of(outlived, faults.Fault("x", act)).violations


@pytest.mark.starts_programs
def test_the_load_brings_the_key_of_a_file_with_nothing_in_its_environment(tmp_path: Path) -> None:
    """A place is entered with an environment of its own: the key that was put into the load's never arrived."""
    seen: list[str | None] = []

    class Engine(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_arguments: Any) -> None:
            pass

    key, outcomes = tmp_path / "key", tmp_path / "load.jsonl"
    key.write_text("secret\n")
    outcomes.touch()
    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        argv = [sys.executable, "-I", str(load.__file__), url, "tiny", str(key), str(outcomes), "1"]
        process = subprocess.Popen(argv, env={}, stderr=subprocess.DEVNULL)
        try:
            assert wait_for(lambda: '"error": null' in outcomes.read_text(), 60.0) is not None
        finally:
            process.kill()
            process.wait()
            server.shutdown()
    assert set(seen) == {"Bearer secret"}


@pytest.mark.starts_programs
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the loop is made of x86-64's instructions")
def test_a_process_that_waited_computes_without_end() -> None:
    waits = "import time\nwhile True: time.sleep(0.01)"
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", waits])
    own = Path(f"/proc/{process.pid}/stat")

    def ticks() -> int:
        return int(own.read_text().rpartition(")")[2].split()[11])

    try:
        # Past its own start, which computes.
        assert wait_for(lambda: Path(f"/proc/{process.pid}/syscall").read_text().startswith("230 "), 60.0) is not None
        before = ticks()
        endless_loop.begin(process.pid)
        assert wait_for(lambda: ticks() > before + 50, 120.0) is not None
    finally:
        process.kill()
        process.wait()


def test_where_a_thread_stands_is_the_last_of_its_numbers() -> None:
    assert endless_loop.instruction("230 0x1 0x0 0x7ffc 0x0 0x0 0x0 0x7ffe 0x7f10ff\n") == 0x7F10FF
    assert endless_loop.instruction("-1 0x7ffe 0x7f10fe\n") == 0x7F10FE
    with pytest.raises(LabError, match="'running'"):
        endless_loop.instruction("running\n")


RESULT = Result("kill", "it", 1.0, 2.0, 3.0, 50.0, "ended", ())


def test_figures_are_by_kind_and_of_all() -> None:
    results = [replace(RESULT, detected_seconds=float(number)) for number in range(1, 101)]
    other = Result("slow", "node0", None, None, None, 1.5, "", ("x",))
    found = table.summary([*results, other])
    assert found["kinds"]["kill"]["detected_seconds"] == {"median": 50.5, "p99": 99.0}
    assert found["kinds"]["slow"]["detected_seconds"] is None
    assert (found["faults"], found["all"]["violations"], found["violations"]) == (101, 1, ["slow (node0): x"])
    assert table.percentile([3.0], 0.99) == 3.0
    text = table.page([*results, other], "cluster lab campaign", "two cores")
    assert (
        "| kill | 100 | 50.5 / 99 | 2 / 2 | 3 / 3 | 50 / 50 | 0 |" in text
        and "| slow | 1 | - | - | - | 1.5 / 1.5 | 1 |" in text
    )
    assert "- slow (node0): x" in text and "median 50.5 s" in text
    assert "None of these faults ended the service." in table.page([other], "c", "s")
    json.dumps(found)


def test_the_load_ends_and_its_file_goes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded(Lab):
        name = "x"

        def deployment(self) -> dict[str, Any]:
            return {"workers": [{"head": True, "api_address": "10.0.0.1", "api_port": 8000}]}

        def path(self, _place: str, _path: str) -> Any:
            return tmp_path / "load.jsonl"

    class Process:
        ended = 0

        def kill(self) -> None:
            self.ended += 1

        wait = kill

    process = Process()
    monkeypatch.setattr("lab.campaign.course.operations.command", lambda *_arguments: ["true"])
    monkeypatch.setattr("lab.campaign.course.subprocess.Popen", lambda *_arguments, **_more: process)
    site: Any = Loaded()
    site.profile = type("P", (), {"model": type("M", (), {"name": "tiny"})})

    @contextmanager
    def opened() -> Iterator[Any]:
        with course.load(site) as outcomes:
            yield outcomes

    with opened() as outcomes:
        (tmp_path / "load.jsonl").write_text('{"began": 1, "ended": 2, "error": null}\n{"beg')
        assert outcomes() == [{"began": 1, "ended": 2, "error": None}]
    assert process.ended == 2 and not (tmp_path / "load.jsonl").exists()
