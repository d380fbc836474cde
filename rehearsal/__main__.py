"""`make rehearsal`: from a plain Debian machine to a broken image that is rolled back, in virtual machines.

The work is done in namespaces of mounts and processes that end with this process, however it
ends: no machine, network namespace, mount or file of it is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.output import USAGE, fail
from rehearsal import image_boot
from rehearsal.debian import REPOSITORY
from rehearsal.machines import FIRMWARE
from rehearsal.run import BEGINNINGS, ORDER, SKIPPABLE, run
from rehearsal.stages import KEPT

PROGRAMS = ("qemu-system-x86_64", "mmdebstrap", "mksquashfs", "mke2fs", "debugfs", "unshare", "ip", "ssh", "rsync")
_INSIDE = "CLUSTER_REHEARSAL_INSIDE"
_NAMESPACES = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")


def main(
    until: Annotated[str | None, typer.Option(help=f"End after this stage: {', '.join(ORDER)}.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the control node's disk as it is after its init.")] = False,
    kept: Annotated[bool, typer.Option("--kept", help="Begin with the control node that was kept.")] = False,
    first: Annotated[
        str | None, typer.Option("--from", help=f"With --kept, begin with: {', '.join(BEGINNINGS)}.")
    ] = None,
    skip: Annotated[list[str], typer.Option(help="Leave out this stage, one that changes nothing; repeatable.")] = [],  # noqa: B006
    image: Annotated[
        str | None, typer.Option(help="Boot this profile's image in one machine instead, and look at what is in it.")
    ] = None,
    log: Annotated[Path, typer.Option(help="Every command that is run, and what it said.")] = Path("rehearsal.log"),
) -> None:
    """Rehearse the whole road in virtual machines of this machine: control node, two nodes, reprovision, rollback.

    Examples:

      make rehearsal

      .venv/bin/python -m rehearsal --until doctor --keep

      .venv/bin/python -m rehearsal --kept --from image

      .venv/bin/python -m rehearsal --image arc-a770/v0.1
    """
    if os.geteuid() != 0:
        fail("namespaces, taps and images need root", "sudo -E make rehearsal", USAGE)
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or not FIRMWARE.is_file():
        fail(f"{', '.join(missing) or 'OVMF'} is missing", "setup/packages rehearsal", USAGE)
    if kept and not (KEPT / "host_key.pub").exists():
        fail("no control node was kept", "python -m rehearsal --keep", USAGE)
    if first and not (kept and first in BEGINNINGS):
        fail(f"--from {first}; expected --kept and one of {', '.join(BEGINNINGS)}", "python -m rehearsal --help", USAGE)
    if until and until not in ORDER:
        fail(f"--until {until}; expected one of {', '.join(ORDER)}", "python -m rehearsal --help", USAGE)
    if wrong := sorted(set(skip) - set(SKIPPABLE)):
        fail(f"--skip {wrong[0]}; expected one of {', '.join(SKIPPABLE)}", "python -m rehearsal --help", USAGE)
    if _INSIDE not in os.environ:
        log.write_text("")
        inside = {**os.environ, _INSIDE: "1", "PYTHONPATH": str(REPOSITORY)}
        command = [*_NAMESPACES, sys.executable, "-m", "rehearsal", *sys.argv[1:]]
        # Ctrl-C is for the process inside, which ends its machines and says how far it came.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.execvpe(command[0], command, inside)
    del os.environ[_INSIDE]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The first process of its namespace is sent only those signals that it takes.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # What is made under these is seen in here alone.
    for place in ("/mnt", "/run/netns", "/etc/netns"):
        Path(place).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", place], check=True)
    if image:
        raise typer.Exit(image_boot.run(image, Path("/mnt"), log.absolute()))
    raise typer.Exit(run(log.absolute(), until, keep, kept, first, skip))


if __name__ == "__main__":
    typer.run(main)
