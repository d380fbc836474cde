"""The look at what a worker's processes do, with real processes: one computes, one sleeps, one is stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.by_file import load
from tests.waiting import wait_for

COMPUTES = "while True: pass"
SLEEPS = "import time; time.sleep(600)"


@pytest.fixture
def started() -> Iterator[Callable[[str], int]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> int:
        running.append(subprocess.Popen([sys.executable, "-I", "-S", "-c", program]))
        return running[-1].pid

    yield start
    for each in running:
        each.kill()
        each.wait()


@pytest.fixture
def module() -> Any:
    return load("_modules/worker_activity.py", "worker_activity")


def of(module: Any, pids: list[int], **more: Any) -> dict[str, Any]:
    units = {"worker-tp2-0": pids}
    module.__salt__ = {"supervise.processes": lambda unit: units.get(unit, [])}
    found: dict[str, Any] = module.measure(["tp2-0", "elsewhere-0"], **more)
    return found


def states(found: dict[str, Any]) -> dict[int, str]:
    return {each["pid"]: each["state"] for each in found["processes"]}


def test_one_that_computes_is_told_from_one_that_sleeps_and_one_that_is_stopped(
    module: Any, started: Callable[[str], int]
) -> None:
    busy, idle, stopped = started(COMPUTES), started(SLEEPS), started(SLEEPS)
    os.kill(stopped, signal.SIGSTOP)

    # A busy machine may start a process late, and give it little of a core: looked at until it shows.
    def shows() -> bool:
        found = of(module, [busy, idle, stopped], seconds=0.3)
        shares = {each["pid"]: each["user"] for each in found["processes"]}
        return shares[busy] > 0.05 and shares[idle] < 0.05 and states(found)[stopped] == "T"

    wait_for(shows, 60.0, "the share of the one that computes")


def test_a_process_that_has_ended_and_a_worker_that_is_elsewhere_are_left_out(module: Any) -> None:
    found = of(module, [2**22 + 1], seconds=0.0)
    assert found["processes"] == [] and found["unreachable"] == []
    assert found["link_bytes_per_second"] >= 0.0


@pytest.mark.skipif(os.geteuid() != 0, reason="an echo request needs root")
def test_a_peer_that_answers_is_told_from_one_that_does_not(module: Any) -> None:
    # To the second nothing can be sent, as over a link that is down.
    peers = ["127.0.0.1", "255.255.255.255"]
    assert of(module, [], seconds=1.0, peers=peers)["unreachable"] == peers[1:]


def test_an_echo_request_has_the_checksum_that_makes_it_sum_to_nothing(module: Any) -> None:
    for number in (0, 1, 0x1234, 0xFFFF):
        packet = module._echo_request(number, 2)
        total = sum(int.from_bytes(packet[place : place + 2], "big") for place in range(0, len(packet), 2))
        assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
        reply = bytes([0x45]) + bytes(19) + bytes([0, *packet[1:]])
        assert module._is_reply(reply, number) and not module._is_reply(reply, number ^ 1)
    for odd in (b"", b"\x45", bytes(20), bytes(24)):
        module._is_reply(odd, 0)
