"""A pack for a bare machine: divided into pieces, checked, put together again; nothing is fetched or installed."""

import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lab.layout import LabError
from lab.packing import archives, contents, tools
from lab.packing.pieces import Piece, divide
from lab.packing.tools import needed_packages
from tests.by_file import load

PIECE_BYTES = 60_000


@pytest.fixture
def unpack() -> ModuleType:
    return load("lab/packing/unpack.py", "unpack_of_a_pack")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder that looks like an environment, with something that hardly compresses."""
    folder = tmp_path / "environment"
    packages = folder / "lib/python3.11/site-packages"
    for path in (packages / "engine", packages / "engine/__pycache__", packages / "pip", folder / "bin"):
        path.mkdir(parents=True)
    (packages / "engine/kernels.so").write_bytes(random.Random(1).randbytes(90_000))
    (packages / "engine/code.py").write_text("x = 1\n")
    (packages / "engine/__pycache__/code.pyc").write_text("no")
    (packages / "pip/main.py").write_text("no")
    (packages / "engine/link.py").symlink_to("code.py")
    (folder / "bin/python").symlink_to("/usr/bin/python3")
    (folder / "bin/serve").write_text("#!/somewhere/else/bin/python\nprint('serves')\n")
    (folder / "bin/serve").chmod(0o755)
    return folder


def packed(tree: Path, output: Path, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    files = archives.relative_files(tree, contents.LEFT_OUT)
    made = archives.make("engine", tree, files, output / "archives", 1)
    manifest = {"schema": 1, "archives": [{"name": path.name, "target": "cache/engines/x"} for path in made]}
    return divide(made, manifest, {"unpack.py": b"# the program\n"}, output, piece_bytes)


def test_what_is_never_read_is_left_out(tree: Path) -> None:
    found = archives.relative_files(tree, contents.LEFT_OUT)
    assert found == [
        "bin/serve",
        *(f"lib/python3.11/site-packages/engine/{name}" for name in ("code.py", "kernels.so", "link.py")),
    ]


def test_an_archive_is_named_by_its_content_and_made_once(tree: Path, tmp_path: Path) -> None:
    files = archives.relative_files(tree, contents.LEFT_OUT)
    first = archives.make("engine", tree, files, tmp_path / "made", 1)
    times = [path.stat().st_mtime_ns for path in first]
    assert archives.make("engine", tree, files, tmp_path / "made", 1) == first
    assert [path.stat().st_mtime_ns for path in first] == times
    (tree / "bin/serve").write_text("#!/x/python\nprint('changed')\n")
    again = archives.make("engine", tree, files, tmp_path / "made", 1)
    assert len(set(again) - set(first)) == 1, "libraries are an archive of their own"


@pytest.mark.starts_programs
def test_no_piece_is_larger_than_it_may_be_and_each_can_be_checked(tree: Path, tmp_path: Path) -> None:
    pieces = packed(tree, tmp_path / "out")
    assert len(pieces) > 1
    for piece in pieces:
        assert sum(path.stat().st_size for path in piece.folder.iterdir()) == piece.size_bytes <= PIECE_BYTES
        finished = subprocess.run(
            ["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=piece.folder, capture_output=True, check=False
        )
        assert finished.returncode == 0
        assert (piece.folder / "unpack.py").exists() and (piece.folder / "pack.json").exists()


def test_pieces_come_in_any_order_and_twice(tree: Path, tmp_path: Path, unpack: Any) -> None:
    pieces = packed(tree, tmp_path / "out")
    prefix = str(tmp_path / "there")
    for piece in [*reversed(pieces), pieces[0]]:
        unpack.main(["--prefix", prefix, "add", str(piece.folder)])
    pack = unpack.Pack(prefix)
    assert all(pack.is_done(each) for each in pack.manifest()["archives"])
    there = tmp_path / "there/cache/engines/x"
    for name in archives.relative_files(tree, contents.LEFT_OUT):
        assert (there / name).read_bytes() == (tree / name).read_bytes()
    assert (there / "bin/serve").stat().st_mode & 0o111
    assert (there / "lib/python3.11/site-packages/engine/link.py").is_symlink()


def test_a_piece_that_is_broken_missing_or_of_another_pack_is_named(tree: Path, tmp_path: Path, unpack: Any) -> None:
    pieces = packed(tree, tmp_path / "out")
    prefix = ["--prefix", str(tmp_path / "there")]
    with pytest.raises(SystemExit, match="no piece has come"):
        unpack.main([*prefix, "finish"])
    unpack.main([*prefix, "add", str(pieces[0].folder)])
    with pytest.raises(SystemExit, match="files are missing, of pieces that have not come"):
        unpack.main([*prefix, "finish"])
    broken = pieces[1].folder / pieces[1].files[0]
    broken.write_bytes(b"\0" + broken.read_bytes()[1:])
    with pytest.raises(SystemExit, match="is not what SHA256SUMS says: fetch the piece again"):
        unpack.main([*prefix, "add", str(pieces[1].folder)])
    (tree / "bin/serve").write_text("other\n")
    other = packed(tree, tmp_path / "other")
    with pytest.raises(SystemExit, match="of another pack"):
        unpack.main([*prefix, "add", str(other[0].folder)])
    with pytest.raises(SystemExit, match="not put up yet"):
        unpack.main([*prefix, "run", "--", "true"])


@pytest.mark.starts_programs
def test_an_environments_programs_are_of_the_python_that_is_there(tree: Path, unpack: Any) -> None:
    (tree / "bin/python").unlink()
    unpack.make_environment(sys.executable, tree, tree)
    finished = subprocess.run([tree / "bin/serve"], capture_output=True, text=True, check=True)
    assert finished.stdout == "serves\n"
    assert (tree / "bin/serve").read_text().startswith(f"#!{tree}/bin/python\n")
    unpack.make_environment(sys.executable, tree, unpack.NODE_ENGINES / "x")
    assert (tree / "bin/serve").read_text().startswith("#!/var/cache/cluster/engines/x/bin/python\n")


@pytest.mark.starts_programs
def test_a_machine_without_the_engines_torch_is_told_what_was_seen(tmp_path: Path, unpack: Any) -> None:
    pack = unpack.Pack(str(tmp_path))
    version = ".".join(map(str, sys.version_info[:2]))
    assert pack.interpreter({"python": version, "torch": None}) == sys.executable
    with pytest.raises(SystemExit, match=r"no Python 3.7 with torch 2.11.0 here; seen: .*python"):
        pack.interpreter({"python": "3.7", "torch": "2.11.0"})


def test_a_program_of_the_pack_is_started_by_the_packs_own_loader(
    tmp_path: Path, unpack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = unpack.Pack(str(tmp_path))
    (pack.control / "bin").mkdir(parents=True)
    for name, content in (("ip", b"\x7fELF /lib64/ld-linux-x86-64.so.2"), ("tini", b"\x7fELF static")):
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    pack.wrap_tools({"tools": {"ip": "ip", "tini": "tini"}}, False)
    text = (pack.control / "bin/ip").read_text()
    assert text.startswith(f"#!/bin/sh\nexec {tmp_path}/{unpack.LOADER} --library-path ")
    assert text.endswith(f'{tmp_path}/ip "$@"\n')
    assert (pack.control / "bin/tini").read_text() == f'#!/bin/sh\nexec {tmp_path}/tini "$@"\n'
    # Debian's libc6 has an absolute link in lib64: below a prefix it leads to the machine's own loader, with which
    # the pack's programs died on Ubuntu 24.04 ("stack smashing detected").
    assert unpack.LOADER.endswith(tools.LOADER)
    assert "lib64" not in unpack.LOADER


def test_a_piece_too_small_for_its_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="have no room"):
        divide([], {"archives": []}, {"unpack.py": b"x" * 5000}, tmp_path, 4096)


def test_packages_come_with_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        "iproute2\n  Depends: libc6\n  PreDepends: <debconf-2.0>\nlibc6\n  Depends: libgcc-s1\ndebconf\nlibgcc-s1\n"
    )
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=listed, stderr="")
    )
    assert needed_packages(["iproute2"]) == ["iproute2", "libc6", "libgcc-s1"]


def test_the_manifest_lists_every_part(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.tar.xz"
    archive.write_bytes(b"x" * 70_000)
    pieces = divide([archive], {"archives": [{"name": "a.tar.xz", "target": "t"}]}, {}, tmp_path / "out", PIECE_BYTES)
    manifest = json.loads((pieces[0].folder / "pack.json").read_text())
    parts = manifest["archives"][0]["parts"]
    assert [part["bytes"] for part in parts] == [30_000, 30_000, 10_000]
    assert sorted(part["name"] for part in parts) == sorted(name for piece in pieces for name in piece.files)
