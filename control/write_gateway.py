"""Write what the gateway needs: `python -m control.write_gateway PROFILE DIRECTORY`.

DIRECTORY gets HAProxy's configuration and the file beside it; a file that is right already is not touched. The key of
the API, which the service's unit hands to it, is made where there is none. Says what changed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from salt.exceptions import CommandExecutionError

from bottleneck import atomic_files
from bottleneck.plan import gateway
from bottleneck.plan.master import STATE_DIRECTORY
from bottleneck.profile import ProfileError, find_profile, load_profile
from control import engine_key

# Where its unit puts the key, for the service alone.
KEY_FILE = "/run/cluster-gateway/api.key"


def main(arguments: list[str] | None = None) -> int:
    """Write the files; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m control.write_gateway", description=__doc__.splitlines()[0])
    parser.add_argument("profile", help="profile name or path")
    parser.add_argument("directory", type=Path, help="where haproxy.cfg goes")
    parser.add_argument("--state", default=STATE_DIRECTORY, help="the control node's records, with the key")
    given = parser.parse_args(arguments)
    try:
        files = gateway.files(load_profile(find_profile(given.profile)), KEY_FILE, given.directory.absolute())
        given.directory.mkdir(parents=True, exist_ok=True)
        engine_key.key({"cluster_directory": given.state})
        changed = [path for path, text in files.items() if _write(path, text)]
    except (ProfileError, CommandExecutionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(str(path) for path in changed))
    return 0


def _write(path: Path, text: str) -> bool:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    atomic_files.replace(path, text)
    return True


if __name__ == "__main__":
    sys.exit(main())
