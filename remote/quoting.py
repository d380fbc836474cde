"""One text for ssh: what a POSIX shell on the other side turns back into the same words."""

import shlex
from collections.abc import Sequence
from pathlib import Path

PYTHON = "/usr/bin/python3"
_SUPERVISOR = Path(__file__).with_name("supervisor.py")


class ArgumentError(ValueError):
    """A word that no command line can carry."""


def shell_text(argv: Sequence[str]) -> str:
    """Return `argv` as one command line for a POSIX shell.

    ssh joins its arguments with spaces and hands the text to the login shell of the user
    there, so every word has to be quoted for that shell: spaces, quotes, newlines, glob
    characters, empty words.

    Raises
    ------
    ArgumentError
        For a word with a NUL character, which the kernel itself would cut off there.
    """
    for word in argv:
        if "\0" in word:
            raise ArgumentError(f"an argument holds a NUL character, which no command can be given: {word!r}")
    return shlex.join(argv)


def supervised(argv: Sequence[str], *, mark: str, lifeline: bool, path: str = "", sudo: bool = False) -> str:
    """Return the text that runs `argv` under the supervisor (see supervisor.py)."""
    if not argv:
        raise ArgumentError("no command was given")
    source = _SUPERVISOR.read_text(encoding="utf-8")
    words = [PYTHON, "-I", "-S", "-c", source, mark, "1" if lifeline else "0", path, *argv]
    # Without `exec` the login shell would wait beside it for nothing.
    return "exec " + shell_text([*(["sudo", "-n", "--"] if sudo else []), *words])
