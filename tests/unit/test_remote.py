"""Ways to a control node: words, marks in its error output, the tree, ssh's configuration."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck.profile import find_profile, load_profile
from cli.control_local import HereControl
from remote.control_interface import ControlError
from remote.quoting import ArgumentError, shell_text, supervised
from remote.session import MarkFilter
from remote.sync import rsync_command
from remote.target import SOCKET_NAME_BYTES, Target, TargetError, socket_directory
from remote.tree import EXCLUDES, TreeError, check_tree, compare, digest, is_excluded, manifest, stage

REPOSITORY = Path(__file__).parents[2]
WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=30)
PRINT = [
    sys.executable,
    "-I",
    "-S",
    "-c",
    "import os, sys; print(*(os.fsencode(a).hex() or '-' for a in sys.argv[1:]))",
]


@pytest.mark.starts_programs
@settings(max_examples=40, deadline=None)
@given(words=WORDS)
def test_a_posix_shell_turns_the_text_back_into_the_words(words: list[str]) -> None:
    finished = subprocess.run(["sh", "-c", shell_text([*PRINT, *words])], capture_output=True, text=True, check=True)
    assert [bytes.fromhex(word.strip("-")).decode() for word in finished.stdout.split()] == words


def test_a_word_that_no_command_line_can_carry() -> None:
    with pytest.raises(ArgumentError, match="NUL"):
        shell_text(["a\0b"])
    with pytest.raises(ArgumentError, match="no command"):
        supervised([], mark="m", lifeline=False)


@given(
    pieces=st.lists(st.binary(max_size=20), max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=20),
    code=st.integers(0, 255),
)
def test_marks_are_taken_out_wherever_the_stream_is_cut(pieces: list[bytes], cuts: list[int], code: int) -> None:
    mark = "\x1e0123456789abcdef"
    pieces = [piece for piece in pieces if mark.encode() not in piece]
    # The lines of ours stand in the middle of what the command says, as they do when it is killed in a line.
    stream = mark.encode() + b" pid 4711\n" + b"".join(pieces) + mark.encode() + f" exit {code}\n".encode() + b"late"
    given_on = bytearray()
    found = MarkFilter(mark, given_on.extend)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, end in itertools.pairwise(edges):
        found.feed(stream[start:end])
    found.close()
    assert (found.pid, found.status) == (4711, code)
    assert bytes(given_on) == b"".join(pieces) + b"late"


def test_a_stream_that_ends_within_a_mark_keeps_its_bytes() -> None:
    given_on = bytearray()
    found = MarkFilter("\x1eabc", given_on.extend)
    found.feed(b"text\x1eab")
    assert bytes(given_on) == b"text"
    found.close()
    assert bytes(given_on) == b"text\x1eab"
    assert found.status is None


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for sockets: their names have a limit that a test's own folder may pass."""
    with tempfile.TemporaryDirectory(prefix="ct-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def target(tmp_path: Path, **settings: Any) -> Target:
    return Target(**{"host": "root@nuc", "known_hosts": tmp_path / "known_hosts", **settings})


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "a b", "a\nb"])
def test_a_host_that_is_none(host: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"control\.host"):
        target(tmp_path, host=host)


@pytest.mark.parametrize("directory", ["/", "/opt", "opt/cluster", "/opt/../etc", ""])
def test_a_folder_that_is_not_one_of_its_own(directory: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"control\.directory"):
        target(tmp_path, directory=directory)


@pytest.mark.starts_programs
def test_ssh_takes_our_options_over_the_persons(tmp_path: Path, runtime: Path) -> None:
    """Asked of ssh itself: strict host keys of our own file, no prompts, one connection."""
    found = target(tmp_path / "with a space 100%", port=2222, identity=tmp_path / "my key")
    asked = subprocess.run([*found.ssh(), "-G", found.host], capture_output=True, text=True, check=True).stdout
    seen = dict(line.split(" ", 1) for line in asked.splitlines() if " " in line)
    expected = {
        "batchmode": "yes",
        "stricthostkeychecking": "true",
        "globalknownhostsfile": "/dev/null",
        "controlmaster": "auto",
        "port": "2222",
        "identitiesonly": "yes",
        "forwardagent": "no",
        "permitlocalcommand": "no",
        "requesttty": "false",
    }
    assert {key: seen.get(key) for key in expected} == expected
    assert "with a space 100%" in seen["userknownhostsfile"]


