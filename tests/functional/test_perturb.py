"""Put back all that was slowed: by the one who asked, by the next change, and by the watchdog when nobody is left."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import by_file
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

MODULES = Path(__file__).parents[2] / "_modules"


def load(name: str, salt: dict[str, Any], options: dict[str, Any]) -> ModuleType:
    module = by_file.load(f"_modules/{name}.py")
    module.__salt__, module.__opts__ = salt, options
    for function in [each for each in dir(module) if not each.startswith("_") and callable(getattr(module, each))]:
        salt[f"{name}.{function}"] = getattr(module, function)
    return module


def node(directory: Path) -> Any:
    """The modules of one node, wired as Salt's loader does it, with their state in `directory`."""
    salt: dict[str, Any] = {}
    options = {"id": "node0", "cluster_perturb_directory": str(directory / "perturb")}
    supervise: Any = load("supervise", salt, options)
    supervise.DIRECTORY = str(directory / "supervise")
    actuator: Any = load("actuator", salt, options)
    actuator.PROGRAMS = str(MODULES.parent / "salt" / "perturb" / "files")
    return load("perturb", salt, options)


@pytest.fixture
def perturb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    module = node(tmp_path)
    yield module
    module.undo()
    wait_for(lambda: not module.watchdog.is_armed(module._directory()))
    module.__salt__["supervise.stop"](module.UNIT)


@pytest.fixture
def limit(tmp_path: Path) -> Path:
    """A kernel's file that holds a limit, as far as a test may have one."""
    path = tmp_path / "gt_max_freq_mhz"
    path.write_text("2400")
    return path


def clock(limit: Path, value: int) -> dict[str, Any]:
    return {"actuator": "setting", "name": "clock", "path": str(limit), "value": value}


def test_a_change_is_made_and_undone(perturb: Any, limit: Path) -> None:
    seen = perturb.set([clock(limit, 1200)], 30)
    assert limit.read_text() == "1200"
    assert seen["armed"] and 0 < seen["seconds_left"] <= 30
    assert seen["applied"] == [{"change": clock(limit, 1200), "before": "2400"}]
    assert perturb.undo() == [clock(limit, 1200)]
    assert limit.read_text() == "2400"
    assert perturb.status() == {"armed": False, "seconds_left": None, "applied": []}
    assert perturb.undo() == [], "undoing twice is no error"


def test_the_next_change_of_a_place_keeps_the_way_back_to_the_first_state(perturb: Any, limit: Path) -> None:
    perturb.set([clock(limit, 1200)])
    perturb.set([clock(limit, 600)])
    perturb.set([clock(limit, 600)])
    assert limit.read_text() == "600"
    assert [entry["before"] for entry in perturb.status()["applied"]] == ["2400"]
    perturb.set([])
    assert limit.read_text() == "2400" and perturb.status()["armed"], "put back, and still armed"


def test_a_node_takes_its_own_of_what_is_sent_to_all(perturb: Any, limit: Path) -> None:
    perturb.set({"node0": [clock(limit, 1200)], "node1": [clock(limit, 1)]})
    assert limit.read_text() == "1200"
    perturb.set({"node1": [clock(limit, 1)]})
    assert limit.read_text() == "2400"


def watched(module: Any, limit: Path, replace: Any = setattr) -> list[str]:
    """Note a file's content after every step, while the lock is taken: the watchdog cannot come in between."""
    performed, seen = module.watchdog.perform, []

    def perform(operations: Any) -> None:
        performed(operations)
        seen.append(limit.read_text())

    replace(module.watchdog, "perform", perform)
    return seen


