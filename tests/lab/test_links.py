"""Modules that set up a node's network, in namespaces of this test's own: a full mesh, and a port held off."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="namespaces need root and iproute2"),
]
NODES = ("0", "1", "2", "3")
CALL = """
import importlib.util, json, sys
where, name, arguments, utils = json.loads(sys.stdin.read())
sys.path.append(utils)
specification = importlib.util.spec_from_file_location("module", where)
module = importlib.util.module_from_spec(specification)
specification.loader.exec_module(module)
print(json.dumps(getattr(module, name)(*arguments)))
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def call(space: str, module: str, function: str, *arguments: Any) -> Any:
    where = str(REPOSITORY / "_modules" / f"{module}.py")
    request = json.dumps([where, function, arguments, str(REPOSITORY / "_utils")])
    command = ["ip", "netns", "exec", space, sys.executable, "-c", CALL]
    finished = subprocess.run(command, input=request, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[2], 9), timeout=20, source_address=(sys.argv[1], 0))
except ConnectionRefusedError:
    sys.exit(0)
sys.exit(1)
"""


def reaches(space: str, source: str, address: str) -> bool:
    """Return whether an address answers, if only to refuse a connection."""
    command = ["ip", "netns", "exec", space, sys.executable, "-c", REACH, source, address]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


@pytest.fixture
def spaces() -> Iterator[list[str]]:
    names = [f"mesh{os.getpid()}-{node}" for node in NODES]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for first, second in combinations(range(len(NODES)), 2):
            ends = (f"to{second}", "netns", names[first]), (f"to{first}", "netns", names[second])
            ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_every_node_of_a_full_mesh_reaches_every_other_over_their_cable(spaces: list[str]) -> None:
    addresses = [f"10.242.1.{number}" for number in range(10, 10 + len(NODES))]
    for node, space in enumerate(spaces):
        peers = {addresses[other]: f"to{other}" for other in range(len(NODES)) if other != node}
        for _ in range(2):
            assert call(space, "link", "configure_mesh", "mesh0", addresses[node], 9000, peers) == peers
        assert call(space, "link", "mesh", "mesh0") == peers
        assert call(space, "link", "show", "to0" if node else "to1")["mtu"] == 9000
    for node, space in enumerate(spaces):
        for other, address in enumerate(addresses):
            if other != node:
                assert reaches(space, addresses[node], address), f"{node} -> {other}"
    # The address is the node's: one cable less takes away one peer, and nothing else.
    ip("-n", spaces[0], "link", "set", "to3", "down")
    assert call(spaces[0], "link", "mesh", "mesh0") == {addresses[1]: "to1", addresses[2]: "to2"}
    assert f"{addresses[0]}/32" in call(spaces[0], "link", "show", "mesh0")["addresses"]


def test_opposite_nodes_of_a_ring_reach_each_other_through_a_neighbour(spaces: list[str]) -> None:
    addresses = [f"10.242.1.{number}" for number in range(10, 10 + len(NODES))]
    for node, space in enumerate(spaces):
        right, left = (node + 1) % 4, (node - 1) % 4
        peers = {addresses[right]: f"to{right}", addresses[left]: f"to{left}"}
        through = {addresses[(node + 2) % 4]: addresses[min(right, left)]}
        for _ in range(2):
            assert call(space, "link", "configure_mesh", "ring0", addresses[node], 9000, peers, through) == peers
        assert call(space, "link", "through", "ring0") == through
        assert call(space, "link", "forwards", f"to{right}") and not call(space, "link", "forwards", "lo")
    for node, space in enumerate(spaces):
        for other, address in enumerate(addresses):
            if other != node:
                assert reaches(space, addresses[node], address), f"{node} -> {other}"
