"""Operate on images, each operation one call that takes and returns plain data.

The runner calls these on the control node; the CLI does, for a store on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from bottleneck.profile import Profile
from bottleneck.profile.types import EngineSpec
from netboot.image.build import build as build_image
from netboot.image.canary import DEFAULT_DEADLINE_SECONDS, Canary
from netboot.image.commands import Progress
from netboot.image.diff import compare, read_contents
from netboot.image.engines import locked_engines
from netboot.image.engines import make as make_engines
from netboot.image.manifest import Manifest
from netboot.image.recipe import BASE, LayerSource, Recipe, RootSource, load_recipe
from netboot.image.store import Store, StoreError

# By this file a node's module `engine` knows that an engine's folder is complete.
ENGINE_MARKER = ".complete"


def recipe_for(profile: Profile | None, path: str | None = None) -> Recipe:
    """Return the recipe at `path` (the base one when none is given) with what the profile asks for besides.

    Engines that are Debian packages come as layers, in a root folder or as the node's own: the cluster's network leads
    nowhere else, so no node reaches Debian's archive.

    Raises
    ------
    ProfileError
        Naming line and key of what is wrong.
    """
    recipe = load_recipe(path or BASE)
    if profile is None or profile.boot is None:
        return recipe
    engines = packaged_engines(profile)
    asked = recipe.for_profile(profile.name, profile.boot.image)
    packages = {*asked.packages, *(package for engine in engines for package in engine.packages)}
    layers = [*asked.layers, *map(_engine_layer, engines)]
    return asked.model_copy(update={"packages": sorted(packages), "layers": layers})


def packaged_engines(profile: Profile) -> list[EngineSpec]:
    """Return the engines of a profile's nodes and deployments that are Debian packages, in the order of their kinds."""
    found = {
        engine.kind: engine
        for node in profile.nodes
        for engine in (profile.engine_of(node), *profile.further_engines_of(node))
    }
    return [engine for _, engine in sorted(found.items()) if engine.root_folder or engine.node_packages]


def _engine_layer(engine: EngineSpec) -> LayerSource:
    name = f"engine-{engine.kind}"
    if engine.root_folder is None:
        return LayerSource(name=name, packages=list(engine.node_packages))
    root = RootSource(
        suite=engine.root_folder.suite,
        packages=list(engine.root_folder.packages),
        accept_expired=engine.root_folder.accept_expired,
        marker=ENGINE_MARKER,
    )
    return LayerSource(name=name, root_folder=root, prefix=engine.directory())


def _environment_layer(engine: EngineSpec) -> LayerSource:
    return LayerSource(name=f"engine-{engine.kind}", directory=engine.directory(), prefix=engine.directory())


def build(
    store: Store,
    profile: Profile | None,
    progress: Progress,
    recipe: str | None = None,
    activate: bool = False,
    accept_expired: bool = False,
    engines: bool = False,
) -> dict[str, Any]:
    """Build the profile's image; with `activate`, make it the active one.

    Parameters
    ----------
    accept_expired
        Take an archive that is past its own date, whatever the recipe says.
    engines
        Make the environments of the profile's locked engines on this machine, and a layer of each.
    """
    if activate and profile is None:
        raise StoreError("an image is made active for a profile; name one")
    name = profile.name if profile else None
    declared = recipe_for(profile, recipe)
    if accept_expired:
        declared = declared.model_copy(update={"accept_expired": True})
    if engines and profile is not None:
        locked = locked_engines(profile)
        make_engines(locked, progress)
        declared = declared.model_copy(update={"layers": [*declared.layers, *map(_environment_layer, locked)]})
    manifest = build_image(declared, store, progress, profile=name)
    if activate and name:
        store.activate(name, manifest.digest)
    return _summary(store, manifest, name)


def show_all(store: Store, profile: str | None) -> list[dict[str, Any]]:
    """Return every image, newest first, with what it is to the profile."""
    return [_summary(store, manifest, profile) for manifest in store.images()]


