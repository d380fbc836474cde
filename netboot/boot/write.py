"""Write what dnsmasq needs: `python -m netboot.boot.write PROFILE DIRECTORY [--log FILE]`.

DIRECTORY gets dnsmasq.conf and tftp/; a file that is right already is not touched. Says what changed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bottleneck.profile import ProfileError, find_profile, load_profile
from netboot.boot import rendering
from netboot.boot.settings import Settings

LOG_FILE = Path("/var/log/cluster/dnsmasq.log")


def main(arguments: list[str] | None = None) -> int:
    """Write the files; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m netboot.boot.write", description=__doc__.splitlines()[0])
    parser.add_argument("profile", help="profile name or path")
    parser.add_argument("directory", type=Path, help="where dnsmasq.conf and tftp/ go")
    parser.add_argument("--log", type=Path, default=LOG_FILE, help="dnsmasq's log file, which the boot service reads")
    parser.add_argument(
        "--ipxe", type=Path, default=rendering.IPXE_DIRECTORY, help="where the package ipxe put its files"
    )
    given = parser.parse_args(arguments)
    try:
        settings = Settings.of(load_profile(find_profile(given.profile)))
        changed = rendering.write_all(settings, given.directory.absolute(), log_file=given.log, ipxe=given.ipxe)
    except (ProfileError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(str(path) for path in changed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
