"""
Say what an inference engine's processes need: their environment, and how a program of it is run.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

# What a program in a root folder sees of the node. In a mount namespace of the process's own, so nothing stays behind
# when it ends; with exec all the way, so that it is the process that was started.
_ENTER = """set -e
root=$1; shift
for folder in /proc /sys /dev /run /var/cache/cluster /etc/hosts; do
    [ -e "$folder" ] || continue
    if [ -d "$folder" ]; then mkdir -p "$root$folder"; else [ -e "$root$folder" ] || : > "$root$folder"; fi
    mount --rbind "$folder" "$root$folder"
done
exec chroot "$root" "$@"
"""


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
    entering = ["/usr/bin/unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", _ENTER, "sh"]
    return [*entering, engine["directory"], program, *argv]
