"""A control node in a namespace of this machine, for virtual machines that boot from it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bottleneck.profile import load_profile
from netboot.boot import dhcp_log, rendering, storage
from netboot.boot.settings import Settings
from netboot.boot.state import State
from rehearsal.machines import Network

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.prefix) / "bin"


@dataclass
class ControlNode:
    """Master with the boot engine, dnsmasq, and the profile they read."""

    network: Network
    folder: Path
    profile: Path
    images: Path

    def start(self) -> None:
        """Start dnsmasq and the master."""
        settings = Settings.of(load_profile(self.profile))
        boot = self.folder / "netboot"
        rendering.write_all(settings, boot, log_file=self.folder / "dnsmasq.log", user="root")
        language = [f"{name}={value}" for name, value in dhcp_log.ENVIRONMENT.items()]
        command = ["dnsmasq", "--keep-in-foreground", f"--conf-file={boot / 'dnsmasq.conf'}"]
        self.network.start(self.folder / "dnsmasq.out", "env", *language, *command)
        configuration = self.folder / "salt"
        configuration.mkdir()
        (configuration / "master").write_text(yaml.safe_dump(self._master(settings)))
        self.network.start(self.folder / "master.out", str(BIN / "salt-master"), "-c", str(configuration))
        self.settings = settings

    def _master(self, settings: Settings) -> dict[str, Any]:
        return {
            "interface": settings.address,
            "user": "root",
            # Salt would put every path below it, whole ones too.
            "root_dir": "/",
            "pki_dir": str(self.folder / "pki"),
            "cachedir": str(self.folder / "cache"),
            "sock_dir": str(self.folder / "run"),
            "pidfile": str(self.folder / "master.pid"),
            "log_file": str(self.folder / "master.log"),
            "log_level_logfile": "info",
            "key_logfile": str(self.folder / "key.log"),
            "auto_accept": False,
            "worker_threads": 2,
            "timeout": 20,
            "file_roots": {"base": [str(REPOSITORY / "salt")]},
            "pillar_roots": {"base": [str(REPOSITORY / "pillar")]},
            "module_dirs": [str(REPOSITORY)],
            "cluster_profile": str(self.profile),
            "cluster_store": str(self.folder / "store.db"),
            "cluster_directory": str(self.folder / "cluster"),
            "cluster_images": str(self.images),
            "enable_fqdns_grains": False,
            "enable_gpu_grains": False,
            "engines": [{"boot": {"dhcp_log": str(self.folder / "dnsmasq.log")}}],
        }

    def listens(self) -> bool:
        """Return whether the boot service answers."""
        port = f":{self.settings.port}"
        return port in self.network.run("ss", "-Hltn").stdout

    def kill_boot_service(self) -> None:
        """Kill the process that serves HTTP; the master starts it again, as it would anywhere."""
        found = self.network.run("ss", "-Hltnp", "sport", "=", f":{self.settings.port}").stdout
        pid = int(found.partition("pid=")[2].partition(",")[0])
        os.kill(pid, signal.SIGKILL)

    def record(self) -> State:
        """Return the boot record."""
        return storage.read(self.folder / "cluster" / "boot") or State(nodes={})

    def salt(self, target: str, function: str, *arguments: str, timeout: float = 300) -> dict[str, Any]:
        """Run `salt` and return each minion's answer."""
        argv = ["-c", str(self.folder / "salt"), "--out=json", "--out-indent=-1", f"--timeout={timeout:.0f}"]
        finished = self.network.run(
            str(BIN / "salt"), *argv, target, function, *arguments, check=False, timeout=timeout + 60
        )
        answers: dict[str, Any] = {}
        for line in finished.stdout.splitlines():
            with contextlib.suppress(ValueError):
                parsed = json.loads(line)
                if isinstance(parsed, dict):
                    answers.update(parsed)
        return answers

    def runner(self, function: str, *arguments: str) -> Any:
        """Run a runner and return what it returned."""
        argv = ["-c", str(self.folder / "salt"), "--out=json", "--log-level=error", function, *arguments]
        return json.loads(self.network.run(str(BIN / "salt-run"), *argv).stdout)

    def accepted(self) -> dict[str, str]:
        """Return minion id -> public key, of every accepted key."""
        folder = self.folder / "pki" / "minions"
        return {path.name: path.read_text().strip() for path in folder.glob("*") if not path.name.startswith(".")}