def show(store: Store, profile: str | None, image: str, verify: bool = False) -> dict[str, Any]:
    """Return an image's manifest; with `verify`, what is wrong with its files."""
    digest = store.resolve(image, profile)
    manifest = store.manifest(digest)
    found = manifest.document() | {"roles": _roles(store, digest, profile), "folder": str(store.folder(digest))}
    if verify:
        found["problems"] = store.verify(digest)
    return found


def diff(store: Store, profile: str | None, old: str, new: str) -> dict[str, Any]:
    """Compare two images."""
    digests = store.resolve(old, profile), store.resolve(new, profile)
    before, after = (store.manifest(digest) for digest in digests)
    contents = [read_contents(store.folder(digest)) for digest in digests]
    return compare(before, contents[0], after, contents[1]).document()


def activate(
    store: Store,
    profile: Profile,
    image: str,
    canary: str | None = None,
    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
    now: float | None = None,
) -> dict[str, Any]:
    """Make an image the one that nodes boot: all of them, or first one of them on trial.

    Raises
    ------
    StoreError
        When there is no such image or node, its files are damaged, or another trial is under way.
    """
    digest = store.resolve(image, profile.name)
    wrong = store.verify(digest)
    if wrong:
        raise StoreError(f"image {digest} is damaged: {wrong[0]}; build it again")
    before = store.active(profile.name)
    if canary is None:
        store.activate(profile.name, digest)
        return {"profile": profile.name, "active": digest, "previous": store.previous(profile.name), "canary": None}
    if canary not in profile.nodes:
        raise StoreError(f"no node {canary} in profile {profile.name}; expected one of {', '.join(profile.nodes)}")
    if before is None:
        raise StoreError("no image is active yet, so a trial would have nothing to go back to; activate one first")
    if before == digest:
        raise StoreError(f"{digest} is active already")
    started = time.time() if now is None else now
    trial = Canary(profile.name, canary, digest, started, started + deadline_seconds)
    store.begin_trial(trial)
    previous = store.previous(profile.name)
    return {"profile": profile.name, "active": before, "previous": previous, "canary": trial.document()}


def active(store: Store, profile: str) -> dict[str, Any]:
    """Return what the profile's nodes boot."""
    trial = store.canary(profile)
    return {
        "profile": profile,
        "digest": store.active(profile),
        "previous": store.previous(profile),
        "canary": trial.document() if trial else None,
    }


def rollback(store: Store, profile: str) -> dict[str, Any]:
    """Go back to the previous image, or end the trial that is under way."""
    trial = store.canary(profile)
    gone, now = store.rollback(profile)
    return {"profile": profile, "from": gone, "active": now, "trial_ended": trial.node if trial else None}


def collect(store: Store, keep: int, running: Iterable[str]) -> dict[str, Any]:
    """Remove images that nobody needs."""
    removed = store.collect(keep, running)
    return {
        "images": list(removed.images),
        "layers": list(removed.layers),
        "bytes": removed.bytes,
        "kept": [manifest.digest for manifest in store.images()],
    }


def locked(store: Store, profile: str | None, image: str) -> list[str]:
    """Return an image's packages as the lines of a lock, for a recipe that is to end up with the same ones."""
    manifest = store.manifest(store.resolve(image, profile))
    return [f"{name}={version}" for name, version in sorted(manifest.packages.items())]


def _summary(store: Store, manifest: Manifest, profile: str | None) -> dict[str, Any]:
    return {
        "digest": manifest.digest,
        "created": manifest.created,
        "profile": manifest.profile,
        "recipe": manifest.recipe,
        "kernel": manifest.kernel,
        "packages": len(manifest.packages),
        "bytes": {name: file.bytes for name, file in manifest.files.items()},
        "layers": [layer.model_dump() for layer in manifest.layers],
        "build_seconds": manifest.build_seconds,
        "roles": _roles(store, manifest.digest, profile),
    }


def _roles(store: Store, digest: str, profile: str | None) -> list[str]:
    if profile is None:
        return []
    trial = store.canary(profile)
    roles = [
        name for name, holder in (("active", store.active), ("previous", store.previous)) if holder(profile) == digest
    ]
    return [*roles, f"canary on {trial.node}"] if trial and trial.digest == digest else roles
