"""Make engines' environments on this machine, by the nodes' own modules: each becomes a layer of the image.

Nothing is forwarded out of the cluster's network, so no node can install what comes from a package index.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from bottleneck.profile import Profile
from bottleneck.profile.paths import lock_file, repository_directory
from bottleneck.profile.types import EngineSpec
from netboot.image.commands import BuildError, Progress

# Installing an environment with torch, the first time on a machine.
STEP_SECONDS = 3600


def locked_engines(profile: Profile) -> list[EngineSpec]:
    """Return the engines of a profile's nodes and deployments that are installed from a lock file, by their kinds.

    Those that only convert a model are none of them: a model is converted once, and put on the control node.
    """
    own = {node: profile.engine_of(node) for node in profile.nodes}.values()
    named = [profile.engine_for(each, node) for each in profile.deployments.values() for node in each.nodes]
    found = {engine.kind: engine for engine in (*own, *named)}
    return [engine for _, engine in sorted(found.items()) if engine.lock]


def make(engines: Sequence[EngineSpec], progress: Progress) -> None:
    """Install engines where nodes have them, unless they are there.

    Raises
    ------
    BuildError
        With the reason of the one that cannot be installed.
    """
    for engine in engines:
        # Made with another Python it would not run on the nodes.
        if shutil.which(engine.python) is None:
            raise BuildError(
                f"{engine.kind} wants {engine.python}, which is not here: apt-get install {engine.python}-venv"
            )
    with tempfile.TemporaryDirectory() as folder:
        module = Masterless(Path(folder))
        module.call("saltutil.sync_all", [])
        for engine in engines:
            progress({"stage": "engine", "detail": f"{engine.kind} in {engine.directory()}"})
            lock = str(lock_file(engine.lock)) if engine.lock else None
            module.call("engine.install", [engine.directory(), lock, engine.installation()])


class Masterless:
    """Salt's modules on this machine, without a master; its files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        settings = {
            "id": "masterless",
            "file_client": "local",
            "root_dir": str(folder),
            "file_roots": {"base": [str(repository_directory() / "salt")]},
            "enable_fqdns_grains": False,
            "enable_gpu_grains": False,
            "log_level_logfile": "quiet",
        }
        (folder / "minion").write_text(yaml.safe_dump(settings), encoding="utf-8")

    def call(self, function: str, arguments: Sequence[object]) -> None:
        """Call a module's function.

        Raises
        ------
        BuildError
            With its last lines, when it failed.
        """
        program = Path(sys.executable).with_name("salt-call")
        options = ["--local", "--retcode-passthrough", "--log-level=error", "--out=json", "--config-dir", self._folder]
        try:
            finished = subprocess.run(
                [str(program), *map(str, options), function, *(json.dumps(each) for each in arguments)],
                env={**os.environ, "PYTHONPATH": str(repository_directory())},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=STEP_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{function}: {error}") from error
        if finished.returncode:
            lines = [line for line in (finished.stdout + finished.stderr).splitlines() if line.strip()]
            raise BuildError(f"{function} failed: {' '.join(lines[-3:])[-500:]}")
