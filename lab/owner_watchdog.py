"""Ends a lab when its owner ends, however that happens: waits on the owner, then runs `down`.

    python guard.py LAB OWNER_DESCRIPTOR

The descriptor is a pidfd that `up` opened and handed on, so no other process can be taken
for the owner. Nothing of the lab is imported before it is needed: the guard only sleeps.
"""

import os
import select
import sys
from pathlib import Path


def main() -> None:
    """Wait for the owner's end; nothing else wakes the guard, and `down` ends it with the lab."""
    name, owner = sys.argv[1], int(sys.argv[2])
    select.select([owner], [], [])
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from lab.cgroup_trees import discover
    from lab.lifecycle import down

    # Out of the lab's group first, so that the group can be removed.
    discover().leave(os.getpid())
    down(name, patience_seconds=600)


if __name__ == "__main__":
    main()
