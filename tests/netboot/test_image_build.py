"""Real builds: the same bytes twice, and nothing left when one is cut short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netboot.image.build import check_programs
from netboot.image.commands import BuildError
from netboot.image.diff import read_contents
from netboot.image.manifest import Manifest
from netboot.image.store import Store

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 900
# A low level: what is compared does not depend on it, and the tests take less.
PROGRAM = """
import json, os, sys
from pathlib import Path
from netboot.image.build import build
from netboot.image.recipe import LayerSource, load_recipe
from netboot.image.store import Store
os.umask(int(sys.argv[2], 8))
driver = LayerSource(name="driver", packages=["clinfo"])
environment = LayerSource(name="environment", directory=sys.argv[3], prefix="/opt/cluster/engine")
recipe = load_recipe().model_copy(update={"compression_level": 1, "layers": [environment, driver]})
build(recipe, Store(sys.argv[1]), lambda report: print(json.dumps(report), flush=True))
"""


def cannot_build() -> str:
    try:
        check_programs()
    except BuildError as error:
        return str(error)
    return ""


pytestmark = [
    pytest.mark.skipif(bool(cannot_build()), reason=cannot_build() or "can build"),
    pytest.mark.timeout(2 * DEADLINE_SECONDS),
]


def start(root: Path, umask: str = "022", **environment: str) -> subprocess.Popen[str]:
    folder = root.with_name("environment")
    compiled = folder / "lib/python3.13/site-packages/__pycache__"
    compiled.mkdir(parents=True, exist_ok=True)
    compiled.with_name("engine.py").write_text("answer = 42\n")
    (compiled / "engine.cpython-313.pyc").write_bytes(b"of another date")
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), umask, str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], root: Path) -> Manifest:
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, output
    (manifest,) = Store(root).images()
    return manifest


def until(process: subprocess.Popen[str], words: str) -> None:
    """Read progress until a step is reached."""
    assert process.stdout
    for line in process.stdout:
        if words in json.loads(line)["detail"]:
            return
    pytest.fail(f"the build ended before {words}")


def traces(root: Path) -> list[str]:
    """Return the mounts and processes of this machine that have to do with a folder."""
    found = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(root) in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().replace("\0", " ")
            at = [str((process / link).readlink()) for link in ("root", "cwd")]
        except OSError:
            continue
        if int(process.name) != os.getpid() and any(str(root) in text for text in [command, *at]):
            found.append(f"{process.name} {command}")
    return found


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    first = finish(start(tmp_path / "one"), tmp_path / "one")
    other = tmp_path / "another-place-with-a-longer-name"
    second = finish(start(other, umask="077", TZ="Asia/Tokyo", LANG="de_DE.UTF-8", HOME=str(tmp_path)), other)
    contents = [
        read_contents(store.folder(each.digest))
        for store, each in ((Store(tmp_path / "one"), first), (Store(other), second))
    ]
    assert contents[0] == contents[1]
    assert first.files == second.files
    assert first.layers == second.layers and [layer.name for layer in first.layers] == ["environment", "driver"]
    # Its bytecode is made anew in the layer, and the folder is as it was.
    packed = Store(tmp_path / "one").layer_path(first.layers[0].sha256)
    name = "opt/cluster/engine/lib/python3.13/site-packages/__pycache__/engine.cpython-313.pyc"
    compiled = subprocess.run(["unsquashfs", "-cat", packed, name], capture_output=True, check=True).stdout
    own = tmp_path / "environment" / Path(name).relative_to("opt/cluster/engine")
    assert b"answer" in compiled and own.read_bytes() == b"of another date"
    # What the package depends on came with it.
    assert {"clinfo", "ocl-icd-libopencl1"} <= first.packages.keys()
    assert first.digest == second.digest
    assert Store(other).verify(second.digest) == []
    assert first.files["root.squashfs"].bytes <= 200e6
    assert {"systemd", "openssl", "busybox"} <= first.packages.keys() and first.python["salt"] == "3008.3"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_cut_short_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    root = tmp_path / "images"
    process = start(root)
    try:
        until(process, "extracting archives")
        assert traces(root), "the builder is at work"
    finally:
        os.kill(process.pid, number)
        process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode != 0
    # Everything in the builder's namespaces is ended by the kernel, which takes a moment.
    deadline = time.monotonic() + 60
    while traces(root) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert traces(root) == []
    store = Store(root)
    assert store.images() == []
    if number == signal.SIGINT:
        assert not list(root.glob("partial-*"))
    with store.lock("build", wait=False):
        store.sweep()
    assert {path.name for path in root.iterdir()} <= {".lock-build", ".lock-store"}
