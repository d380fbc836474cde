"""A rank is paused for a share of the time, and runs again however the pausing ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.test_perturb import MODULES, node
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

RANK = "tp2-0/VLLM::Worker_TP0"
PROGRAM = MODULES.parent / "salt" / "perturb" / "files" / "rank_pauser.py"


class Paused:
    """A node with one rank, which is no engine but computes as one."""

    def __init__(self, directory: Path) -> None:
        self.perturb = node(directory)
        self.salt = self.perturb.__salt__
        # As vLLM's processes have it: the title stands in place of the command line.
        rank = ["bash", "-c", 'exec -a VLLM::Worker_TP0 sh -c "while :; do :; done"']
        self.salt["supervise.start"]("worker-tp2-0", rank, {})
        self.ranks: dict[str, int] = wait_for(lambda: self.perturb.__salt__["actuator.look"]()["ranks"])
        plan = self.salt["actuator.plan"](self.change(0.2), str(directory))
        (((self.pid, _),),) = next(step[1:] for step in plan["undo"] if step[0] == "continue")
        self.control = Path(self.perturb._directory(), Path(plan["apply"][0][1]).name)

    def change(self, share: float) -> dict[str, Any]:
        return {"actuator": "rank_pause", "name": RANK, "share": share}

    def state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def pauser(self) -> int:
        owner = self.perturb.watchdog.lock_owner(str(self.control))
        assert owner is not None, "the pausing program does not run"
        return int(owner)

    def guard(self) -> int:
        pauser = self.pauser()
        return int(Path(f"/proc/{pauser}/task/{pauser}/children").read_text().split()[0])

    def freeze_in_a_pause(self) -> None:
        """Stop the pausing program at a moment in which the rank is stopped."""

        def caught() -> bool:
            if self.state() != "T":
                return False
            os.kill(self.pauser(), signal.SIGSTOP)
            wait_for(lambda: _state(self.pauser()) == "T", interval_seconds=0.001)
            if self.state() == "T":
                return True
            os.kill(self.pauser(), signal.SIGCONT)
            return False

        wait_for(caught, interval_seconds=0.0)

    def runs(self) -> bool:
        return self.perturb.watchdog.lock_owner(str(self.control)) is None and self.state() == "R"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paused]:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    made = Paused(tmp_path)
    yield made
    made.perturb.undo()
    wait_for(lambda: not made.perturb.watchdog.is_armed(made.perturb._directory()))
    for unit in ("worker-tp2-0", made.perturb.UNIT):
        made.salt["supervise.stop"](unit)


def test_a_rank_is_paused_and_runs_on_and_once_undone_it_is_left_alone(paused: Paused) -> None:
    assert paused.ranks == [RANK]
    seen = paused.perturb.set([paused.change(0.2)], 60)
    assert seen["armed"] and seen["applied"] == [{"change": paused.change(0.2), "before": 0.0}]
    for state in ("T", "R", "T", "R"):
        wait_for(lambda state=state: paused.state() == state, interval_seconds=0.0005)  # type: ignore[misc]
    first = paused.pauser()
    paused.perturb.set([paused.change(0.2)], 60)
    paused.perturb.set([paused.change(0.05)], 60)
    assert paused.pauser() == first and paused.control.read_text() == "0.05", "the one that runs takes the new share"
    assert paused.perturb.undo() == [paused.change(0.05)]
    assert paused.runs() and not paused.control.exists()
    assert paused.perturb.undo() == []


def test_a_killed_pausing_program_leaves_no_rank_stopped(paused: Paused) -> None:
    paused.perturb.set([paused.change(0.2)], 600)
    guard = paused.guard()
    paused.freeze_in_a_pause()
    os.kill(paused.pauser(), signal.SIGKILL)
    # Long before the lease has expired.
    wait_for(paused.runs)
    wait_for(lambda: not Path(f"/proc/{guard}").exists())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_pausing_program_that_is_asked_to_end_leaves_no_rank_stopped(paused: Paused, number: int) -> None:
    paused.perturb.set([paused.change(0.2)], 600)
    os.kill(paused.pauser(), number)
    wait_for(paused.runs)


def test_without_its_guard_it_pauses_no_longer(paused: Paused) -> None:
    paused.perturb.set([paused.change(0.2)], 600)
    os.kill(paused.guard(), signal.SIGKILL)
    wait_for(paused.runs)


def test_with_its_guard_killed_too_the_watchdog_continues_the_rank(paused: Paused) -> None:
    paused.perturb.set([paused.change(0.2)], 600)
    guard = paused.guard()
    paused.freeze_in_a_pause()
    os.kill(guard, signal.SIGKILL)
    os.kill(paused.pauser(), signal.SIGKILL)
    wait_for(lambda: paused.perturb.watchdog.lock_owner(str(paused.control)) is None)
    assert paused.state() == "T", "nobody is left but the watchdog"
    paused.perturb.renew(1)
    wait_for(paused.runs)
    assert not paused.control.exists()


def test_a_rank_that_ends_meanwhile_is_no_error(paused: Paused) -> None:
    paused.perturb.set([paused.change(0.2)], 600)
    os.kill(paused.pid, signal.SIGKILL)
    wait_for(lambda: paused.perturb.watchdog.lock_owner(str(paused.control)) is None)
    assert paused.perturb.undo() == [paused.change(0.2)]


def test_what_cannot_be_paused_is_refused_before_anything_is_done(paused: Paused) -> None:
    for wrong, words in (
        ({**paused.change(0.2), "name": "tp2-0/VLLM::Worker_TP7"}, rf"does not run here: expected one of {RANK}"),
        (paused.change(0.5), r"share 0\.5: expected 0\.01 to 0\.25"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=words):
            paused.perturb.set([wrong])
    os.kill(paused.pid, signal.SIGSTOP)
    wait_for(lambda: paused.state() == "T")
    # Somebody else stopped it: to continue it is not ours.
    with pytest.raises(RuntimeError, match="is stopped already"):
        paused.perturb.set([paused.change(0.2)])
    assert not paused.perturb.status()["armed"]
    os.kill(paused.pid, signal.SIGCONT)


def test_another_process_of_the_same_number_is_left_alone(paused: Paused, tmp_path: Path) -> None:
    control = tmp_path / "control"
    control.write_text("0.2")
    argv = [sys.executable, "-S", "-E", str(PROGRAM), str(control), f"{paused.pid}:1"]
    finished = subprocess.run(argv, timeout=60, check=False)
    # It has nothing to pause, so it ends by itself.
    assert finished.returncode == 0 and control.exists()
    paused.perturb.watchdog.perform([["continue", [[paused.pid, 1]]]])
    assert paused.state() == "R"
