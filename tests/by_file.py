"""Load what is no package by its file, as Salt's loader and a node do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
# Salt's loader puts the folder of `_utils` on the path of whatever it loads.
if str(REPOSITORY / "_utils") not in sys.path:
    sys.path.append(str(REPOSITORY / "_utils"))


def load(path: str | Path, name: str | None = None) -> Any:
    """Return a module made of a file of this repository; a new one with every call.

    Parameters
    ----------
    path
        The file, from the repository's root.
    name
        What the module is called; left out, its file's stem.
    """
    file = REPOSITORY / path
    specification = importlib.util.spec_from_file_location(name or file.stem, file)
    assert specification and specification.loader, f"{file} cannot be loaded"
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
