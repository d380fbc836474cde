"""What the control node has on record of the cluster: JSON documents in its own directory, each whole or not there."""

import contextlib
import json
from pathlib import Path

DEPLOYMENT = "deployment.json"
# Of a deployment that is starting, or that failed to: it can be asked about while it lasts, and after.
STARTING = "starting.json"
CEILINGS = "ceilings.json"
REPROVISION = "reprovision.json"
# A folder: the boot service's own record, and the orders that it is given.
BOOT = "boot"


def path_of(opts, name):
    """Return where a record is, or a folder of them; `opts` are the master's."""
    return Path(opts["cluster_directory"], name)


def read(opts, name):
    """Return a record; an empty dict when there is none, or when it cannot be read."""
    try:
        found = json.loads(path_of(opts, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(opts, name, content):
    """Put a record in the place of the one before."""
    path = path_of(opts, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(path)


def forget(opts, name):
    """Remove a record, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        path_of(opts, name).unlink()
