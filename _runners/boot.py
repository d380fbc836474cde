"""
Show the record of the nodes' boots, what is under way, what is stuck and why; arm a node, block it.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

from control import records
from control.nodes import profile_of, progress
from netboot.boot import command_queue, progress_report, storage
from netboot.boot.settings import Settings

if TYPE_CHECKING:
    from loader_dunders import __opts__

FOLLOW_SECONDS = 0.5


def show() -> dict[str, Any]:
    """
    Return every node's boot, the machines that are unknown, and who was refused.

    CLI Example:

    .. code-block:: bash

        salt-run boot.show
    """
    return _view(_settings())


def status(node: str) -> dict[str, Any]:
    """
    Return one node's boot: ``boot`` (its id), ``armed``, ``stages`` (stage to when it was reached), ``stuck``.

    CLI Example:

    .. code-block:: bash

        salt-run boot.status node0
    """
    settings = _settings()
    found = _view(settings)["nodes"].get(_known(settings, node)) or {}
    boot = found.get("boot") or {}
    # The wait for a deployment is time of the boot, and no stage.
    spans = [span for span in boot.get("stages", []) if span["stage"] != "idle"]
    return {
        "node": node,
        "armed": found.get("armed", ""),
        "blocked": found.get("blocked", False),
        "boot": boot.get("id"),
        "image": boot.get("image"),
        "began": boot.get("began"),
        "stages": {span["stage"]: {"at": span["start"] + span["seconds"]} for span in spans},
        "stuck": found.get("stuck"),
    }


def follow(seconds: float = 3600) -> dict[str, Any]:
    """
    Report the record as progress whenever it changes, until ``seconds`` have passed.

    CLI Example:

    .. code-block:: bash

        salt-run boot.follow 60
    """
    settings = _settings()
    started = time.monotonic()
    before = None
    while time.monotonic() < started + float(seconds):
        view = _view(settings)
        # Time is shown too, so a second that has passed is a change.
        now = {**view, "at": int(view["at"])}
        if now != before:
            before = now
            progress("boot", "", "", started, view=view)
        time.sleep(FOLLOW_SECONDS)
    return {"followed_seconds": float(seconds)}


def arm(node: str, powered_on: bool = False) -> dict[str, Any]:
    """
    Expect a node to boot: it is reported as stuck as soon as it does not.

    CLI Example:

    .. code-block:: bash

        salt-run boot.arm node0

    powered_on
        whether its power was switched on just now: its boot is timed from here
    """
    settings = _settings()
    command_queue.give(_directory(), command_queue.Command("arm", _known(settings, node), bool(powered_on)))
    return {"node": node, "armed": "reprovision"}


def block(node: str) -> dict[str, Any]:
    """
    Give a node no boot script, and void those that it has, until it is armed again.

    CLI Example:

    .. code-block:: bash

        salt-run boot.block node0
    """
    settings = _settings()
    command_queue.give(_directory(), command_queue.Command("block", _known(settings, node)))
    return {"node": node, "blocked": True}


def discover() -> list[dict[str, Any]]:
    """
    Return the machines that asked to boot and are no node of the profile, the newest first.

    CLI Example:

    .. code-block:: bash

        salt-run boot.discover
    """
    unknown = _view(_settings())["unknown"]
    return [{"mac": mac, **entry} for mac, entry in sorted(unknown.items(), key=lambda item: -item[1]["last"])]


def _settings() -> Settings:
    try:
        return Settings.of(profile_of(__opts__))
    except ValueError as error:
        raise CommandExecutionError(str(error)) from error


def _known(settings: Settings, node: str) -> str:
    if node not in settings.nodes:
        bootable = ", ".join(settings.nodes) or "none"
        raise CommandExecutionError(f"no node {node} that can boot in profile {settings.profile}: expected {bootable}")
    return node


def _directory() -> Path:
    return records.path_of(__opts__, records.BOOT)


def _view(settings: Settings) -> dict[str, Any]:
    state = storage.read(_directory())
    if state is None:
        raise CommandExecutionError("there is no boot record: is the boot engine running? (engines: [{boot: {}}])")
    return progress_report.view(state, time.time(), settings.deadlines_seconds)
