"""A real sshd on loopback, with keys made for it, and a laptop's settings that lead to it."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import free_port

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@dataclass
class Server:
    """sshd for the user that runs the tests, on a port of its own."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)
    # Who logs in, when it is a person that exists for this server alone (see `with_person`).
    person: str | None = None

    @property
    def user(self) -> str:
        return self.person or getpass.getuser()

    @property
    def identity(self) -> Path:
        return self.folder / "identity"

    @property
    def host_key(self) -> Path:
        return self.folder / "host_key"

    @property
    def fingerprint(self) -> str:
        listed = subprocess.run(["ssh-keygen", "-lf", str(self.host_key)], capture_output=True, text=True, check=True)
        return listed.stdout.split()[1]

    @property
    def host(self) -> str:
        return f"{self.user}@127.0.0.1"

    def make_host_key(self) -> None:
        for path in (self.host_key, self.host_key.with_suffix(".pub")):
            path.unlink(missing_ok=True)
        make_key(self.host_key)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        configuration = self.folder / "sshd_config"
        configuration.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.host_key}\n"
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            "MaxSessions 20\n"
        )
        log = (self.folder / "sshd.log").open("ab")
        argv = [SSHD, "-D", "-e", "-f", str(configuration)]
        if self.person:
            argv = with_person(self.folder, self.person, argv)
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                if connection.recv(4) == b"SSH-":
                    return
            assert self.process.poll() is None, (self.folder / "sshd.log").read_text()
            assert time.monotonic() < deadline, "sshd does not answer"
            time.sleep(0.02)

    def connections(self) -> list[int]:
        """Return the processes of sshd that serve one connection each."""
        assert self.process
        return _descendants(self.process.pid)

    def cut(self) -> None:
        """Kill what serves the connections, as a cut line would end them; the server lives on."""
        for pid in self.connections():
            name = Path(f"/proc/{pid}/comm")
            with suppress(OSError):
                if name.read_text().strip().startswith("sshd"):
                    os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.cut()
            self.process.terminate()
            self.process.wait(10)


PERSON_ID = 42424
# A mount namespace has its own /etc, in which there is the person; `exec` keeps the number that the test knows.
WITH_PERSON = """
set -eu
mount --make-rprivate /
mount --bind "$1/etc" /etc
shift
exec "$@"
"""


def with_person(folder: Path, name: str, argv: list[str]) -> list[str]:
    """Return how a program is started for which there is a person who may use sudo, as Debian sets it up.

    Nobody else sees that person: the files are copies, in a mount namespace of the program's own.
    """
    etc, home = folder / "etc", folder / "home"
    if not etc.exists():
        shutil.copytree("/etc", etc, symlinks=True)
        home.mkdir()
        os.chown(home, PERSON_ID, PERSON_ID)
        folder.chmod(0o755)
        lines = {
            "passwd": f"{name}:x:{PERSON_ID}:{PERSON_ID}::{home}:/bin/bash\n",
            "group": f"{name}:x:{PERSON_ID}:\n",
            "shadow": f"{name}:*:20000:0:99999:7:::\n",
        }
        for file, line in lines.items():
            with (etc / file).open("a") as opened:
                opened.write(line)
        rules = etc / "sudoers.d" / name
        rules.write_text(f"Defaults:{name} use_pty\n{name} ALL=(root) NOPASSWD: ALL\n")
        rules.chmod(0o440)
    return ["unshare", "--mount", "sh", "-c", WITH_PERSON, "sh", str(folder), *argv]


def _descendants(pid: int) -> list[int]:
    found = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@contextmanager
def server(person: str | None = None) -> Iterator[Server]:
    """Run a server; its folder's name is short, because sockets lie in it.

    Parameters
    ----------
    person
        Who logs in, with sudo; left out, it is the user that runs the tests.
    """
    folder = Path(tempfile.mkdtemp(prefix="cs-", dir="/tmp"))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks itself in before a login
    found = Server(folder, free_port(), person=person)
    make_key(found.identity)
    found.make_host_key()
    shutil.copy(found.identity.with_suffix(".pub"), folder / "authorized_keys")
    try:
        found.start()
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


def laptop_environment(found: Server, folder: Path, directory: Path) -> dict[str, str]:
    """Return the environment of a laptop whose control node is the server.

    Parameters
    ----------
    folder
        The laptop's own: settings, runs, cache.
    directory
        What the control node keeps for us.
    """
    runtime = found.folder / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("CLUSTER_", "SSH_", "XDG_"))},
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_RUNTIME_DIR": str(runtime),
        "CLUSTER_CONTROL": found.host,
        "CLUSTER_CONTROL_PORT": str(found.port),
        "CLUSTER_CONTROL_IDENTITY": str(found.identity),
        "CLUSTER_CONTROL_DIRECTORY": str(directory),
        "CLUSTER_RUNS": str(folder / "runs"),
        "COLUMNS": "160",
    }
