"""Salt in a lab: the settings of master and minions, their keys, and when they are ready.

The settings are written as files and Salt is run as commands; nothing here imports it.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from bottleneck.plan.master import master_settings
from bottleneck.profile import Profile
from lab.layout import CONTROL, REPOSITORY, LabError

Files = dict[str, tuple[str, int]]
KeyPair = tuple[str, str]  # private, public

PKI = "/etc/salt/pki"
MASTER_LOG, MINION_LOG = "/var/log/salt/master", "/var/log/salt/minion"
_READY = b"Minion is ready to receive requests!"


def lab_master_settings(profile: Profile, profile_path: str) -> dict[str, Any]:
    """Return /etc/salt/master."""
    return {
        **master_settings(profile, profile_path, REPOSITORY),
        "enable_gpu_grains": False,
        "pki_dir": f"{PKI}/master",
        "cachedir": "/var/cache/salt/master",
        "sock_dir": "/run/salt/master",
        "pidfile": "/run/salt-master.pid",
        "log_file": MASTER_LOG,
        "key_logfile": "/var/log/salt/key",
        "worker_threads": 3,
    }


def minion_id(profile: Profile, node: str) -> str:
    """Return the id under which the master knows `node`."""
    return profile.nodes[node].hostname


def minion_settings(profile: Profile, node: str) -> dict[str, Any]:
    """Return /etc/salt/minion for `node`."""
    return {
        "user": "root",
        "log_level": "warning",
        "log_level_logfile": "info",
        # Without a resolver these lookups wait for one, and the lab's nodes have none.
        "enable_fqdns_grains": False,
        "enable_gpu_grains": False,
        "id": minion_id(profile, node),
        "master": str(profile.control.address),
        "pki_dir": f"{PKI}/minion",
        "cachedir": "/var/cache/salt/minion",
        "sock_dir": "/run/salt/minion",
        "pidfile": "/run/salt-minion.pid",
        "log_file": MINION_LOG,
        "enable_legacy_startup_events": False,
        # Everyone is near and known: come back quickly.
        "acceptance_wait_time": 1,
        "random_reauth_delay": 1,
        "rejected_retry": True,
        "recon_default": 100,
        "recon_max": 1000,
        "recon_randomize": False,
    }


def make_key_pairs(names: Iterable[str]) -> dict[str, KeyPair]:
    """Make an RSA key pair for each name, in the form that Salt itself writes."""
    wanted = list(names)
    with ThreadPoolExecutor(max_workers=len(wanted) or 1) as pool:
        return dict(zip(wanted, pool.map(lambda _: _key_pair(), wanted), strict=True))


def salt_files(profile: Profile, profile_path: str, keys: Mapping[str, KeyPair]) -> dict[str, Files]:
    """Return, for the control node and each node, the files under /etc/salt.

    Enrolment is by identity: the master holds each node's public key under exactly that
    node's id, and each node holds the master's. No key is ever accepted because it came.
    """
    private, public = keys[CONTROL]
    master: Files = {
        "/etc/salt/master": (_dump(lab_master_settings(profile, profile_path)), 0o600),
        f"{PKI}/master/master.pem": (private, 0o400),
        f"{PKI}/master/master.pub": (public, 0o644),
    }
    files = {CONTROL: master}
    for node in profile.nodes:
        node_private, node_public = keys[node]
        master[f"{PKI}/master/minions/{minion_id(profile, node)}"] = (node_public, 0o644)
        files[node] = {
            "/etc/salt/minion": (_dump(minion_settings(profile, node)), 0o600),
            f"{PKI}/minion/minion.pem": (node_private, 0o400),
            f"{PKI}/minion/minion.pub": (node_public, 0o644),
            f"{PKI}/minion/minion_master.pub": (public, 0o644),
        }
    return files


def start_daemon(command: list[str]) -> None:
    """Run `command` (a Salt daemon entered into its node) so that it belongs to the node, not to us."""
    finished = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if finished.returncode != 0:
        raise LabError(f"could not start {' '.join(command[-2:])}: {finished.stderr.strip()}")


def daemon_command(name: str, log: str) -> list[str]:
    """Return what starts `salt-master` or `salt-minion` inside a node, in a session of its own."""
    # What it says before its own log is open (a bad setting, a failed import) goes there too.
    script = f'mkdir -p {Path(log).parent} && exec setsid --fork "$@" >> {log} 2>&1 < /dev/null'
    return ["sh", "-c", script, "sh", f"{sys.prefix}/bin/{name}"]


def wait_for_minions(
    logs: Mapping[str, Path],
    inits: Mapping[str, int],
    deadline: float,
    on_ready: Callable[[str], None],
) -> None:
    """Wait until each minion says in its log that it takes requests.

    Raises
    ------
    LabError
        When a node ends meanwhile, or the deadline (monotonic seconds) passes.
    """
    waiting = dict(logs)
    read = dict.fromkeys(waiting, 0)
    descriptors = {os.pidfd_open(pid): node for node, pid in inits.items()}
    try:
        while waiting:
            # An ended node shows at once; logs are looked at in between.
            ended, _, _ = select.select(list(descriptors), [], [], 0.05)
            if ended:
                raise LabError(f"node {descriptors[ended[0]]} ended while Salt was starting")
            for node, path in list(waiting.items()):
                text = path.read_bytes()[read[node] :] if path.exists() else b""
                if _READY in text:
                    del waiting[node]
                    on_ready(node)
                read[node] += max(0, len(text) - len(_READY))
            if waiting and time.monotonic() > deadline:
                raise LabError(f"Salt is not ready on {', '.join(waiting)}: {last_lines(next(iter(waiting.values())))}")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def ping(command: Callable[[list[str]], list[str]], nodes: Iterable[str], deadline: float) -> None:
    """Have the master ask every node until all of them have answered.

    Raises
    ------
    LabError
        Naming those that had not answered by the deadline.
    """
    missing = set(nodes)
    while missing:
        patience = max(1.0, min(10.0, deadline - time.monotonic()))
        # One line of JSON per answer: `--static` would ask every node twice.
        argv = ["salt", "--out=json", "--out-indent=-1", f"--timeout={patience:.0f}", "-L", ",".join(sorted(missing))]
        finished = subprocess.run(
            command([*argv, "test.ping"]),
            capture_output=True,
            text=True,
            check=False,
            timeout=patience + 20,
            stdin=subprocess.DEVNULL,
        )
        for line in finished.stdout.splitlines():
            with suppress(ValueError):  # it prints a sentence when the master does not answer yet
                missing -= {node for node, answer in json.loads(line).items() if answer is True}
        if missing and time.monotonic() > deadline:
            reason = finished.stderr.strip().splitlines()[-1:] or ["no answer"]
            raise LabError(f"no answer to test.ping from {', '.join(sorted(missing))}: {reason[0]}")


def last_lines(path: Path, count: int = 3) -> str:
    """Return the end of a log as one line, for an error message."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return "its log is empty"
    return " | ".join(line.strip() for line in lines[-count:]) or "its log is empty"


def _key_pair() -> KeyPair:
    private = subprocess.run(["openssl", "genrsa", "-traditional", "2048"], capture_output=True, text=True, check=True)
    public = subprocess.run(
        ["openssl", "rsa", "-pubout"], input=private.stdout, capture_output=True, text=True, check=True
    )
    return private.stdout, public.stdout


def _dump(settings: Mapping[str, Any]) -> str:
    return "# Written by `cluster lab up`.\n" + yaml.safe_dump(dict(settings), sort_keys=False)
