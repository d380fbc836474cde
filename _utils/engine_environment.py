"""
Say what an inference engine's processes need in their environment.
"""

import os
from collections.abc import Mapping
from typing import Any


def preload(engine: Mapping[str, Any]) -> dict[str, str]:
    """
    Return the environment that has the engine's libraries loaded before all others; empty when it names none.

    engine
        the accelerator's entry of the engine map, with ``directory`` and ``preload`` (paths below it)
    """
    libraries = [os.path.join(engine["directory"], path) for path in engine.get("preload") or []]
    return {"LD_PRELOAD": ":".join(libraries)} if libraries else {}
