"""Engines that are an archive, or Debian packages of the node: installed by Salt's own loader, whole or not at all."""

import hashlib
import http.server
import io
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from saltfactories.utils.functional import Loaders

from bottleneck.profile import find_profile
from bottleneck.profile.engine_types import EngineSpec
from tests.by_file import load
from tests.functional.minion_options import minion_options

pytestmark = pytest.mark.slow

PROGRAM = b"#!/bin/sh\necho served by $0 with $*\n"


def packed(members: dict[str, bytes], mode: int = 0o755) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    """Serve bytes under a name on loopback; return the map's `archive` for them."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def serve(content: bytes, programs: str = "build/bin") -> dict[str, str]:
        (folder / "engine.tar.xz").write_bytes(content)
        url = f"http://127.0.0.1:{server.server_port}/engine.tar.xz"
        return {"url": url, "sha256": hashlib.sha256(content).hexdigest(), "programs": programs}

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Loaders:
    """Return the loaders of a node of a profile, whose states have a pillar."""
    options = minion_options(tmp_path_factory.mktemp("node"), "node0", cluster_profile=str(find_profile("embedded")))
    return Loaders({**options, "test": False})


def entry(**form: Any) -> dict[str, Any]:
    return {"kind": "made-up", "engine": "made-up", "lock": None, "packages": [], "directory": "", **form}


def install(loaders: Any, directory: Path, engine: dict[str, Any]) -> Any:
    return loaders.states.engine.installed(str(directory), requirements=None, engine=engine)


def test_an_archive_is_unpacked_once_and_its_programs_run(loaders: Any, tmp_path: Path, served: Any) -> None:
    content = packed({"build/bin/llama-server": PROGRAM, "build/lib/data": b"x"})
    engine = entry(archive=served(content))
    directory = tmp_path / "engines" / "made-up-1"
    first = install(loaders, directory, engine)
    assert first.result is True and first.changes, first.comment
    assert first.comment == f"made-up was installed from {engine['archive']['url']}"
    assert not (directory / "fetched").exists()
    environment = load("_utils/engine_environment.py")
    command = environment.command({"directory": str(directory)}, "llama-server", ["--port", "1"])
    seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert seen.stdout.endswith("llama-server with --port 1\n")
    # A worker's shell finds it by its name.
    path = environment.path({"directory": str(directory)})
    named = subprocess.run(
        ["/bin/sh", "-c", "llama-server"], env={"PATH": path}, capture_output=True, timeout=60, check=True
    )
    assert b"served by" in named.stdout
    digest = engine["archive"]["sha256"]
    assert loaders.modules.engine.version(str(directory), ["llama.cpp-tools"]) == {
        "llama.cpp-tools": f"sha256:{digest}"
    }
    second = install(loaders, directory, engine)
    assert second.result is True and not second.changes


def test_an_archive_with_another_digest_is_refused(loaders: Any, tmp_path: Path, served: Any) -> None:
    archive = served(packed({"build/bin/llama-server": PROGRAM}))
    directory = tmp_path / "engines" / "made-up-2"
    seen = install(loaders, directory, entry(archive={**archive, "sha256": "0" * 64}))
    assert seen.result is False
    assert f"digest {archive['sha256']}; expected {'0' * 64}, of the engine map" in seen.comment
    assert not directory.exists()


@pytest.mark.parametrize(
    ("content", "programs", "expected"),
    [
        (b"no archive", "", "expected a tar archive of files below one folder"),
        (packed({"../outside": PROGRAM}), "", "expected a tar archive of files below one folder"),
        (packed({"bin/readme": b"x"}, 0o644), "bin", "no program in bin; expected some"),
        (packed({"bin/server": PROGRAM}), "build/bin", "no folder build/bin; expected the programs there"),
    ],
)
def test_what_is_no_archive_of_programs_leaves_nothing(
    loaders: Any, tmp_path: Path, served: Any, content: bytes, programs: str, expected: str
) -> None:
    directory = tmp_path / "engines" / "made-up-3"
    seen = install(loaders, directory, entry(archive=served(content, programs)))
    assert seen.result is False and expected in seen.comment
    assert not directory.exists() and not (tmp_path / "engines" / "outside").exists()


def test_an_address_that_does_not_answer_is_named(loaders: Any, tmp_path: Path, served: Any) -> None:
    archive = served(b"x")
    missing = {**archive, "url": f"{archive['url']}.old"}
    seen = install(loaders, tmp_path / "made-up-4", entry(archive=missing))
    assert (
        seen.result is False
        and seen.comment.startswith(f"{missing['url']}: ")
        and "expected an archive" in seen.comment
    )


def test_packages_of_the_node_are_linked(loaders: Any, tmp_path: Path) -> None:
    """Packages that every Debian has stand in for the engine's."""
    directory = tmp_path / "engines" / "made-up-5"
    seen = install(loaders, directory, entry(node_packages=["coreutils", "dpkg"]))
    assert seen.result is True and seen.comment == "made-up was installed from coreutils, dpkg"
    command = load("_utils/engine_environment.py").command({"directory": str(directory)}, "sha256sum", ["--version"])
    assert b"coreutils" in subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    found = loaders.modules.engine.version(str(directory), ["coreutils", "not-a-package"])
    assert list(found) == ["coreutils"]


def test_packages_that_are_not_there_are_named(loaders: Any, tmp_path: Path) -> None:
    directory = tmp_path / "engines" / "made-up-6"
    seen = install(loaders, directory, entry(node_packages=["coreutils", "not-a-package"]))
    assert seen.result is False and "Debian packages not-a-package are not on this node" in seen.comment
    assert not directory.exists()


@pytest.mark.parametrize(
    ("form", "packages"),
    [
        ({"archive": {"url": "https://example.org/a.tar.gz", "sha256": "0" * 64}}, ["nftables"]),
        ({"node_packages": ["llama.cpp-tools"]}, ["nftables", "llama.cpp-tools"]),
    ],
)
def test_the_states_of_a_form_render(node: Any, form: dict[str, Any], packages: list[str]) -> None:
    spec = EngineSpec.model_validate({"engine": "llamacpp", "packages": ["nftables"], **form})
    engine = {**spec.model_dump(mode="json"), "kind": "made-up", "directory": "/var/cache/cluster/engines/made-up-7"}
    states = node.modules.state.show_sls("engine.install", pillar={"engine": engine})
    (pkgs,) = (part["pkgs"] for part in states["engine-install-packages-pkg-installed"]["pkg"] if "pkgs" in part)
    assert pkgs == packages
    installed = states["engine-install-environment-engine-installed"]["engine"]
    assert "installed" in installed and {"requirements": None} in installed
    assert "engine-install-lock-file-managed" not in states


def test_the_state_of_an_archive_applies_without_a_master(node: Any, tmp_path: Path, served: Any) -> None:
    directory = tmp_path / "engines" / "made-up-8"
    engine = {**entry(archive=served(packed({"build/bin/llama-server": PROGRAM}))), "directory": str(directory)}
    first = node.modules.state.sls("engine.install", pillar={"engine": engine})
    assert not first.failed, first
    (found,) = first
    assert found.result is True and found.changes == {"installed": "made-up"}, found
    assert (directory / "llama-server").resolve() == directory / "archive/build/bin/llama-server"
    second = node.modules.state.sls("engine.install", pillar={"engine": engine})
    assert [(each.result, each.changes) for each in second] == [(True, {})]
