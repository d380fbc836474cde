"""Files that are no profile at all, and the lines of those that are."""

from pathlib import Path

import pytest

from bottleneck.profile import ProfileError, load_profile
from bottleneck.profile.yaml_lines import MAXIMUM_BYTES, read


def message(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "profile.yaml"


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n", "---\n"])
def test_empty(path: Path, content: str) -> None:
    assert "expected a mapping of keys to values" in message(path, content)


def test_empty_file(path: Path) -> None:
    assert message(path, "") == f"{path}: an empty file; expected a mapping of keys to values"


@pytest.mark.parametrize(("content", "seen"), [("- a\n- b\n", "a list"), ("hello\n", "'hello'"), ("42\n", "42")])
def test_no_mapping(path: Path, content: str, seen: str) -> None:
    assert message(path, content) == f"{path}:1: {seen}; expected a mapping of keys to values"


def test_an_empty_mapping_names_every_missing_key(path: Path) -> None:
    lines = message(path, "{}\n").splitlines()
    keys = [line.split(": ")[1] for line in lines]
    expected = "schema name version kind control networks nodes model deployments default_deployment"
    assert keys == expected.split()


def test_huge_file_is_refused_before_parsing(path: Path) -> None:
    # Not YAML: parsing it would fail in another way.
    assert message(path, b"[" * (MAXIMUM_BYTES + 1)) == (
        f"{path}: more than {MAXIMUM_BYTES} bytes; expected a profile of a few KiB"
    )


def test_missing_file(path: Path) -> None:
    with pytest.raises(ProfileError, match="No such file or directory; expected a file that can be read"):
        load_profile(path)


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="expected a file that can be read"):
        load_profile(tmp_path)


def test_duplicate_key_names_both_lines(path: Path) -> None:
    lines = message(path, "schema: 1\nname: a\nname: b\n").splitlines()
    assert f"{path}:3: name: the key stands twice (first on line 2); expected it once" in lines


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a: [1, 2\nb: 3\n", 2),
        ("a: 1\n\tb: 2\n", 2),
        ("a: *nowhere\n", 1),
        ("a: b: c\n", 1),
        ("a: !!python/name:os x\n", 1),
    ],
)
def test_syntax_errors_have_a_line(path: Path, content: str, line: int) -> None:
    assert message(path, content).startswith(f"{path}:{line}: ")


def test_two_documents(path: Path) -> None:
    assert "expected a single document" in message(path, "a: 1\n---\nb: 2\n")


def test_not_utf8(path: Path) -> None:
    assert message(path, b"a: 1\nb: \xff\n") == f"{path}:2: byte 0xff; expected UTF-8 text"


def test_control_characters(path: Path) -> None:
    assert "expected YAML" in message(path, b"a: \x00\n")


@pytest.mark.parametrize(
    "content", ["a: " + "[" * 3000 + "]" * 3000, "a: &a [*a]", "a: &a {<<: *a}", "a: " + "[" * 60 + "]" * 60]
)
def test_nesting_without_end(path: Path, content: str) -> None:
    assert "nested deeper than" in message(path, content)


def test_aliases_that_multiply(path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "more than 100000 values" in message(path, "\n".join(lines))


def test_surprises_of_yaml_1_1_are_text(path: Path) -> None:
    path.write_text("mac: 12:34:56:11:22:33\nday: 2026-11-23\nanswer: no\noctal: 010\nrate: 1e3\nhalf: .5\n1: one\n")
    data = read(path).data
    assert data["mac"] == "12:34:56:11:22:33"
    assert data["day"] == "2026-11-23"
    assert data["answer"] == "no"
    assert data["octal"] == "010"
    assert data["rate"] == 1000.0
    assert data["half"] == 0.5
    assert data["1"] == "one"


def test_lines(path: Path) -> None:
    path.write_text(
        "a:\n  b: &anchor\n    c: 1\n    d: [1,\n      2]\nother: *anchor\nmerged:\n  <<: *anchor\n  c: 2\n"
    )
    document = read(path)
    assert document.data["merged"] == {"c": 2, "d": [1, 2]}
    assert document.line(("a", "b", "d", 1)) == 5
    assert document.line(("other",)) == 6
    # What an alias stands for is mended where the anchor is.
    assert document.line(("other", "c")) == 3
    assert document.line(("merged", "c")) == 9
    assert document.line(("merged", "d")) == 4
    assert document.line(("a", "b", "missing", "deeper")) == 2
    assert document.line(("nothing",)) == 1


def test_the_first_of_several_merged_mappings_wins(path: Path) -> None:
    path.write_text("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\n")
    assert read(path).data["c"] == {"x": 1, "y": 1, "z": 3}


def test_merging_what_is_no_mapping(path: Path) -> None:
    assert "'x' after <<; expected an alias of a mapping" in message(path, "a: &a x\nb: {<<: *a}\n")
