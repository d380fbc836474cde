"""The packaged program in an empty environment, by somebody who is not root: what `pipx run` and `uvx` do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SCENARIO = REPOSITORY / "tests" / "data" / "field-cases" / "scenarios" / "new-gauge-no-preemption.json"
NOT_PACKAGED = shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__", "tests", "doc")
NOBODY = 65534


def run(*command: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a program, as nobody where this is root's; nothing of this environment reaches it."""
    environment = {"HOME": str(cwd), "PATH": "/usr/bin:/bin", "COLUMNS": "160", "PYTHONDONTWRITEBYTECODE": "1"}
    who: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False, **who
    )


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not pytest's own: nobody may not go in there.
    found = Path(tempfile.mkdtemp(prefix="wheel-"))
    found.chmod(0o755)
    yield found
    shutil.rmtree(found, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> str:
    """Build the wheel, install it and what it depends on into an empty environment; return its program."""
    source = folder / "source"
    shutil.copytree(REPOSITORY, source, ignore=NOT_PACKAGED, symlinks=True)
    wheels = folder / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--quiet", "--wheel-dir", str(wheels)]
    built = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    if built.returncode and "Could not find a version" in built.stderr:
        pytest.skip("no package index: the build's requirements cannot be fetched")
    assert built.returncode == 0, built.stderr
    # One that others may run, too.
    python = next(name for name in ("/usr/bin/python3", sys.executable) if shutil.which(name) and recent(name))
    environment = folder / "environment"
    subprocess.run([python, "-m", "venv", str(environment)], check=True, capture_output=True, timeout=300)
    install = [str(environment / "bin" / "pip"), "install", "--quiet", *(str(wheel) for wheel in wheels.glob("*.whl"))]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
    if installed.returncode and "Could not find a version" in installed.stderr:
        pytest.skip("no package index: the dependencies cannot be fetched")
    assert installed.returncode == 0, installed.stderr
    return str(environment / "bin" / "cluster")


def recent(python: str) -> bool:
    check = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    return subprocess.run([python, "-c", check], check=False, capture_output=True, timeout=60).returncode == 0


@pytest.fixture
def home(folder: Path) -> Iterator[Path]:
    found = folder / "home"
    found.mkdir()
    if os.geteuid() == 0:
        os.chown(found, NOBODY, NOBODY)
    shutil.copy(SCENARIO, found / "scenario.json")
    yield found
    shutil.rmtree(found)


def test_a_recorded_scenario_is_judged(cluster: str, home: Path) -> None:
    done = run(cluster, "bottleneck", "--from", "scenario.json", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["class"] == "kv_cache_capacity"


def test_a_live_server_is_judged(cluster: str, home: Path) -> None:
    replay = [sys.executable, "-m", "tests.metrics_replay", str(SCENARIO), "3"]
    with subprocess.Popen(replay, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            url = server.stdout.readline().strip()
            words = ("--seconds", "3", "--keep", "kept.json", "--json")
            done = run(cluster, "bottleneck", "--url", url, *words, cwd=home)
        finally:
            server.kill()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["class"] == "kv_cache_capacity"
    assert json.loads((home / "kept.json").read_text())["metrics_during"]


def test_a_person_reads_it(cluster: str, home: Path) -> None:
    done = run(cluster, "bottleneck", "--from", "scenario.json", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "KV cache is full" in done.stdout and "What to try next" in done.stdout
    assert "Start one of your own anew" in done.stdout


def test_every_command_says_what_it_does(cluster: str, home: Path) -> None:
    """No command needs a module that was not packaged, even where it needs a repository to do its work."""
    listed = run(cluster, "--help", cwd=home).stdout
    names = [line.split()[1] for line in listed.splitlines() if line.startswith("│ ") and not line.startswith("│ -")]
    names = [name for name in names if name.replace("-", "").isalpha() and name.islower()]
    assert {"bottleneck", "deploy", "image"} <= set(names)
    for name in ("bottleneck", "image", "boot", "lab", "whatif", "report", "profile"):
        done = run(cluster, name, "--help", cwd=home)
        assert done.returncode == 0, f"{name}: {done.stderr}"
