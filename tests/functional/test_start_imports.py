"""Imports at the start of `cluster`: a command does not pay for the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import COMMANDS

REPOSITORY = Path(__file__).parents[2]
# numpy: a fifth of a second that only the analysis needs.
HEAVY = {"numpy", "jinja2", "bottleneck.diagnosis.attribution.ledger", "bottleneck.prediction.evaluate"}


def modules_after(*words: str) -> set[str]:
    """Return what has been imported when a command's help was shown."""
    program = f"""
import sys
from cli.main import app
try:
    app({list(words)!r})
except SystemExit as end:
    assert not end.code, end.code
print("\\n".join(sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "words", [("image", "diff"), ("control", "cmd"), ("sync",), ("salt",), ("boot", "watch"), ("status",)], ids=" ".join
)
def test_a_command_imports_no_analysis(words: tuple[str, ...]) -> None:
    found = modules_after(*words, "--help")
    assert f"{COMMANDS[words[0]].place.partition(':')[0]}" in found
    assert not found & HEAVY


def test_one_that_analyses_does() -> None:
    assert HEAVY & modules_after("whatif", "--help")


def test_every_command_is_there_and_says_what_it_does() -> None:
    for name, lazy in COMMANDS.items():
        command = lazy.load(name)
        assert command.name == name
        assert command.get_short_help_str(), name
