"""Doctor's look at a control node, in network namespaces: a DHCP server is found, on its interface alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("dnsmasq"), reason="needs root and dnsmasq"),
]
INSPECTION = Path(__file__).parents[2] / "cli" / "doctor" / "inspection.py"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def wires() -> Iterator[tuple[str, str]]:
    """Two namespaces with two cables between them: `cluster0` and `house0` on the first one's side."""
    here, there = f"ci{os.getpid()}a", f"ci{os.getpid()}b"
    try:
        for name in (here, there):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for number, near in enumerate(("cluster0", "house0")):
            ip("-n", here, "link", "add", near, "type", "veth", "peer", "name", f"far{number}", "netns", there)
            ip("-n", here, "address", "add", f"10.9.{number}.1/24", "dev", near)
            ip("-n", there, "address", "add", f"10.9.{number}.2/24", "dev", f"far{number}")
            ip("-n", here, "link", "set", near, "up")
            ip("-n", there, "link", "set", f"far{number}", "up")
        yield here, there
    finally:
        for name in (here, there):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def inspect(namespace: str, interface: str) -> dict[str, Any]:
    argv = [sys.executable, "-I", "-S", "-c", INSPECTION.read_text(), interface, "10.9.0.1", "/nowhere"]
    finished = subprocess.run(
        ["ip", "netns", "exec", namespace, *argv], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(finished.stdout))


def dnsmasq(namespace: str, interface: str, network: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *("ip", "netns", "exec", namespace, "dnsmasq", "--keep-in-foreground", "--port=0", "--conf-file=/dev/null"),
            *(f"--interface={interface}", "--bind-interfaces", f"--dhcp-range={network}.100,{network}.120,1h"),
            *(
                f"--dhcp-leasefile={folder / 'leases'}",
                f"--pid-file={folder / 'pid'}",
                "--log-facility=-",
                "--user=root",
            ),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_another_dhcp_server_is_found_on_that_interface_alone(wires: tuple[str, str], tmp_path: Path) -> None:
    here, there = wires
    alone = inspect(here, "cluster0")
    assert alone["dhcp"] == {"servers": [], "asked": True}
    assert alone["interface"]["addresses"][0] == "10.9.0.1/24"
    assert alone["interface"]["state"] == "up"
    assert alone["interface"]["default_routes"] == []
    assert alone["interface"]["others"] == ["cluster0", "house0"]

    # A server in the house is nobody's business; one on the cluster's wire is.
    house = dnsmasq(there, "far1", "10.9.1", tmp_path)
    try:
        assert inspect(here, "cluster0")["dhcp"]["servers"] == []
        found = inspect(here, "house0")["dhcp"]["servers"]
        assert found == ["10.9.1.2"]
    finally:
        house.terminate()
        house.wait(10)


def test_routes_ports_and_a_missing_interface_are_seen(wires: tuple[str, str], tmp_path: Path) -> None:
    here, _ = wires
    ip("-n", here, "route", "add", "default", "via", "10.9.0.2")
    server = dnsmasq(here, "cluster0", "10.9.0", tmp_path)
    try:
        seen = inspect(here, "cluster0")
        assert seen["interface"]["default_routes"] == ["cluster0"]
        holders = [each for each in seen["listeners"] if (each["protocol"], each["port"]) == ("udp", 67)]
        assert [each["program"] for each in holders] == ["dnsmasq"]
        assert inspect(here, "eth9")["interface"]["exists"] is False
    finally:
        server.terminate()
        server.wait(10)


def test_a_program_that_names_itself_by_its_path_is_known_by_its_name(wires: tuple[str, str]) -> None:
    """As Salt's processes do: what the kernel keeps of it is `/opt/cluster/ve`."""
    here, _ = wires
    listen = "import socket; s = socket.create_server(('10.9.0.1', 4505)); print('listens', flush=True); s.accept()"
    title = "/opt/cluster/venv/bin/python3.13 /opt/cluster/venv/bin/salt-master MWorker-0"
    argv = [
        "ip",
        "netns",
        "exec",
        here,
        "bash",
        "-c",
        'exec -a "$1" "$2" -c "$3"',
        "bash",
        title,
        sys.executable,
        listen,
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout and program.stdout.readline() == "listens\n"
            found = [each for each in inspect(here, "cluster0")["listeners"] if each["port"] == 4505]
            assert [(each["address"], each["program"]) for each in found] == [("10.9.0.1", "salt-master")]
        finally:
            program.kill()
