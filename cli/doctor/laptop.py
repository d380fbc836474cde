"""The laptop: programs, settings, and whether the control node answers."""

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator

from cli.doctor.check import Check, judged
from remote.control_interface import ControlError
from remote.session import Session
from remote.target import Target, TargetError, socket_directory

PLACE = "laptop"
INSTALL = {"Darwin": "brew install {}", "Linux": "apt-get install {}"}


def check_laptop(target: Target | None) -> Iterator[Check]:
    """Look at this machine; with a control node elsewhere, at the way to it."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield judged(
        PLACE, "Python", sys.version_info >= (3, 11), f"{version}; 3.11 or later is needed", "install Python 3.11"
    )
    if target is None:
        return
    for program, package, option in (("ssh", "openssh-client", "-V"), ("rsync", "rsync", "--version")):
        yield _program(program, package, option)
    try:
        yield Check(PLACE, "ssh's connection", "ok", f"kept in {socket_directory()}")
    except TargetError as error:
        yield Check(PLACE, "ssh's connection", "failed", str(error), "remove or mend that folder")


def check_reach(target: Target) -> Check:
    """Tell whether a command runs on the control node."""
    try:
        running = Session(target, ["true"], on_stderr=lambda _: None)
        running.stdout.read()
        code = running.wait()
    except ControlError as error:
        return Check(PLACE, "control node", "failed", str(error), error.next_command or "")
    return judged(PLACE, "control node", code == 0, f"{target.host} runs commands", "cluster control shell")


def _program(program: str, package: str, option: str) -> Check:
    path = shutil.which(program)
    install = INSTALL.get(platform.system(), "install {}").format(package)
    if path is None:
        return Check(PLACE, program, "failed", "not found in PATH", install)
    finished = subprocess.run([path, option], capture_output=True, text=True, check=False)
    lines = (finished.stdout + finished.stderr).strip().splitlines()
    return Check(PLACE, program, "ok", lines[0] if lines else path)
