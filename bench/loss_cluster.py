"""The cluster of the bench of lost telemetry: a master with the telemetry engine, minions, samplers, plain senders."""

from __future__ import annotations

import collections
import contextlib
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "bench")]

from loss_nodes import CLOCK, PLAIN_TAG  # noqa: E402 (the folder of benches is no package)

from lab import node_processes  # noqa: E402

PROGRAMS = Path(sys.executable).parent
NODE_PROGRAM = str(REPOSITORY / "bench" / "loss_nodes.py")
STORE_MEGABYTES = 512
# Run by each process under test when it begins.
SET_CLOCK = f"""
import sys
sys.path.insert(1, {str(REPOSITORY / "bench")!r})
import loss_nodes
loss_nodes.believe_the_bench()
"""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            say(f"{what}: not within {seconds:.0f} s")
            return False
        time.sleep(0.5)
    return True


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Cluster:
    """The master, the minions and what runs beside them; what is killed is started again, as systemd would."""

    def __init__(self, folder: Path, nodes: int, rate: int) -> None:
        import yaml

        from bottleneck.profile import load_profile
        from tests import run_builder

        self.folder, self.rate, self.marker = folder, rate, f"{folder}"
        self.names = list(run_builder.NODES)[:nodes]
        described = yaml.safe_load(run_builder.PROFILE.read_text())
        described["sampler"] |= {"rate": f"{rate} Hz", "send_interval": "2 s", "acknowledge_interval": "4 s"}
        section = "telemetry" if "telemetry" in described else "perf"
        described[section] |= {"window": "15 s", "heartbeat_deadline": "5 s"}
        (folder / "profile.yaml").write_text(yaml.safe_dump(described))
        self.profile = load_profile(folder / "profile.yaml")
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SET_CLOCK)
        self.state = folder / "state"
        self.state.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={STORE_MEGABYTES}m", "loss", self.state], check=True)
        self.port = 9477
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.clocks = {name: self._clock(name) for name in ("master", *self.names)}

    def _clock(self, name: str) -> mmap.mmap:
        path = self.folder / f"{name}.clock"
        path.write_bytes(struct.pack("<d", 0.0))
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), 8)

    def set_clock(self, name: str, seconds: float) -> None:
        struct.pack_into("<d", self.clocks[name], 0, seconds)

    def configure(self) -> None:
        from bench.enrolment import configured
        from control import node_keys

        master = {
            "interface": "127.0.0.1",
            "auto_accept": True,
            "worker_threads": 2,
            "module_dirs": [str(REPOSITORY)],
            "cluster_profile": str(self.folder / "profile.yaml"),
            "cluster_store": str(self.state / "store.db"),
            "cluster_directory": str(self.state),
            "engines": [{"telemetry": {"address": "127.0.0.1", "port": self.port}}],
        }
        configured(self.folder, "master", master)
        for name in self.names:
            (self.folder / name).mkdir()
            minion = {
                "id": self.profile.nodes[name].hostname,
                "master": "127.0.0.1",
                "acceptance_wait_time": 1,
                "random_reauth_delay": 1,
                "recon_default": 100,
                "recon_max": 1000,
                "recon_randomize": False,
                "module_dirs": [str(REPOSITORY)],
                "cluster_telemetry_directory": str(self.folder / name / "telemetry"),
            }
            configured(self.folder / name, "minion", minion)
            settings = {
                "node": name,
                "links": {"ethernet": ["lo"]},
                "control": {"address": "127.0.0.1", "port": self.port},
                "minion": {"id": minion["id"], "sock_dir": str(self.folder / name / "minion" / "run")},
                "directory": str(self.folder / name / "telemetry"),
                "spool_directory": str(self.folder / name / "spool"),
                "key_file": str(self.folder / name / "node.key"),
                "worker_file": str(self.folder / name / "worker.json"),
                "supervise_directory": str(self.folder / name / "supervise"),
                **self.profile.sampler.model_dump(mode="json"),
            }
            (self.folder / name / "sampler.json").write_text(json.dumps(settings))
            key = node_keys.key_of({"cluster_directory": self.state}, str(minion["id"]))
            (self.folder / name / "node.key").write_text(key.hex())

    def start(self, what: str) -> None:
        kind, _, name = what.partition("-")
        folder = self.folder / name
        programs: dict[str, list[str]] = {
            "master": [str(PROGRAMS / "salt-master"), f"--config-dir={self.folder / 'master'}", "--log-level=warning"],
            "minion": [str(PROGRAMS / "salt-minion"), f"--config-dir={folder / 'minion'}", "--log-level=warning"],
            "sampler": [sys.executable, NODE_PROGRAM, "sampler", str(folder / "sampler.json"), str(folder / "taken")],
            "plain": [
                sys.executable,
                NODE_PROGRAM,
                "plain",
                str(folder / "minion"),
                str(folder / "sent"),
                str(self.rate),
            ],
        }
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        if kind in ("master", "sampler"):
            environment[CLOCK] = str(self.folder / f"{name or 'master'}.clock")
        if kind == "master":
            environment["PYTHONPATH"] = f"{self.folder / 'site'}:{REPOSITORY}"
        with (self.folder / f"{what}.log").open("ab") as log:
            self.processes[what] = subprocess.Popen(
                programs[kind],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, what: str, number: int = signal.SIGKILL) -> None:
        """End a daemon and all of its processes: they are one session."""
        process = self.processes.pop(what)
        if number != signal.SIGKILL:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        ended = []
        for pid, entry in node_processes.table().items():
            if entry.session == process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    ended.append(pid)
        process.wait()
        # This is the first process of its namespace: what it does not reap still looks alive to Salt, which then does
        # not start a second minion beside it.
        for pid in ended:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def kill_engine(self) -> None:
        """Kill the process of the master that holds the store; the master starts it again."""
        wait_for(self._kill_engine, 60.0, "a process that holds the store")

    def _kill_engine(self) -> bool:
        store = self.state / "store.db"
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if any(each.readlink() == store for each in (entry / "fd").iterdir()):
                    os.kill(int(entry.name), signal.SIGKILL)
                    return True
        return False

    def status(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self.folder / name / "telemetry" / "status.json").read_text())
            return found
        return {}

    def begun(self, name: str, seconds: float) -> None:
        """Wait until something of a node is stored and acknowledged."""
        wait_for(lambda: self.status(name).get("acknowledged", 0) > 0, seconds, f"{name}'s samples")

    def caught_up(self, name: str, seconds: float) -> None:
        """Wait until a node keeps no more than what it has just taken."""
        wait_for(lambda: self.status(name).get("waiting", 99) <= 8, seconds, f"{name}'s backlog")

    def taken(self, name: str, what: str = "taken") -> list[int]:
        path = self.folder / name / what
        content = path.read_bytes() if path.exists() else b""
        return [number for (number,) in struct.iter_unpack("<q", content[: len(content) // 8 * 8])]


class Listener(threading.Thread):
    """Counts the plain events that come over the master's bus."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.arrived: dict[str, list[int]] = collections.defaultdict(list)
        self.ending = False
        self._cluster = cluster

    def run(self) -> None:
        import salt.config
        import salt.utils.event

        options = salt.config.master_config(str(self._cluster.folder / "master" / "master"))
        while not self.ending:
            with (
                contextlib.suppress(Exception),
                salt.utils.event.get_master_event(options, options["sock_dir"], listen=True) as bus,
            ):
                while not self.ending:
                    event = bus.get_event(wait=1, tag=PLAIN_TAG, full=True, auto_reconnect=True)
                    if event:
                        self.arrived[event["tag"].removeprefix(PLAIN_TAG)] += event["data"]["data"]["n"]
