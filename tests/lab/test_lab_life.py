"""A lab's whole life on this machine: real namespaces, real Salt, and nothing left afterwards.

What `up` promises is tested here by what the machine shows: processes by control group,
namespaces, interfaces, queueing disciplines and mounts, before and after.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lab
from bottleneck.profile import Profile, find_profile, load_profile
from lab import layout, salt_config
from lab.cgroup_trees import discover

FIRST, SECOND = f"life-{os.getpid()}", f"life-{os.getpid()}-b"
COMMAND = [sys.executable, "-c", "from cli.lab_commands import app; app()"]
pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root")]


def on(name: str, node: str, *argv: str, timeout: float = 60) -> str:
    """Run a command on a node and return what it printed."""
    finished = subprocess.run(
        lab.command(name, node, argv), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert finished.returncode == 0, f"{argv} on {node}: {finished.stdout}{finished.stderr}"
    return finished.stdout


def ping(name: str) -> dict[str, bool]:
    return json.loads(on(name, "control", "salt", "--out=json", "--static", "*", "test.ping"))


def measured_bits_per_second(name: str, server_address: str) -> float:
    """Return what iperf3 gets from node0 to node1 on the network of `server_address`."""
    server = subprocess.Popen(
        lab.command(name, "node1", ["iperf3", "--server", "--one-off", "--bind", server_address]),
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: ":5201" in on(name, "node1", "ss", "-Hltn"), 10)
        answer = on(name, "node0", "iperf3", "--client", server_address, "--time", "3", "--omit", "1", "--json")
    finally:
        server.kill()
        server.wait()
    return float(json.loads(answer)["end"]["sum_received"]["bits_per_second"])


def wait_until(condition: Callable[[], bool], patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def traces() -> dict[str, Any]:
    """Return everything on the machine that could tell of the labs of this module."""
    hierarchy = discover()
    processes = [pid for name in (FIRST, SECOND) for pid in hierarchy.processes(name)]
    groups = [str(path) for tree in hierarchy.trees() for path in (tree / "cluster").glob(f"{FIRST}*")]
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return {
        "processes": processes,
        "groups": groups,
        "folders": [str(path) for path in layout.base_directory().glob(f"{FIRST}*")],
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if FIRST in line],
        "commands": [line for line in commands.splitlines() if FIRST in line],
        "named": subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout,
        "links": subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout,
        "qdiscs": subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True, check=True).stdout,
    }


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(find_profile("embedded"))


@pytest.fixture(scope="module")
def clean() -> dict[str, Any]:
    """The state of the machine before any lab of ours."""
    return traces()


@pytest.fixture(scope="module")
def first(profile: Profile, clean: dict[str, Any]) -> Iterator[str]:
    try:
        lab.up(profile, FIRST)
        yield FIRST
    finally:
        lab.down(FIRST)
        lab.down(SECOND)


def test_every_node_answers_and_is_its_own_machine(first: str) -> None:
    assert ping(first) == {"node0": True, "node1": True}
    assert on(first, "node0", "hostname").strip() == "node0"
    assert on(first, "node0", "cat", "/etc/machine-id") != on(first, "node1", "cat", "/etc/machine-id")
    on(first, "node0", "touch", "/etc/cluster/mine", "/tmp/mine", "/dev/shm/mine")
    assert on(first, "node1", "ls", "/etc/cluster", "/tmp", "/dev/shm").count("mine") == 0
    assert not Path("/etc/cluster/mine").exists()


def test_node_sees_its_own_links_cores_and_limits(first: str, profile: Profile) -> None:
    links = {link["ifname"]: link for link in json.loads(on(first, "node0", "ip", "-json", "address"))}
    assert set(links) == {"lo", "eth0", "usb4"}
    assert (links["usb4"]["mtu"], links["usb4"]["address"]) == (1500, "02:77:00:00:01:10")
    assert sorted(on(first, "node0", "ls", "/sys/class/net").split()) == ["eth0", "lo", "usb4"]
    status = lab.status(first)
    assert status["nodes"]["node0"]["memory_limit_bytes"] == profile.nodes["node0"].memory_bytes
    cores = [set(status["nodes"][node]["cores"]) for node in ("node0", "node1")]
    if len(os.sched_getaffinity(0)) >= 2:
        assert not cores[0] & cores[1]
    seen = on(first, "node0", "python3", "-c", "import os; print(sorted(os.sched_getaffinity(0)))")
    assert json.loads(seen) == sorted(cores[0])


def test_keys_are_accepted_by_identity_alone(first: str) -> None:
    listed = json.loads(on(first, "control", "salt-key", "--out=json", "--list-all"))
    assert sorted(listed["minions"]) == ["node0", "node1"]
    assert listed["minions_pre"] == listed["minions_denied"] == listed["minions_rejected"] == []
    assert "auto_accept: false" in on(first, "control", "cat", "/etc/salt/master")


def test_the_host_is_out_of_reach_but_for_package_hosts(first: str) -> None:
    script = (
        "import socket, urllib.request, urllib.error\n"
        "try:\n"
        "    socket.create_connection(('192.0.2.1', 80), 1)\n"
        "except OSError as error:\n"
        "    print('direct:', error.strerror)\n"
        "try:\n"
        "    urllib.request.urlopen('http://elsewhere.example/')\n"
        "except urllib.error.HTTPError as error:\n"
        "    print('egress:', error.code)\n"
    )
    assert on(first, "node0", "python3", "-c", script).splitlines() == ["direct: Network is unreachable", "egress: 403"]


def test_up_again_is_the_same_lab(first: str, profile: Profile) -> None:
    before = lab.status(first)
    started = time.monotonic()
    again = lab.up(profile, first)

    assert time.monotonic() - started < 2
    assert again["was_up"]
    assert {name: node["pid"] for name, node in again["nodes"].items()} == {
        name: node["pid"] for name, node in before["nodes"].items()
    }


def test_a_second_lab_is_beside_it(first: str, profile: Profile) -> None:
    lab.up(profile, SECOND)
    try:
        on(SECOND, "node0", "touch", "/var/lib/cluster/second")
        assert ping(SECOND) == ping(first) == {"node0": True, "node1": True}
        assert "second" not in on(first, "node0", "ls", "/var/lib/cluster").split()
    finally:
        assert lab.down(SECOND)
    assert ping(first) == {"node0": True, "node1": True}


def test_throttle_holds_a_network_to_a_rate_and_restore_lifts_it(first: str) -> None:
    lab.throttle(first, "ethernet", 20e6 / 8)
    assert lab.status(first)["networks"]["ethernet"] == {"rate_bytes_per_second": 2.5e6, "is_throttled": True}
    assert measured_bits_per_second(first, "10.77.0.11") == pytest.approx(20e6, rel=0.1)
    lab.throttle(first, "ethernet", None)
    assert lab.status(first)["networks"]["ethernet"] == {"rate_bytes_per_second": 1.25e8, "is_throttled": False}
    assert measured_bits_per_second(first, "10.77.0.11") > 200e6
    with pytest.raises(lab.LabError, match="no network usb; it has ethernet, direct"):
        lab.throttle(first, "usb", 1e6)


def test_slow_holds_a_node_to_a_share_of_a_core(first: str) -> None:
    spin = "import time; end = time.monotonic() + 2\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    lab.slow(first, "node1", 0.3)
    try:
        assert lab.status(first)["nodes"]["node1"]["quota_cores"] == pytest.approx(0.3)
        assert float(on(first, "node1", "python3", "-c", spin)) < 2 * 0.3 * 1.3
    finally:
        lab.slow(first, "node1", None)
    assert lab.status(first)["nodes"]["node1"]["quota_cores"] is None


def test_what_a_minion_starts_outlives_the_minion(first: str) -> None:
    script = "nohup setsid sleep 86399 > /dev/null 2>&1 < /dev/null & echo $!"
    pid = json.loads(on(first, "control", "salt", "--out=json", "--static", "node0", "cmd.run", script))["node0"]
    minion = on(first, "node0", "cat", "/run/salt-minion.pid")

    lab.restart_salt(first, "node0")
    wait_until(lambda: ping_quietly(first) == {"node0": True, "node1": True}, 30)

    assert on(first, "node0", "cat", "/run/salt-minion.pid") != minion
    assert on(first, "node0", "cat", f"/proc/{pid}/cmdline").split("\0")[:2] == ["sleep", "86399"]
    assert on(first, "node0", "cat", f"/proc/{pid}/stat").split()[3] == "1"


def ping_quietly(name: str) -> dict[str, bool]:
    command = lab.command(name, "control", ["salt", "--out=json", "--static", "-t", "3", "*", "test.ping"])
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return json.loads(finished.stdout or "{}")


def test_a_broken_lab_is_made_anew(first: str, profile: Profile) -> None:
    init = lab.status(first)["nodes"]["node1"]["pid"]
    os.kill(init, signal.SIGKILL)
    wait_until(lambda: not lab.status(first)["nodes"]["node1"]["running"], 5)
    assert not lab.status(first)["up"]
    with pytest.raises(lab.LabError, match=r"node1 of lab .* has ended"):
        lab.command(first, "node1", ["true"])

    assert not lab.up(profile, first)["was_up"]
    assert ping(first) == {"node0": True, "node1": True}


def test_down_keeps_logs_and_leaves_nothing_else(
    first: str, profile: Profile, clean: dict[str, Any], tmp_path: Path
) -> None:
    assert lab.down(first, keep_logs=tmp_path)
    assert "Minion is ready" in (tmp_path / "node0/salt/minion").read_text()
    assert (tmp_path / "control/salt/master").exists()
    assert traces() == clean
    assert not lab.down(first)


@pytest.mark.parametrize("patience_seconds", [0.15, 0.4, 0.8, 2.0])
def test_killed_up_is_cleaned_by_down(clean: dict[str, Any], patience_seconds: float) -> None:
    process = subprocess.Popen([*COMMAND, "up", FIRST], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    folder = layout.lab_directory(FIRST)
    wait_until(lambda: folder.exists(), 20)
    time.sleep(patience_seconds)
    process.kill()
    process.wait()

    lab.down(FIRST)
    assert traces() == clean


def test_down_needs_no_record(clean: dict[str, Any], profile: Profile) -> None:
    lab.up(profile, FIRST)
    (layout.lab_directory(FIRST) / "lab.json").unlink()

    assert lab.down(FIRST)
    assert traces() == clean


def test_interrupted_up_takes_its_parts_down(clean: dict[str, Any]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [*COMMAND, "up", FIRST], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        wait_until(lambda: bool(discover().processes(FIRST)), 20)
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(30) != 0
        assert traces() == clean


def test_failed_up_takes_its_parts_down(
    clean: dict[str, Any], profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(salt_config, "daemon_command", lambda name, log: ["sh", "-c", f"echo no {name} >&2; false"])
    with pytest.raises(lab.LabError, match=r"could not start .*no salt-master"):
        lab.up(profile, FIRST)
    assert traces() == clean


def test_the_owners_end_is_the_labs_end(clean: dict[str, Any], profile: Profile) -> None:
    owner = subprocess.Popen(["sleep", "600"], start_new_session=True)
    lab.up(profile, FIRST, owner=owner.pid)
    assert ping(FIRST) == {"node0": True, "node1": True}

    owner.kill()
    owner.wait()

    wait_until(lambda: not layout.lab_directory(FIRST).exists() and traces() == clean, 30)


def test_an_owner_that_kills_up_itself_leaves_nothing(clean: dict[str, Any]) -> None:
    """The demo is both: the process that runs `up` and its owner."""
    script = (
        "import os; from bottleneck.profile import *; from cli import lab\n"
        f"lab.up(load_profile(find_profile('embedded')), {FIRST!r}, print, os.getpid())"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if "Salt" in line:
            break
    process.kill()
    process.wait()

    wait_until(lambda: not layout.lab_directory(FIRST).exists() and traces() == clean, 30)


def test_shell_has_salt_at_hand(profile: Profile, clean: dict[str, Any]) -> None:
    """The tutorial's first step: a shell on the control node, typed into through a terminal."""
    lab.up(profile, FIRST)
    try:
        pid, terminal = os.forkpty()
        if pid == 0:
            os.execv(COMMAND[0], [*COMMAND, "shell", "control", "--lab", FIRST])
        os.write(terminal, b"salt '*' test.ping; exit\n")
        output = b""
        while select.select([terminal], [], [], 60)[0]:
            try:
                output += os.read(terminal, 4096)
            except OSError:
                break
        os.waitpid(pid, 0)
        assert output.count(b"True") == 2
    finally:
        lab.down(FIRST)
    assert traces() == clean
