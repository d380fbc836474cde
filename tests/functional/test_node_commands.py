"""A command's output, or its reason in one sentence."""

from __future__ import annotations

import sys

import node_commands
import pytest


def python(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", text]


def test_the_output_comes_back() -> None:
    assert node_commands.output_of(python("print('yes')")) == "yes\n"
    assert node_commands.output_of(python("import sys; print(sys.stdin.read())"), "given") == "given\n"
    assert node_commands.output_of(python("import sys; print(len(sys.stdin.read()))")) == "0\n"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (python("import sys; print('x'); sys.exit('a\\nb\\nWARNING c\\n\\nd\\ne')"), "asked: b d e"),
        (python("import sys; print('on the other one'); sys.exit(3)"), "asked: on the other one"),
        (python("import sys; sys.exit(3)"), "asked: it ended with status 3"),
        (["/nonexistent/program"], "asked: there is no program /nonexistent/program on this node"),
    ],
)
def test_a_failure_has_its_reason(command: list[str], reason: str) -> None:
    with pytest.raises(RuntimeError) as failed:
        node_commands.output_of(command, name="asked")
    assert str(failed.value) == reason


def test_a_command_without_an_end_is_ended() -> None:
    with pytest.raises(RuntimeError, match=r"sleep 60: it did not end within 0 s"):
        node_commands.output_of(["sleep", "60"], timeout=0.1)
