"""Host keys: the cluster's own known_hosts, and the first contact with a machine."""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bottleneck import atomic_files
from remote.session import RemoteError
from remote.target import Target

CONTACT_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class HostKey:
    """The key that a machine showed at first contact.

    Attributes
    ----------
    entry
        Its line for known_hosts.
    fingerprint
        `SHA256:...`, as `ssh-keygen -l` prints it on the machine itself.
    """

    entry: str
    kind: str
    fingerprint: str

    @property
    def name(self) -> str:
        """Under which name ssh looks it up."""
        return self.entry.split()[0]


def show_key(target: Target) -> HostKey:
    """Ask a machine for its host key; nothing of ours is shown to it and nothing is trusted.

    ssh itself asks, so aliases, ports and jump hosts are the ones that later connections use.

    Raises
    ------
    RemoteError
        When it cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="cluster-key-") as folder:
        seen = Path(folder) / "known_hosts"
        options = {
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": f'"{seen}"',
            "HashKnownHosts": "no",
            "ControlMaster": "no",
            "ControlPath": "none",
            # The key exchange is enough: no key of ours is offered to a machine that is not trusted.
            "PreferredAuthentications": "none",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        try:
            # What is on the command line goes before what is in the file.
            asked = subprocess.run(
                ["ssh", *words, *target.ssh()[1:], "-T", target.host, "true"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CONTACT_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RemoteError(f"{target.host} did not answer within {CONTACT_TIMEOUT_SECONDS:.0f} s") from None
        entry = seen.read_text(encoding="utf-8").strip() if seen.exists() else ""
        if not entry:
            reason = asked.stderr.strip().splitlines()[-1:] or ["it showed no host key"]
            raise RemoteError(f"cannot reach {target.host}: {reason[0]}", "cluster doctor")
        listed = subprocess.run(["ssh-keygen", "-l", "-f", str(seen)], capture_output=True, text=True, check=True)
        _, fingerprint, *_, kind = listed.stdout.splitlines()[0].split()
        return HostKey(entry.splitlines()[0], kind.strip("()"), fingerprint)


def is_trusted(target: Target, key: HostKey) -> bool:
    """Tell whether exactly this key is the known one."""
    return key.entry in known_entries(target.known_hosts, key.name)


def known_entries(path: Path, name: str) -> list[str]:
    """Return the lines of known_hosts for one name."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.split()[:1] == [name]]


def trust(target: Target, key: HostKey) -> None:
    """Make this key the only known one of its machine; the file is replaced whole."""
    path = target.known_hosts
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    kept = [line for line in lines if line.split()[:1] != [key.name]]
    atomic_files.replace(path, "\n".join([*kept, key.entry]) + "\n", mode=0o600)
