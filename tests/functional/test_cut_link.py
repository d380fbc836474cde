"""A cut link, seen by a real kernel: two network namespaces, a cable between them, and a connection that carries."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_for

pytestmark = [
    pytest.mark.starts_programs,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("ss"), reason="needs root, ip and ss"
    ),
]
UTILITIES = Path(__file__).parents[2] / "_utils"
ONE, OTHER = "10.99.1.1", "10.99.1.2"
# A busy machine takes its time for each look.
DEADLINE_SECONDS = 120.0
RECEIVES = f"""
import socket
server = socket.create_server(({OTHER!r}, 5001))
print("up", flush=True)
connection, _ = server.accept()
while connection.recv(65536): pass
"""
SENDS = f"""
import socket, time
connection = socket.create_connection(({OTHER!r}, 5001))
print("up", flush=True)
while True: connection.sendall(bytes(50000)); time.sleep(0.02)
"""
LOOKS = f"""
import json, sys
sys.path.insert(0, {str(UTILITIES)!r})
import rank_links
print(json.dumps([rank_links.is_suspected(sys.argv[1], True), rank_links.cut(sys.argv[1])]))
"""


class Cable:
    """Two namespaces with a cable between them."""

    def __init__(self) -> None:
        self.places = {ONE: f"cut-{os.getpid()}-one", OTHER: f"cut-{os.getpid()}-other"}
        self.running: list[subprocess.Popen[str]] = []

    def lay(self) -> None:
        one, other = self.places.values()
        for place in (one, other):
            ip("netns", "add", place)
        ip("link", "add", "cable", "netns", one, "type", "veth", "peer", "name", "cable", "netns", other)
        for address, place in self.places.items():
            ip("-n", place, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", place, "link", "set", "cable", "up")
        for address, program in ((OTHER, RECEIVES), (ONE, SENDS)):
            argv = ["ip", "netns", "exec", self.places[address], sys.executable, "-I", "-S", "-c", program]
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self.running.append(process)
            assert process.stdout is not None and process.stdout.readline() == "up\n"
        # The kernel says that a cable is in some time after it is.
        for address in self.places:
            wait_for(partial(self.is_sound, address), DEADLINE_SECONDS, f"a sound link at {address}")

    def is_sound(self, address: str) -> bool:
        return self.look(address) == [False, []]

    def remove(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for place in self.places.values():
            subprocess.run(["ip", "netns", "delete", place], check=False)

    def look(self, address: str) -> list[Any]:
        argv = ["ip", "netns", "exec", self.places[address], sys.executable, "-I", "-c", LOOKS, address]
        found: list[Any] = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
        return found

    def cut(self, address: str) -> str:
        """Wait until an end shows that the link is cut; return the first sentence that says so."""
        found: str = wait_for(lambda: "".join(self.look(address)[1][:1]), DEADLINE_SECONDS, f"a cut at {address}")
        return found


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    found = Cable()
    try:
        found.lay()
        yield found
    finally:
        found.remove()


def test_a_cable_that_is_out_shows_at_both_ends(cable: Cable) -> None:
    ip("-n", cable.places[OTHER], "link", "set", "cable", "down")
    assert cable.cut(ONE) == cable.cut(OTHER) == "the link cable of the ranks has no carrier"


def test_packets_that_are_lost_show_at_the_end_that_sends_and_a_peer_that_is_stopped_does_not(cable: Cable) -> None:
    receiver = cable.running[0]
    receiver.send_signal(signal.SIGSTOP)
    # Its kernel acknowledges until its buffer is full, and answers probes after that.
    assert [cable.look(ONE) for _ in range(3)] == [[False, []]] * 3
    receiver.send_signal(signal.SIGCONT)
    nobody = ("lladdr", "02:00:00:00:00:fe", "dev", "cable", "nud", "permanent")
    ip("-n", cable.places[OTHER], "neigh", "replace", ONE, *nobody)
    assert f"nothing comes from {OTHER} over the link of the ranks" in cable.cut(ONE)
