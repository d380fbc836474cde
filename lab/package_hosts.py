"""Hosts that a node may reach through the control node: those that serve packages."""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

_COMMON = ("debian.org", "pypi.org", "pythonhosted.org", "pytorch.org", "ubuntu.com")
_MODEL_HUB = ("huggingface.co", "hf.co")
_HOST = re.compile(r"https?://(?:[^@/\s]+@)?([A-Za-z0-9][A-Za-z0-9.-]*)")


def package_hosts(engines: Path, needs_hub: bool, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the hosts, with those that this machine's own pip and apt settings name.

    `engines` is the profile folder's engines.yaml, which may name an index. A model from a
    hub needs the hub as well. CLUSTER_EGRESS_HOSTS adds more, separated by commas.
    """
    settings = [environment.get(name, "") for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")]
    named = hosts_in(settings) | hosts_in(_texts([engines, *_setting_files(environment)]))
    added = {host.strip() for host in environment.get("CLUSTER_EGRESS_HOSTS", "").split(",") if host.strip()}
    return sorted({*_COMMON, *named, *added, *(_MODEL_HUB if needs_hub else ())})


def hosts_in(texts: Iterable[str]) -> set[str]:
    """Return the hosts of all http and https addresses in `texts`, comment lines left out."""
    lines = (line for text in texts for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {host.lower().rstrip(".") for line in lines for host in _HOST.findall(line)}


def _setting_files(environment: Mapping[str, str]) -> list[Path]:
    home = Path(environment.get("HOME", "/root"))
    pip = [Path("/etc/pip.conf"), Path("/etc/xdg/pip/pip.conf"), Path(sys.prefix) / "pip.conf"]
    pip += [home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    pip += [Path(environment.get("PIP_CONFIG_FILE", "/dev/null"))]
    lists = Path("/etc/apt/sources.list.d")
    return [*pip, Path("/etc/apt/sources.list"), *lists.glob("*.list"), *lists.glob("*.sources")]


def _texts(paths: Iterable[Path]) -> Iterable[str]:
    for path in paths:
        try:
            yield path.read_text(errors="replace")
        except OSError:
            continue
