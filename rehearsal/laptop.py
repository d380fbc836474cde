"""The laptop: a namespace with one cable to the control node, a home of its own, a checkout, and `cluster`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rehearsal.debian import CONTROL_ADDRESS, REPOSITORY
from rehearsal.machines import Network
from remote.tree import manifest, stage

HOST = f"root@{CONTROL_ADDRESS}"
PROFILE = "rehearsal/v1"


class CommandError(Exception):
    """A command did not end as it should; the text says how it ended."""


class Laptop:
    """The machine from which the person drives the cluster.

    Parameters
    ----------
    log
        Every command goes there, with what it said.
    """

    def __init__(self, folder: Path, network: Network, log: Path) -> None:
        self.folder, self.network, self.log = folder, network, log
        self.tree, self.home = folder / "tree", folder / "home"
        self.identity = folder / "identity"

    def set_up(self, power_port: int) -> None:
        """Make the checkout, with the rehearsal's profile in it, and the settings."""
        self.tree.mkdir()
        stage(REPOSITORY, manifest(REPOSITORY), self.tree)
        profiles = self.tree / "profiles" / "rehearsal"
        profiles.mkdir()
        for source in (REPOSITORY / "rehearsal" / "profile").iterdir():
            (profiles / source.name).write_text(source.read_text().replace("PORT", str(power_port)))
        self.home.mkdir()
        (self.folder / "run").mkdir(mode=0o700)
        settings = f'profile = "{PROFILE}"\n[control]\nhost = "{HOST}"\nidentity = "{self.identity}"\n'
        (self.home / "cluster.toml").write_text(settings)

    def cluster(self, *arguments: str, timeout: float, expected: tuple[int, ...] = (0,)) -> str:
        """Run `cluster` as a person here would; return what it printed.

        Raises
        ------
        CommandError
            When it ends with another status, or not in time.
        """
        start = "import sys; sys.argv[0] = 'cluster'; from cli.main import app; app()"
        return self._run([sys.executable, "-c", start, *arguments], f"cluster {' '.join(arguments)}", timeout, expected)

    def cluster_json(self, *arguments: str, timeout: float, expected: tuple[int, ...] = (0,)) -> Any:
        """Run `cluster ... --json` and return the document."""
        return json.loads(self.cluster(*arguments, "--json", timeout=timeout, expected=expected))

    def send(self, source: Path, target: str, *, folder: bool = True, timeout: float = 1200) -> None:
        """Copy a folder's content, or a file, to the control node, under the name `target`."""
        ssh = f"ssh -i {self.identity} -o StrictHostKeyChecking=yes"
        ssh += f" -o UserKnownHostsFile={self.home}/.config/cluster/known_hosts"
        argv = [
            "rsync",
            "-a",
            "--mkpath",
            "-e",
            ssh,
            f"{source}/" if folder else str(source),
            f"{HOST}:{target}/" if folder else f"{HOST}:{target}",
        ]
        self._run(argv, f"rsync {source} {target}", timeout, (0,))

    def _run(self, argv: list[str], shown: str, timeout: float, expected: tuple[int, ...]) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLUSTER_", "SSH_", "XDG_"))}
        environment = {
            **kept,
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "PYTHONPATH": str(self.tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "160",
        }
        with self.log.open("a+") as log:
            log.write(f"\n$ {shown}\n")
            log.flush()
            began = log.tell()
            try:
                finished = subprocess.run(
                    self.network.command(*argv),
                    cwd=self.home,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    # As it comes: who waits can look at what it waits for.
                    stderr=log,
                    text=True,
                    timeout=timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                log.seek(began)
                raise CommandError(f"{shown}: not within {timeout:.0f} s; {log.read()[-300:]}") from None
            log.write(f"{finished.stdout}= {finished.returncode}\n")
            log.seek(began)
            output = [line for line in log.read().splitlines() if line.strip() and not line.startswith("= ")]
        if finished.returncode not in expected:
            raise CommandError(f"{shown} ended with status {finished.returncode}: {' '.join(output[-2:])[-600:]}")
        return finished.stdout
