"""Switching a node off and on, in the way its profile names.

A password goes to ipmitool by a file of the control node, never on a command line.
"""

import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from bottleneck.profile.machine_types import ByHand, Ipmi, Node, PowerCommand, WakeOnLan

SECRETS = Path("/etc/cluster/secrets")
WAKE_PORT = 9
COMMAND_SECONDS = 120
BY_HAND = "switch it off and on again, with network boot first in its firmware"


class PowerError(Exception):
    """A node could not be switched; the text says what to do."""


def magic_packet(mac: str) -> bytes:
    """Return the packet that wakes an interface: six bytes of ones, then its MAC address sixteen times."""
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) * 16


def secret_file(name: str, directory: Path = SECRETS) -> Path:
    """Return the file of a secret, after checking that its owner alone can read it.

    Raises
    ------
    PowerError
        When it is not there, or open to others.
    """
    path = directory / name
    try:
        found = path.stat()
    except OSError as error:
        raise PowerError(f"{path}: {error.strerror}; expected the password in it, of mode 600") from None
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or found.st_uid != os.geteuid():
        mode = f"mode {stat.S_IMODE(found.st_mode):o}, owner {found.st_uid}"
        raise PowerError(f"{path}: {mode}; expected a file of {os.geteuid()} with mode 600: chmod 600 {path}")
    return path


def commands(node: Node, secrets: Path = SECRETS) -> list[list[str]]:
    """Return the command lines that switch a node, for those ways that are command lines."""
    power = node.power
    if isinstance(power, PowerCommand):
        return [list(power.cycle)]
    if isinstance(power, Ipmi):
        password = str(secret_file(power.secret, secrets))
        base = ["ipmitool", "-I", "lanplus", "-H", power.address, "-U", power.user, "-f", password]
        # The next boot alone is over the network, whatever the firmware's order is.
        return [[*base, "chassis", "bootdev", "pxe"], [*base, "chassis", "power", "cycle"]]
    return []


def cycle(
    node: Node,
    network: str,
    *,
    source: str,
    broadcast: str,
    tell: Callable[[str], None],
    secrets: Path = SECRETS,
) -> None:
    """Switch a node off and on, or tell the person how.

    Parameters
    ----------
    network
        Name of the control network, over whose interface a node is woken.
    source, broadcast
        The control node's address there, and the network's broadcast address.
    tell
        Called with what a person has to do or should know.

    Raises
    ------
    PowerError
        When the way that the profile names does not work.
    """
    power = node.power
    if power is None or isinstance(power, ByHand):
        tell(power.instructions if isinstance(power, ByHand) else BY_HAND)
    elif isinstance(power, WakeOnLan):
        mac = node.links[network].mac
        if mac is None:
            raise PowerError("its MAC address is unknown; expected one to wake it by (cluster profile set-mac)")
        _wake(mac, source, broadcast)
        tell("woken; a node that hangs and is not off has to be switched off by hand first")
    else:
        for command in commands(node, secrets):
            _run(command)


def _wake(mac: str, source: str, broadcast: str) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            # Bound to the cluster's side: the packet is for no other network.
            sender.bind((source, 0))
            sender.sendto(magic_packet(mac), (broadcast, WAKE_PORT))
    except OSError as error:
        raise PowerError(f"no packet could be sent from {source} to {broadcast}: {error.strerror}") from None


def _run(command: list[str]) -> None:
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise PowerError(f"{command[0]} is not installed on the control node") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PowerError(f"{command[0]}: {error}") from None
    if finished.returncode:
        lines = [line.strip() for line in (finished.stderr or finished.stdout).splitlines() if line.strip()]
        reason = lines[-1] if lines else "it said nothing"
        raise PowerError(f"{command[0]} ended with status {finished.returncode}: {reason}")
