"""Options of a minion that runs our states without a master."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import salt.config

REPOSITORY = Path(__file__).parents[2]


def minion_options(root: Path, identity: str, **changed: Any) -> dict[str, Any]:
    """Return the options of a minion whose folders are below `root`; `changed` is laid over them."""
    options: dict[str, Any] = salt.config.minion_config(None)
    options.update(
        {
            "id": identity,
            "root_dir": str(root),
            "cachedir": str(root / "cache"),
            "extension_modules": str(root / "extmods"),
            # Of the control node: the pillar is made in this process.
            "cluster_directory": str(root / "cluster"),
            "file_client": "local",
            "file_roots": {"base": [str(REPOSITORY / "salt")]},
            "pillar_roots": {"base": [str(REPOSITORY / "pillar")]},
            "modules_dirs": [str(REPOSITORY / "_modules")],
            "states_dirs": [str(REPOSITORY / "_states")],
            "utils_dirs": [str(REPOSITORY / "_utils")],
            "enable_fqdns_grains": False,
            "enable_gpu_grains": False,
            **changed,
        }
    )
    return options
