"""Find a control node by ssh: one configuration file for ssh and rsync.

All options are in a file of ours that is given with `-F`, not on the command line: rsync
splits its `-e` at spaces, and a home folder may have some. The person's own configuration
is read after ours, so host aliases and jump hosts of theirs work, and ours win.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from bottleneck import atomic_files

# The least of the systems' limits for the name of a socket (macOS: 104 bytes with the final NUL),
# less what ssh adds: a slash, 40 hexadecimal digits of `%C`, and 17 characters while it makes it.
SOCKET_NAME_BYTES = 103
_ADDED_BYTES = 1 + 40 + 17
PERSIST_SECONDS = 600
ALIVE_INTERVAL_SECONDS, ALIVE_COUNT = 5, 3


class TargetError(ValueError):
    """Settings with which no connection can be made; the text is a sentence for the person."""


@dataclass(frozen=True)
class Target:
    """The control node as ssh sees it.

    Attributes
    ----------
    host
        `[user@]host`, or an alias of the person's ssh configuration.
    known_hosts
        The cluster's own file of host keys; no other is looked at.
    directory
        Where the control node keeps our tree and its environment.
    sudo
        Whether commands there go through `sudo -n`.
    """

    host: str
    known_hosts: Path
    port: int | None = None
    identity: Path | None = None
    directory: str = "/opt/cluster"
    sudo: bool = False

    def __post_init__(self) -> None:
        # A host that begins with a hyphen would be an option of ssh.
        if not self.host or self.host.startswith("-") or any(c.isspace() or ord(c) < 32 for c in self.host):
            raise TargetError(f"control.host is {self.host!r}; expected [user@]host, such as root@nuc.local")
        parts = Path(self.directory).parts
        if not self.directory.startswith("/") or len(parts) < 3 or ".." in parts:
            raise TargetError(
                f"control.directory is {self.directory!r}; expected a folder of its own, such as /opt/cluster"
            )

    @property
    def tree(self) -> str:
        """The link there that leads to the synced tree."""
        return f"{self.directory}/src"

    @property
    def programs(self) -> str:
        """The folder there that holds `salt`, `salt-run` and `cluster`."""
        return f"{self.directory}/venv/bin"

    def ssh_configuration(self, sockets: Path) -> str:
        """Return the text of the ssh configuration."""
        options = {
            "BatchMode": "yes",  # never a prompt: no password, no question about a host key
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": _quoted(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no",
            "VerifyHostKeyDNS": "no",
            "ControlMaster": "auto",
            "ControlPath": _quoted(sockets)[:-1] + '/%C"',
            "ControlPersist": str(PERSIST_SECONDS),
            "ServerAliveInterval": str(ALIVE_INTERVAL_SECONDS),
            "ServerAliveCountMax": str(ALIVE_COUNT),
            "ConnectTimeout": "10",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "RemoteCommand": "none",
            "RequestTTY": "no",
            "PermitLocalCommand": "no",
            "EscapeChar": "none",
            "LogLevel": "ERROR",
        }
        if self.port is not None:
            options["Port"] = str(self.port)
        if self.identity is not None:
            options |= {"IdentityFile": _quoted(self.identity), "IdentitiesOnly": "yes"}
        lines = ["# Written by `cluster`; the first value of an option wins.", "Host *"]
        lines += [f"    {name} {value}" for name, value in options.items()]
        lines += ["Include ~/.ssh/config", "Include /etc/ssh/ssh_config"]
        return "\n".join(lines) + "\n"

    def ssh(self) -> list[str]:
        """Return how `ssh` is called, without the host; writes its configuration when it is not there."""
        folder = socket_directory()
        text = self.ssh_configuration(folder)
        # A name for each content: two clusters, or two versions of us, do not write over one another.
        path = folder / f"config-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if not path.exists():
            atomic_files.replace(path, text, mode=0o600)
        return ["ssh", "-F", str(path)]


def socket_directory() -> Path:
    """Return this person's folder for connections: short enough for a socket, and nobody else's.

    Raises
    ------
    TargetError
        When every candidate is too long or belongs to someone else.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # /tmp by name: macOS's TMPDIR is too long for a socket.
    candidates = [Path(runtime) / "cluster-ssh"] if runtime and Path(runtime).is_dir() else []
    candidates.append(Path("/tmp") / f"cluster-ssh-{os.getuid()}")  # noqa: S108 (its owner is checked below)
    reasons = []
    for folder in candidates:
        if len(os.fsencode(folder)) + _ADDED_BYTES > SOCKET_NAME_BYTES or " " in str(folder):
            reasons.append(f"{folder} is too long for a socket's name, or has a space")
            continue
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            continue
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
        reasons.append(f"{folder} is not a folder of your own with mode 0700")
    raise TargetError("no place for ssh's connection: " + "; ".join(reasons))


def _quoted(path: Path) -> str:
    # ssh_config has quotes for spaces and no way to write a quote itself.
    if '"' in str(path):
        raise TargetError(f"{path}: ssh takes no path with a quotation mark")
    # A percent sign begins one of ssh's own tokens.
    return '"' + str(path).replace("%", "%%") + '"'
