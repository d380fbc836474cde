"""Measure how long a booting node takes to enrol, against a real master with the boot engine, boot after boot of one.

    python bench/enrolment.py [--boots 5]

Each boot has a new key, as a node without a disk does. Prints one JSON document, medians and the largest, seconds:
`claim` from sending the proof to the answer (the key is the node's key then); `accepted` from the start of the
`salt-minion` process to the master's event that it let the minion in; `ready` to the minion's own start event, after
which it takes jobs; `bare` is the start of `salt-minion --version` alone, Python and its imports. Root, loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import salt.config
import salt.utils.event
import yaml

from tests import boot_profile, fake_image, hostile
from tests.waiting import free_port, listens, wait_for

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
NODE, MAC, ADDRESS = "node0", "02:77:00:00:00:10", "127.0.0.10"
DEADLINE_SECONDS = 120


def configured(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    """Write the configuration of one of Salt's daemons; return its folder."""
    config = folder / name
    config.mkdir()
    common = {
        "user": "root",
        "root_dir": str(config),
        "pki_dir": str(config / "pki"),
        "cachedir": str(config / "cache"),
        "sock_dir": str(config / "run"),
        "pidfile": str(config / "pid"),
        "log_file": str(config / "log"),
        "enable_fqdns_grains": False,
        "enable_gpu_grains": False,
    }
    (config / name).write_text(yaml.safe_dump({**common, **settings}))
    return config


@contextlib.contextmanager
def daemon(program: str, config: Path) -> Iterator[float]:
    """Run one of Salt's daemons; give the moment of its start, and end all of it afterwards."""
    started = time.time()
    process = subprocess.Popen(
        [str(PROGRAMS / program), "--config-dir", str(config), "--log-level=quiet"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def one_boot(folder: Path, number: int, url: str, ports: dict[str, int], bus: Any) -> dict[str, float]:
    private, public = hostile.key_pair()
    node = hostile.Node(url, ADDRESS, MAC)
    boot = asyncio.run(node.begin())
    begun = time.perf_counter()
    status, text = asyncio.run(hostile.post(url, json.dumps(boot.claim(public)).encode(), ADDRESS))
    claim = time.perf_counter() - begun
    if status != 200:
        sys.exit(f"the claim was refused: {status} {text}")
    place = folder / str(number)
    place.mkdir()
    config = configured(
        place,
        "minion",
        {
            "id": NODE,
            "master": "127.0.0.1",
            "master_port": ports["ret_port"],
            "publish_port": ports["publish_port"],
            "source_address": ADDRESS,
            "acceptance_wait_time": 1,
            "random_reauth_delay": 1,
            "rejected_retry": True,
            "master_finger": json.loads(text)["master_finger"],
        },
    )
    (config / "pki").mkdir(mode=0o700)
    for name, content in (("minion.pem", private), ("minion.pub", public)):
        (config / "pki" / name).write_text(content)
        (config / "pki" / name).chmod(0o600)
    seen: dict[str, float] = {"claim": claim}
    with daemon("salt-minion", config) as started:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not {"accepted", "ready"} <= seen.keys():
            event = bus.get_event(wait=1, full=True)
            now = time.time()
            if event and event["tag"] == "salt/auth" and event["data"].get("pub", "").strip() == public.strip():
                if event["data"].get("result") is not True:
                    sys.exit(f"the minion was turned away: {event['data'].get('act')}")
                seen.setdefault("accepted", now - started)
            elif event and event["tag"] == f"salt/minion/{NODE}/start":
                seen["ready"] = now - started
            if time.monotonic() > deadline:
                sys.exit(f"seen of the minion in {DEADLINE_SECONDS} s: {sorted(seen)}")
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boots", type=int, default=5)
    boots = parser.parse_args().boots
    # So that what was started is ended, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="ce-", dir="/tmp") as name:
        folder = Path(name)
        fake_image.publish(folder / "images", "enrolment")
        ports = {key: free_port() for key in ("boot", "publish_port", "ret_port")}
        links = {NODE: {"interface": "eth0", "mac": MAC, "address": ADDRESS}}
        links["node1"] = {"interface": "eth0", "mac": MAC[:-2] + "11", "address": "127.0.0.11"}
        control = {"address": "127.0.0.1", "interface": "lo"}
        described = boot_profile.described("enrolment", control, "127.0.0.0/24", links, {"port": ports["boot"]})
        profile = boot_profile.write(folder / "enrolment.yaml", described)
        settings = {
            "interface": "127.0.0.1",
            "publish_port": ports["publish_port"],
            "ret_port": ports["ret_port"],
            "auto_accept": False,
            "worker_threads": 2,
            "auth_events": True,
            "module_dirs": [str(REPOSITORY)],
            "cluster_profile": str(profile),
            "cluster_directory": str(folder),
            "engines": [{"boot": {"images": str(folder / "images"), "dhcp_log": str(folder / "dnsmasq.log")}}],
        }
        config = configured(folder, "master", settings)
        with daemon("salt-master", config):
            for port in ("boot", "ret_port"):
                wait_for(lambda port=port: listens(ports[port]), DEADLINE_SECONDS, f"the master's port {port}")
            options = salt.config.master_config(str(config / "master"))
            with salt.utils.event.get_master_event(options, options["sock_dir"], listen=True) as bus:
                found = [
                    one_boot(folder, number, f"http://127.0.0.1:{ports['boot']}", ports, bus) for number in range(boots)
                ]
    bare = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([str(PROGRAMS / "salt-minion"), "--version"], check=True, stdout=subprocess.DEVNULL)
        bare.append(time.perf_counter() - begun)
    result: dict[str, Any] = {"boots": boots}
    for key in ("claim", "accepted", "ready"):
        values = [each[key] for each in found]
        result[key] = {"median_seconds": round(statistics.median(values), 3), "most_seconds": round(max(values), 3)}
    result["bare"] = {"median_seconds": round(statistics.median(bare), 3)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
