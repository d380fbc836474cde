"""The three images that the nodes boot: the first, another one, and one with which no node comes back.

They are built here, at this machine's own speed, by the code that builds them on a control node,
and kept by their recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bottleneck.profile.types import Profile
from netboot.image.build import build
from netboot.image.manifest import Manifest
from netboot.image.operations import recipe_for
from netboot.image.recipe import Recipe, recipe_digest
from netboot.image.store import Store
from rehearsal.debian import CACHE

NAMES = FIRST, SECOND, BROKEN = "first", "second", "broken"
# What the second image has and the first has not.
ADDED = "tree"
# Without them systemd comes up, no minion starts, and the node never claims its place.
NEEDED = ("cluster-enrol.service", "salt-minion.service")


def recipes(profile: Profile) -> dict[str, Recipe]:
    """Return name -> recipe; the engine is in a layer, as the profile asks for it."""
    # The least compression: these are fetched over a bridge.
    first = recipe_for(profile).model_copy(update={"compression_level": 3})
    second = first.model_copy(update={"packages": sorted({*first.packages, ADDED})})
    enabled = [unit for unit in second.units.enable if unit not in NEEDED]
    units = second.units.model_copy(update={"enable": enabled})
    return {FIRST: first, SECOND: second, BROKEN: second.model_copy(update={"units": units})}


def build_all(profile: Profile, names: Sequence[str], say: Callable[[str], None]) -> tuple[Store, dict[str, str]]:
    """Return the store that holds the images of these names, and name -> digest."""
    store = Store(CACHE / "images")
    wanted = recipes(profile)
    return store, {name: build_kept(store, wanted[name], profile.name, name, say).digest for name in names}


def build_kept(store: Store, recipe: Recipe, profile: str, title: str, say: Callable[[str], None]) -> Manifest:
    """Return the image of a recipe: the one that is kept, or a new one."""
    key = recipe_digest(recipe)
    kept = next((manifest for manifest in store.images() if manifest.recipe_digest == key), None)

    def report(progress: dict[str, object]) -> None:
        say(f"{title} image: {progress.get('detail') or progress['stage']}")

    return kept or build(recipe, store, report, profile=profile)