def test_the_socket_fits_on_macos_and_is_ones_own(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = socket_directory()
    assert found.parent == runtime
    # The name that ssh makes while it sets the connection up, with the NUL at its end.
    assert len(os.fsencode(found / ("0" * 40 + ".0123456789abcdef"))) + 1 <= 104
    assert SOCKET_NAME_BYTES < 104
    found.chmod(0o755)
    assert socket_directory() == Path("/tmp") / f"cluster-ssh-{os.getuid()}"
    long = runtime / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert socket_directory() == Path("/tmp") / f"cluster-ssh-{os.getuid()}"


def test_rsync_gets_flags_that_every_rsync_has(tmp_path: Path, runtime: Path) -> None:
    words = rsync_command(target(tmp_path / "a b", sudo=True), Path("/from"), "/opt/cluster/releases/.partial-x")
    # macOS's rsync has no long option of GNU's later ones, and splits -e at spaces.
    assert words[:3] == ["rsync", "-rlpt", "--delete"]
    shell = words[words.index("-e") + 1]
    assert shell.split() == ["ssh", "-F", shell.split()[2]]
    assert words[-2:] == ["/from/", "root@nuc:/opt/cluster/releases/.partial-x/"]


@pytest.mark.parametrize(
    ("path", "is_folder", "left_out"),
    [
        (".git", True, True),
        (".git", False, True),
        ("cli/__pycache__", True, True),
        ("runs", True, True),
        ("tests/data/runs", True, False),
        ("tests", True, True),
        ("salt/tests", True, False),
        ("cluster.toml", False, True),
        ("doc/cluster.toml", False, False),
        ("pillar/secrets.sls", False, True),
        ("x/master.pem", False, True),
        ("salt/top.sls", False, False),
        ("build", False, False),
        (".venv", True, True),
    ],
)
def test_what_is_left_out(path: str, is_folder: bool, left_out: bool) -> None:
    assert is_excluded(path, is_folder, EXCLUDES) is left_out


def test_this_checkout_is_a_tree_and_goes_over_whole(tmp_path: Path) -> None:
    check_tree(REPOSITORY)
    tree = manifest(REPOSITORY)
    assert tree["salt/_modules"] == "link ../_modules"
    assert tree["setup/venv"].startswith("program ")
    assert not [path for path in tree if path.startswith((".git/", ".venv", "tests/"))]
    stage(REPOSITORY, tree, tmp_path / "copy")
    assert manifest(tmp_path / "copy", ()) == tree
    assert digest(tree) == digest(dict(reversed(tree.items())))
    with pytest.raises(TreeError, match="not the cluster's tree"):
        check_tree(tmp_path)


NAMES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["1", "2"]))


@given(new=NAMES, old=NAMES)
def test_a_difference_turns_the_old_into_the_new(new: dict[str, str], old: dict[str, str]) -> None:
    found = compare(new, old)
    made = {path: content for path, content in old.items() if path not in found.deleted}
    made |= {path: new[path] for path in (*found.added, *found.changed)}
    assert made == new
    assert found.count == sum(new.get(path) != old.get(path) for path in new.keys() | old.keys())


def test_a_link_out_of_the_tree_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("../elsewhere")
    with pytest.raises(TreeError, match=r"out is a link to \.\./elsewhere"):
        manifest(tmp_path)


@pytest.mark.starts_programs
def test_the_other_side_says_the_same_of_a_tree(tmp_path: Path) -> None:
    """The program that is sent along makes the same manifest, with nothing but Python's own library."""
    tree = manifest(REPOSITORY)
    (tmp_path / "releases").mkdir()
    stage(REPOSITORY, tree, tmp_path / "releases" / "one")
    (tmp_path / "src").symlink_to("releases/one")
    source = (REPOSITORY / "remote" / "releases.py").read_text()
    asked = subprocess.run(
        [sys.executable, "-I", "-S", "-c", source, "show", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert json.loads(asked.stdout) == {"release": "one", "tree": tree, "loaded": None}


@pytest.mark.starts_programs
def test_a_command_that_does_not_end_in_time_is_a_sentence_and_is_ended() -> None:
    path = find_profile("embedded")
    control = HereControl(load_profile(path), path)
    with pytest.raises(ControlError, match="sleep did not finish within 0 s"):
        control.run(["sleep", "3600"], timeout=0.05)
