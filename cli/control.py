"""Find the control node that a command means: a lab's on this machine, this machine, or one over ssh."""

import os
from pathlib import Path

import lab as lab_module
from bottleneck.profile import ProfileError, find_profile, load_profile
from cli import config
from cli.completion import remember_nodes
from cli.control_local import HereControl, LabControl
from cli.output import UNREACHABLE, USAGE, fail
from remote.control import RemoteControl
from remote.control_interface import PROGRESS_MARK, Completed, Control, ControlError, Progress
from remote.target import Target, TargetError

__all__ = [
    "PROGRESS_MARK",
    "Completed",
    "Control",
    "ControlError",
    "Progress",
    "connect",
    "control_target",
    "runs_directory",
]

HERE = "here"


def connect(profile: str, lab: str) -> Control:
    """Return the control node of `profile`, or end the command with what to do first.

    A profile of kind `lab` has its control node in a lab on this machine; the settings say
    where that of a hardware profile is.
    """
    try:
        path = find_profile(profile)
        loaded = load_profile(path)
    except ProfileError as error:
        fail(str(error), f"cluster profile check {profile}", USAGE)
    remember_nodes(loaded)
    if loaded.kind != "lab":
        target = control_target()
        return RemoteControl(loaded, path, target) if target else HereControl(loaded, path)
    if os.geteuid() != 0:
        fail("the lab is made of namespaces, which needs root", "sudo -E cluster ...", UNREACHABLE)
    state = lab_module.status(lab)
    if not state.get("up"):
        fail(f"lab {lab} is not up", f"cluster lab up {lab}", UNREACHABLE)
    return LabControl(loaded, path, lab)


def _text(value: config.SettingValue) -> str | None:
    return str(value) if value else None


def control_target(host: str | None = None) -> Target | None:
    """Return how ssh gets to the control node; None when it is this machine.

    Parameters
    ----------
    host
        In the place of the one in the settings.
    """
    try:
        values = {key: value.value for key, value in config.lookup().items()}
        host = host or _text(values["control.host"])
        if host is None:
            fail("no control node is set", "cluster --control root@HOST ..., or control.host in cluster.toml", USAGE)
        if host == HERE:
            return None
        identity, port = _text(values["control.identity"]), values["control.port"]
        return Target(
            host=host,
            known_hosts=config.user_directory() / "known_hosts",
            port=port if isinstance(port, int) else None,
            identity=Path(identity) if identity else None,
            directory=str(values["control.directory"]),
            sudo=bool(values["control.sudo"]),
        )
    except (config.ConfigError, TargetError) as error:
        fail(str(error), "cluster config show --origin", USAGE)


def runs_directory() -> Path:
    """Return the folder that holds this laptop's runs."""
    try:
        return Path(str(config.get("runs"))).absolute()
    except config.ConfigError as error:
        fail(str(error), "cluster config show --origin", USAGE)