def test_the_deadline_undoes_it(perturb: Any, limit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(perturb, limit, monkeypatch.setattr)
    perturb.set([clock(limit, 1200)], 1)
    assert seen == ["1200"]
    wait_for(lambda: limit.read_text() == "2400")
    wait_for(lambda: not perturb.status()["armed"])
    assert perturb.status()["applied"] == [] and perturb.renew(30) is False


def test_a_renewal_moves_the_deadline(perturb: Any, limit: Path) -> None:
    perturb.set([clock(limit, 1200)], 2)
    before = json.loads(Path(perturb._directory(), "state.json").read_text())["deadline"]
    assert perturb.renew(60) is True
    assert json.loads(Path(perturb._directory(), "state.json").read_text())["deadline"] > before + 50


def test_a_renewal_starts_a_watchdog_that_died_again(perturb: Any, limit: Path) -> None:
    perturb.set([clock(limit, 1200)], 30)
    owner = perturb.watchdog.lock_owner(f"{perturb._directory()}/watchdog")
    os.kill(owner, signal.SIGKILL)
    wait_for(lambda: not perturb.status()["armed"])
    assert limit.read_text() == "1200"
    assert perturb.renew(1) is True and perturb.status()["armed"], "renewed means that someone ends it"
    wait_for(lambda: limit.read_text() == "2400")


def test_without_a_watchdog_nothing_stays_slow_and_nothing_is_renewed(
    perturb: Any, limit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perturb.set([clock(limit, 1200)], 30)
    owner = perturb.watchdog.lock_owner(f"{perturb._directory()}/watchdog")
    os.kill(owner, signal.SIGKILL)
    wait_for(lambda: not perturb.status()["armed"])
    monkeypatch.setattr(perturb, "WATCHDOG_SECONDS", 0.2)
    monkeypatch.setitem(perturb.__salt__, "supervise.start", lambda *_, **__: {})
    assert perturb.renew(30) is False
    assert limit.read_text() == "2400"


DRIVER = """
import sys, time
sys.path.insert(0, {tests!r})
from tests.functional.test_perturb import clock, node, watched
from pathlib import Path
module, limit = node(Path({directory!r})), Path({limit!r})
seen = watched(module, limit)
module.set([clock(limit, 1200)], 2)
print(*seen, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_dies_leaves_nothing_slow(perturb: Any, limit: Path, tmp_path: Path, number: int) -> None:
    text = DRIVER.format(tests=str(MODULES.parent), directory=str(tmp_path), limit=str(limit))
    driver = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert driver.stdout
    assert driver.stdout.readline() == "1200\n"
    # The whole session of the driver, as when a minion is killed with its jobs.
    os.killpg(driver.pid, number)
    driver.wait(30)
    driver.stdout.close()
    wait_for(lambda: limit.read_text() == "2400")


def test_a_crash_between_the_note_and_the_deed_is_undone_as_well(
    perturb: Any, limit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    performed, seen = perturb.watchdog.perform, []

    def crash(operations: Any) -> None:
        performed(operations)
        seen.append(limit.read_text())
        raise SystemExit("killed here")

    monkeypatch.setattr(perturb.watchdog, "perform", crash)
    with pytest.raises(SystemExit):
        perturb.set([clock(limit, 1200)], 1)
    monkeypatch.undo()
    assert seen == ["1200"]
    wait_for(lambda: limit.read_text() == "2400")


def test_the_watchdog_puts_back_when_it_is_asked_to_stop(perturb: Any, limit: Path) -> None:
    perturb.set([clock(limit, 1200)], 600)
    perturb.__salt__["supervise.stop"](perturb.UNIT)
    assert limit.read_text() == "2400"


def test_one_step_that_cannot_be_undone_does_not_keep_the_others_from_it(
    perturb: Any, limit: Path, tmp_path: Path
) -> None:
    other = tmp_path / "power1_cap"
    other.write_text("100")
    away = tmp_path / "away"
    perturb.set([clock(limit, 1200), {**clock(other, 50), "name": "power"}])
    other.rename(away)
    with pytest.raises(RuntimeError, match="could not be put back"):
        perturb.undo()
    assert limit.read_text() == "2400" and away.read_text() == "50"
    away.rename(other)
    perturb.undo()
    assert other.read_text() == "100"


def test_commands_that_the_profile_names(perturb: Any, tmp_path: Path) -> None:
    state = tmp_path / "limit"
    state.write_text("300\n")
    change = {
        "actuator": "setting",
        "name": "power",
        "read": ["cat", str(state)],
        "write": ["sh", "-c", f"echo {{value}} > {state}"],
        "value": 150,
    }
    perturb.set([change])
    assert state.read_text() == "150\n"
    perturb.undo()
    assert state.read_text() == "300\n"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"actuator": "magic"}, "expected one of"),
        ({"actuator": "link_rate", "interface": "lo", "bytes_per_second": 1}, "at least 1000"),
        ({"actuator": "link_latency", "interface": "lo", "seconds": 2}, "0 to 1"),
        ({"actuator": "cpu_speed", "slowdown": 0.5}, "1 to 10"),
        ({"actuator": "cpu_quota", "cores": 0.001}, "at least 0.05"),
        ({"actuator": "setting", "path": "/nowhere/*", "value": 1}, "0 files on this node"),
    ],
)
def test_what_cannot_be_done_is_reported_before_anything_is_armed(perturb: Any, change: Any, expected: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=expected):
        perturb.set([change])
    assert not perturb.status()["armed"]
    with pytest.raises(ValueError, match="expected 1 to 900"):
        perturb.set([], 10_000)


def test_a_core_is_taken_away_and_given_back(perturb: Any) -> None:
    perturb.set([{"actuator": "cpu_speed", "slowdown": 2}], 60)
    cores = sorted(os.sched_getaffinity(0))
    burners = [perturb.watchdog.lock_owner(f"{perturb._directory()}/burner-{core}") for core in cores]
    assert all(burners)

    def ticks(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])

    # It uses its core, and sleeps in between.
    wait_for(lambda: all(ticks(pid) >= 10 for pid in burners))
    perturb.undo()
    assert all(perturb.watchdog.lock_owner(f"{perturb._directory()}/burner-{core}") is None for core in cores)


# -- links, in namespaces of their own

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("tc"), reason="needs root, unshare and tc"
)
NAMESPACES = """
set -e
mount -t sysfs none /sys -o ro
ip link set lo up
unshare -n sleep 300 &
peer=$!
trap 'kill $peer' EXIT
while [ "$(readlink /proc/$peer/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add v0 mtu 9000 type veth peer name v1 mtu 9000 address 02:00:00:00:00:02 netns $peer
nsenter -t $peer -n ip addr add 10.9.0.2/24 dev v1
nsenter -t $peer -n ip link set v1 up
ip addr add 10.9.0.1/24 dev v0
ip link set v0 up
echo ready
PEER=$peer "$@"
"""


def in_namespaces(text: str, tmp_path: Path) -> str:
    """Run a Python text beside a veth pair whose other end is in a namespace of its own; return what it printed."""
    prelude = (
        f"import sys, os, time, socket, subprocess, threading\nsys.path.insert(0, {str(MODULES.parent)!r})\n"
        "from pathlib import Path\nfrom tests.functional.test_perturb import node, wait_for\n"
        f"perturb = node(Path({str(tmp_path)!r}))\n"
    )
    unshared = ["unshare", "--net", "--mount", "--propagation", "private", "bash", "-c", NAMESPACES, "bash"]
    finished = subprocess.run(
        [*unshared, sys.executable, "-c", prelude + text], capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.removeprefix("ready\n").strip()


def test_a_node_without_modprobe_has_no_netem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small images lack the tool; the delay is then the relay's to make.
    monkeypatch.setenv("PATH", str(tmp_path))
    assert by_file.load("_modules/actuator.py")._has_netem() is False


@needs_namespaces
def test_a_links_rate_is_set_and_the_one_before_comes_back(tmp_path: Path) -> None:
    output = in_namespaces(
        """
def shown():
    return subprocess.run(["tc", "qdisc", "show", "dev", "v0"], capture_output=True, text=True).stdout.split(" root")
rate = {"actuator": "link_rate", "interface": "v0", "bytes_per_second": 1e6}
first = shown()[0].split()[1]
perturb.set([rate]); slowed = shown()[1]
perturb.set([]); assert shown()[0].split()[1] == first, shown()
subprocess.run("tc qdisc replace dev v0 root tbf rate 1000000000bps burst 1000000 limit 9000000".split(), check=True)
before = shown()[1]
perturb.set([rate]); perturb.set([{**rate, "bytes_per_second": 5e5}]); slower = shown()[1]
perturb.undo(); assert shown()[1] == before, (shown(), before)
subprocess.run("tc qdisc replace dev v0 root htb".split(), check=True)
try:
    perturb.set([rate])
except RuntimeError as error:
    print(error)
print(slowed, slower)
""",
        tmp_path,
    )
    assert "could not be put back" in output and "rate 8Mbit" in output and "rate 4Mbit" in output


@needs_namespaces
def test_a_connection_lives_through_a_delay_that_comes_and_goes(tmp_path: Path) -> None:
    output = in_namespaces(
        """
echo = '''
import socket
server = socket.create_server(("10.9.0.2", 7777))
print("up", flush=True)
peer, _ = server.accept()
while (data := peer.recv(65536)):
    peer.sendall(data)
'''
peer = ["nsenter", "-t", os.environ["PEER"], "-n", sys.executable, "-c", echo]
other = subprocess.Popen(peer, stdout=subprocess.PIPE)
other.stdout.readline()
line = socket.create_connection(("10.9.0.2", 7777))
line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
def trips(count=5):
    found = []
    for _ in range(count):
        begun = time.perf_counter(); line.sendall(b"x"); line.recv(1); found.append(time.perf_counter() - begun)
    return min(found)
def megabytes(count):
    data, got = b"x" * 2**20, 0
    def push():
        for _ in range(count): line.sendall(data)
    pusher = threading.Thread(target=push); pusher.start()
    while got < count * 2**20: got += len(line.recv(2**20))
    pusher.join()
delay = {"actuator": "link_latency", "interface": "v0", "peers": {"10.9.0.2": "02:00:00:00:00:02"}}
before = trips()
perturb.set([{**delay, "seconds": 0.05}])
held = trips(); megabytes(4)
perturb.set([{**delay, "seconds": 0.2}])
# A relay that runs looks at its control file now and then.
wait_for(lambda: trips(1) >= 0.2)
perturb.undo()
after = trips(); megabytes(4)
routes = subprocess.run(["ip", "route"], capture_output=True, text=True).stdout
# However long this machine takes for it: never shorter than the delay.
assert held >= 0.05, held
assert after < 0.05 or after < held, (after, held)
assert "dly-" not in routes and not Path(perturb._directory(), "delay-v0").exists()
perturb.set([{**delay, "seconds": 0.0}], 60)
owner = perturb.watchdog.lock_owner(f"{perturb._directory()}/delay-v0")
os.kill(owner, 9)
wait_for(lambda: "dly-" not in subprocess.run(["ip", "route"], capture_output=True, text=True).stdout)
trips()
perturb.undo()
line.close(); other.wait(10); print("lived")
""",
        tmp_path,
    )
    assert output == "lived"
