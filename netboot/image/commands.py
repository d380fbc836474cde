"""Run the programs that make an image, and say what failed in their own words."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Progress = Callable[[dict[str, object]], None]
Step = Callable[[str], None]
_KEPT_LINES = 200
_SHOWN_LINES = 6
# A proxy, and where certificates are, are the machine's own business; the rest would make builds differ.
_PASSED = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
_PASSED_PREFIXES = ("PIP_", "REQUESTS_")


class BuildError(Exception):
    """An image cannot be built; the text says which step failed and why."""


def clean_environment(source_date_epoch: int | None, temporary: Path | None = None) -> dict[str, str]:
    """Return an environment in which a build does not depend on who started it."""
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": os.environ.get("HOME", "/root"),
        "DEBIAN_FRONTEND": "noninteractive",
        "PYTHONHASHSEED": "0",
        "TZ": "UTC",
    }
    if source_date_epoch is not None:
        environment["SOURCE_DATE_EPOCH"] = str(source_date_epoch)
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    for name, value in os.environ.items():
        if name in _PASSED or name.startswith(_PASSED_PREFIXES):
            environment[name] = value
    return environment


def run(
    argv: Iterable[object],
    environment: Mapping[str, str],
    on_line: Callable[[str], None] | None = None,
    input: str | None = None,
    cwd: Path | None = None,
) -> list[str]:
    """Run a program to its end and return what it printed.

    Raises
    ------
    BuildError
        With its last lines, when it is not there or ended badly.
    """
    command = [str(part) for part in argv]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(environment),
            cwd=cwd,
        )
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not installed; run setup/packages netboot") from error
    assert process.stdout
    if input is not None:
        assert process.stdin
        process.stdin.write(input)
        process.stdin.close()
    lines: list[str] = []
    for line in process.stdout:
        text = line.rstrip()
        lines.append(text)
        if on_line:
            on_line(text)
        # A list of every file may be long, a log need not be kept whole.
        if on_line and len(lines) > _KEPT_LINES:
            del lines[0]
    code = process.wait()
    if code != 0:
        # What apt and its like mark as an error first is the reason; what they say after it follows from it.
        marked = [each for each in lines if each.startswith("E: ")][:1]
        output = " | ".join(each for each in marked or lines[-_SHOWN_LINES:] if each)
        raise BuildError(f"{Path(command[0]).name} ended with {code}: {output or 'it output nothing'}")
    return lines
