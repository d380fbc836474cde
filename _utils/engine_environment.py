"""
Say what an inference engine's processes need: their environment, and how a program of it is run.
"""

import grp
import os
import pwd
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

USER = "cluster-engine"
# Whose devices cards are, where there are such groups.
CARD_GROUPS = ("render", "video")
# What a program in a root folder sees of the node. In a mount namespace of the process's own, so nothing stays behind
# when it ends; with exec all the way, so that it is the process that was started.
_ENTER = """set -e
root=$1; shift
for folder in /proc /sys /dev /run /var/cache/cluster /etc/hosts; do
    [ -e "$folder" ] || continue
    if [ -d "$folder" ]; then mkdir -p "$root$folder"; else [ -e "$root$folder" ] || : > "$root$folder"; fi
    mount --rbind "$folder" "$root$folder"
done
exec chroot "$@"
"""


class Account(NamedTuple):
    """User of an engine's processes: its number, its group's, those of its further groups; and its folder."""

    user: int
    group: int
    groups: tuple[int, ...]
    home: str


def preload(engine: Mapping[str, Any]) -> dict[str, str]:
    """
    Return the environment that has the engine's libraries loaded before all others; empty when it names none.

    engine
        the engine map's entry, with ``directory`` and ``preload`` (paths below it)
    """
    libraries = [os.path.join(engine["directory"], path) for path in engine.get("preload") or []]
    return {"LD_PRELOAD": ":".join(libraries)} if libraries else {}


def path(engine: Mapping[str, Any]) -> str:
    """
    Return where the engine's programs are looked for.

    engine
        the engine map's entry, with ``directory``
    """
    system = "/usr/sbin:/usr/bin:/sbin:/bin"
    if engine.get("root_folder"):
        return system
    return f"{engine['directory']}/bin:{os.environ.get('PATH', system)}"


def account(name: str = USER) -> Account:
    """
    Return who this node's engines are.

    Raises RuntimeError on a node that was not configured.
    """
    try:
        found = pwd.getpwnam(name)
    except KeyError as error:
        raise RuntimeError(f"there is no user {name} on this node: run state.apply engine first") from error
    groups = {found.pw_gid, *(each.gr_gid for each in grp.getgrall() if each.gr_name in CARD_GROUPS)}
    return Account(found.pw_uid, found.pw_gid, tuple(sorted(groups)), found.pw_dir)


def of_account(who: Account) -> dict[str, str]:
    """Return the environment of a user that need not be known where the program runs."""
    return {"HOME": who.home, "USER": USER, "LOGNAME": USER}


def make_mount_points(folders: Iterable[str], root: str) -> None:
    """Make what systemd mounts the node's folders and its file of hosts over, in a root folder."""
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    with open(os.path.join(root, "etc/hosts"), "a", encoding="ascii"):
        pass


def is_reachable(path: str) -> bool:
    """Return whether any user gets to what a path leads to."""
    folder = os.path.dirname(os.path.realpath(path))
    while True:
        if not os.stat(folder).st_mode & stat.S_IXOTH:
            return False
        if folder == os.path.dirname(folder):
            return True
        folder = os.path.dirname(folder)


def command_as(
    who: Account, engine: Mapping[str, Any], program: str, argv: Sequence[str], confined: bool = False
) -> list[str]:
    """
    Return the command that runs a program of the engine as its user, who gains nothing by what it runs.

    who
        see ``account``
    engine, program, argv
        see ``command``
    confined
        whether its unit has the engine's root folder mounted (``unit_sandbox.engine``) and keeps all from
        new powers
    """
    groups = ",".join(map(str, who.groups))
    if engine.get("root_folder"):
        entering = [f"--userspec={who.user}:{who.group}", f"--groups={groups}", engine["directory"], program, *argv]
        if confined:
            return ["/usr/sbin/chroot", *entering]
        return ["/usr/bin/setpriv", "--no-new-privs", *_entered(engine["directory"], entering)]
    python = os.path.join(engine["directory"], "bin/python")
    # A lab's engine may be made with the Python of a person, in a folder that is closed to all others. That it reads
    # such folders is all that it has more than any other user.
    reading = not confined and os.path.exists(python) and not is_reachable(python)
    powers = [f"--{kind}-caps=+dac_read_search" for kind in ("inh", "ambient")] if reading else []
    user = [f"--reuid={who.user}", f"--regid={who.group}", f"--groups={groups}", *powers, "--no-new-privs"]
    return ["/usr/bin/setpriv", *user, "--", os.path.join(engine["directory"], program), *argv]


def command(engine: Mapping[str, Any], program: str, argv: Sequence[str]) -> list[str]:
    """
    Return the command that runs a program of the engine.

    engine
        the engine map's entry, with ``directory`` and, where it is a root folder, ``root_folder``
    program
        a path below the environment; in a root folder, a path there
    """
    if not engine.get("root_folder"):
        return [os.path.join(engine["directory"], program), *argv]
    return _entered(engine["directory"], [engine["directory"], program, *argv])


def _entered(root: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that has the node mounted in a root folder, and runs ``chroot`` with the arguments."""
    outside = ["/usr/bin/unshare", "--mount", "--propagation", "private"]
    return [*outside, "/bin/sh", "-c", _ENTER, "sh", root, *arguments]
