"""Faults of an enrolment, each injected: the node gets in after all, or its stage and the cause are named.

The enrolment is the node's own program, against the real boot service on loopback with a clock that is turned.
"""

from __future__ import annotations

import asyncio
import configparser
import json
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from netboot.boot.stages import NONCE_STAGES, nonce_lifetime_seconds
from tests import hostile
from tests.boot_bench import ADDRESSES, FINGER, MACS, Bench, bench
from tests.boot_steps import begin, fetch_kernel, report, up_to

ENROL = Path(__file__).parents[2] / "netboot" / "image" / "files" / "cluster-enrol"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as found:
        yield found


def environment(root: Path, service: Bench, boot: hostile.Boot, **changed: str) -> Path:
    """Write what the initramfs leaves for the enrolment; return the node's root."""
    values = {"URL": service.url, "BOOT": boot.boot, "NODE": boot.id, "ID": boot.id, "IMAGE": boot.image}
    values |= {"NONCE": boot.nonce, "MAC": boot.mac, **changed}
    path = root / "run" / "cluster" / "boot.env"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"CLUSTER_{name}={value}\n" for name, value in values.items()))
    return root


def enrol_command(root: Path, deadline_seconds: float) -> list[str]:
    """Return what runs the node's own enrolment program in a root of its own."""
    program = (
        "import runpy, sys; main = runpy.run_path(sys.argv[1])['main'];"
        " sys.exit(main(sys.argv[2], deadline_seconds=float(sys.argv[3]), refused_wait_seconds=0.1))"
    )
    return [sys.executable, "-I", "-c", program, str(ENROL), str(root), str(deadline_seconds)]


def enrol(root: Path, deadline_seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run the node's own enrolment program to its end."""
    argv = enrol_command(root, deadline_seconds)
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_a_node_enrols_with_its_own_program(service: Bench, tmp_path: Path) -> None:
    boot = begin(service)
    up_to(service, boot, "systemd")
    root = environment(tmp_path / "node", service, boot)
    finished = enrol(root)
    assert finished.returncode == 0, finished.stderr
    public = (root / "etc/salt/pki/minion/minion.pub").read_text().strip()
    assert service.keys.accepted == {"node0": public}
    settings = (root / "etc/salt/minion.d/50-enrolment.conf").read_text()
    assert f'master_finger: "{FINGER}"' in settings and 'id: "node0"' in settings and 'master: "127.0.0.1"' in settings
    assert (root / "etc/salt/pki/minion/minion.pem").stat().st_mode & 0o777 == 0o400
    assert boot.nonce not in (root / "run/cluster/boot.env").read_text()
    assert service.reached() == ["dhcp", "script", "kernel", "initramfs", "image", "systemd", "minion", "enrolled"]


def test_a_node_inside_every_deadline_is_let_in(service: Bench, tmp_path: Path) -> None:
    boot = begin(service)
    for stage in NONCE_STAGES[:-1]:
        service.now += service.settings.deadlines_seconds[stage] - 1
        assert service.stuck() == ("", ""), stage
        if stage == "kernel":
            fetch_kernel(service, boot)
        else:
            assert report(service, boot, stage) == 204
    service.now += service.settings.deadlines_seconds["enrolled"] - 1
    finished = enrol(environment(tmp_path / "node", service, boot))
    assert finished.returncode == 0, finished.stderr


def test_the_unit_reboots_a_node_that_is_refused_and_nothing_else() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(ENROL.with_name("cluster-enrol.service"))
    assert unit["Unit"]["FailureAction"] == "reboot"
    # Every other failure is tried again and never reaches the state "failed".
    assert (unit["Service"]["Restart"], unit["Service"]["RestartMode"]) == ("on-failure", "direct")
    status = runpy.run_path(str(ENROL))["REFUSED"]
    assert unit["Service"]["RestartPreventExitStatus"] == str(status)


def test_nonce_expired(service: Bench, tmp_path: Path) -> None:
    boot = begin(service)
    up_to(service, boot, "systemd")
    service.now += nonce_lifetime_seconds(service.settings.deadlines_seconds) + 1
    finished = enrol(environment(tmp_path / "node", service, boot))
    assert finished.returncode == 77 and "refused" in finished.stderr and "reboots" in finished.stderr
    assert not service.keys.accepted
    assert service.service.state.refusals[-1].reason == "late"
    assert service.stuck(after=61)[0] == "enrolled"
    # Its unit boots it again at that exit status, and it is in.
    assert enrol(environment(tmp_path / "again", service, begin(service))).returncode == 0


def test_another_master_answers(service: Bench, tmp_path: Path) -> None:
    """Whoever answers the claim without the nonce is not believed, and the right one is found later."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Impostor(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = json.dumps({"master_finger": FINGER.replace("ab", "cd"), "proof": "0" * 64}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            pass

    boot = begin(service)
    with HTTPServer(("127.0.0.1", 0), Impostor) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        root = environment(tmp_path / "node", service, boot, URL=f"http://127.0.0.1:{server.server_port}")
        finished = enrol(root, deadline_seconds=4)
        server.shutdown()
    assert finished.returncode == 1 and "without this boot's nonce" in finished.stderr
    assert not (root / "etc/salt/minion.d/50-enrolment.conf").exists()
    assert enrol(environment(root, service, boot)).returncode == 0


def test_http_killed_during_enrolment(service: Bench, tmp_path: Path) -> None:
    boot = begin(service)
    up_to(service, boot, "systemd")
    root = environment(tmp_path / "node", service, boot)
    service.kill()
    with subprocess.Popen(enrol_command(root, 60.0), stderr=subprocess.PIPE, text=True) as node:
        assert node.stderr
        # It has asked, found nobody, and will ask again.
        assert any("again in" in line for line in node.stderr)
        service.start()
        node.stderr.read()
    assert node.returncode == 0
    assert service.keys.accepted["node0"]


def test_answer_lost_on_the_way(service: Bench) -> None:
    boot, pub = begin(service), hostile.public_key()
    claim = json.dumps(boot.claim(pub)).encode()
    first = asyncio.run(hostile.post(service.url, claim, ADDRESSES["node0"]))
    again = asyncio.run(hostile.post(service.url, claim, ADDRESSES["node0"]))
    assert first == again and first[0] == 200


def test_key_store_full(service: Bench, tmp_path: Path) -> None:
    boot = begin(service)
    up_to(service, boot, "systemd")
    service.keys.broken = "No space left on device"
    root = environment(tmp_path / "node", service, boot)
    assert enrol(root, deadline_seconds=3).returncode == 1
    assert service.stuck(after=61) == ("enrolled", "the key could not be stored: No space left on device")
    service.keys.broken = ""
    assert enrol(root).returncode == 0


def test_the_right_mac_from_another_machine(service: Bench) -> None:
    """The kernel knows another MAC address behind the address that claims."""
    boot = begin(service)
    service.macs_seen[ADDRESSES["node1"]] = MACS["node1"]
    status, _ = asyncio.run(
        hostile.post(service.url, json.dumps(boot.claim(hostile.public_key())).encode(), ADDRESSES["node1"])
    )
    assert status == 403
    assert service.service.state.refusals[-1].reason == "sent with another MAC address"


def test_states_that_never_come(service: Bench, tmp_path: Path) -> None:
    boot = begin(service)
    up_to(service, boot, "systemd")
    assert enrol(environment(tmp_path / "node", service, boot)).returncode == 0
    stage, cause = service.stuck(after=901)
    assert stage == "applied" and "minion" in cause
