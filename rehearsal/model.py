"""The model that the nodes serve: made by the nodes' own module on this machine, once, and kept by its digest.

It needs a Python with torch, which no node of the rehearsal has: the environment of the lab's engine on this machine.
What comes out is published as on a control node (`netboot.boot.models`), and sent there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bottleneck.plan.engines import conversion
from bottleneck.profile import load_profile
from bottleneck.profile.paths import lock_file
from bottleneck.profile.types import EngineSpec, Profile
from netboot.boot.models import publish
from netboot.image.engines import Masterless
from rehearsal.debian import CACHE, REPOSITORY

SCRIPTS = REPOSITORY / "salt" / "model" / "files"


def tools() -> EngineSpec:
    """Return the engine of this project's own engine map whose Python makes checkpoints and converts them."""
    return load_profile(REPOSITORY / "profiles" / "embedded.yaml").engines["cpu"]


def steps(profile: Profile) -> list[tuple[str, str, list[Any]]]:
    """Return what is done, in order: what it is, the module's function, its arguments."""
    engine, python = profile.engine_of(next(iter(profile.nodes))), tools()
    made = conversion(profile, engine)
    assert made, "the rehearsal's engine loads a form of its own"
    names = {**made["names"], "python": f"{python.directory()}/bin/python"}
    model = {**profile.model.model_dump(mode="json"), "directory": profile.model.directory()}
    lock = str(lock_file(python.lock)) if python.lock else None
    return [
        ("the environment with torch", "engine.install", [python.directory(), lock, python.installation()]),
        ("llama.cpp of Debian's packages", "engine.install", [engine.directory(), None, engine.installation()]),
        (
            "the checkpoint",
            "model.make",
            [profile.model.directory(), model, python.directory(), str(SCRIPTS / "make_model.py")],
        ),
        ("the model in GGUF", "model.convert", [made["directory"], {**made, "names": names}, str(SCRIPTS)]),
    ]


def folders(profile: Profile) -> list[Path]:
    """Return where checkpoint and converted model are, on this machine as on the nodes."""
    made = conversion(profile, profile.engine_of(next(iter(profile.nodes))))
    return [Path(profile.model.directory()), *([Path(made["directory"])] if made else [])]


def make(profile: Profile, say: Callable[[str], None]) -> list[Path]:
    """Make the model unless it is kept; return its folders as a control node publishes them."""
    store = CACHE / "models"
    published = [store / folder.name for folder in folders(profile)]
    if not all((folder / "index.json").is_file() for folder in published):
        with tempfile.TemporaryDirectory() as folder:
            module = Masterless(Path(folder))
            module.call("saltutil.sync_all", [])
            for what, function, arguments in steps(profile):
                say(f"{what}: {function}")
                module.call(function, arguments)
        for source in folders(profile):
            publish(source, store)
    return published
