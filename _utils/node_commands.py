"""
Run a program to its end and return its output, or raise with the reason in one sentence.
"""

import subprocess
from collections.abc import Mapping, Sequence

LAST_LINES = 3


def output_of(
    command: Sequence[str],
    text: str | None = None,
    timeout: float = 60.0,
    name: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """
    Return a command's standard output.

    text
        handed to its standard input
    timeout
        seconds
    name
        of the command in an error, such as ``ip link set``; left out, the command itself
    environment
        all of its environment; left out, this process's own

    Raises RuntimeError when the program is missing, takes too long or ends with another status than 0, with the last
    lines of what it reported.
    """
    shown = name or " ".join(command)
    try:
        finished = subprocess.run(
            command,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=None if environment is None else dict(environment),
            check=False,
        )
    except FileNotFoundError as error:
        raise RuntimeError(f"{shown}: there is no program {command[0]} on this node") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{shown}: it did not end within {timeout:.0f} s") from error
    if finished.returncode:
        raise RuntimeError(f"{shown}: {_reason(finished)}")
    return finished.stdout


def _reason(finished: "subprocess.CompletedProcess[str]") -> str:
    reported = finished.stderr if finished.stderr.strip() else finished.stdout
    lines = [line.strip() for line in reported.splitlines() if line.strip() and not line.startswith("WARNING")]
    return " ".join(lines[-LAST_LINES:]) or f"it ended with status {finished.returncode}"
