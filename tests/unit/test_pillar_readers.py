"""Every key of a node's pillar has a reader among its states and modules: what nobody reads is not handed out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bottleneck.profile import list_profiles, load_profile
from netboot.control_node import control_pillar
from tests.golden import merged_map

ROOT = Path(__file__).resolve().parents[2]
# Section -> the files that read it.
ENGINE = (
    *("salt/engine/*.sls", "salt/engine/*.jinja", "_modules/engine.py", "_states/engine.py"),
    "_utils/engine_environment.py",
)
MODEL = ("salt/model/*.sls", "salt/model/*.jinja", "salt/model/files/*.py", "_modules/model.py", "_states/model.py")
READERS = {
    "hosts": ("salt/base/*.sls", "salt/control/*.sls"),
    "control": ("salt/sampler/*.sls", *MODEL),
    "node": ("salt/network/*.sls", "salt/sampler/*.sls", "_states/link.py", "_modules/link.py"),
    "engine": ENGINE,
    "engines": ENGINE,
    "model": MODEL,
    "conversions": (*MODEL, *ENGINE),
    "sampler": ("salt/sampler/*.sls", "salt/sampler/files/*.py"),
}
CONTROL = {"control": ("salt/control/*.sls", "salt/control/files/*"), "hosts": READERS["hosts"]}
# Handed on whole: to a file, to a program's environment, to templates.
WHOLE = {"hosts", "environment", "names", "master"}
# The keys in these are networks, nodes and requirements; what is below each has the project's names again.
NAMED = {"links", "peers", "packages"}


@cache
def text_of(patterns: tuple[str, ...]) -> str:
    files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


def keys_of(content: Any, above: str = "") -> Iterator[str]:
    """Yield every key below a section that the project names, each once for where it is."""
    if isinstance(content, list):
        for each in content:
            yield from keys_of(each, above)
    if isinstance(content, dict) and above not in WHOLE:
        for key, value in content.items():
            if above not in NAMED:
                yield key
            yield from keys_of(value, "" if above in NAMED else key)


def unread(pillar: dict[str, Any], readers: dict[str, tuple[str, ...]]) -> list[str]:
    found = [section for section in pillar if section not in readers]
    for section in set(pillar) & set(readers):
        text = text_of(readers[section])
        for key in sorted(set(keys_of(pillar[section], section))):
            word = re.escape(key)
            if not re.search(rf"""['"]{word}['"]|:{word}\b""", text):
                found.append(f"{section}: {key}")
    return found


@pytest.mark.parametrize("path", list_profiles(), ids=lambda path: path.stem)
def test_what_a_node_is_given_it_reads(path: Path) -> None:
    assert sorted({each for pillar in merged_map(path).values() for each in unread(pillar, READERS)}) == []


def test_what_the_control_node_is_given_it_reads() -> None:
    profile = load_profile(ROOT / "profiles" / "arc-a770" / "v0.1.yaml")
    assert unread(control_pillar(profile, ROOT, "/opt/cluster/bin"), CONTROL) == []


def test_a_key_without_a_reader_is_seen() -> None:
    pillar = {"engine": {"lock": "x.txt", "nobody_reads_this": 1, "environment": {"A_VARIABLE": "1"}}, "odd": {}}
    assert unread(pillar, READERS) == ["odd", "engine: nobody_reads_this"]
