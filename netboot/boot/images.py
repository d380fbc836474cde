"""Find the image that a node boots, and its files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from netboot.image.store import Store, StoreError

_DIGEST = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
FILES = ("vmlinuz", "initrd.img", "root.squashfs")


class NoImageError(Exception):
    """There is nothing to boot; the text says what is missing."""


@dataclass(frozen=True)
class Bootable:
    """An image that can be booted: its name, and the digests that the node checks what it fetches with."""

    digest: str
    sha256: str
    layers: tuple[str, ...] = ()


def active(root: Path, profile: str, node: str) -> Bootable:
    """Return the image that `node` boots: one on trial there, or else the profile's active one.

    Raises
    ------
    NoImageError
        When none is active, or the one that is active is not whole.
    """
    store = Store(root)
    digest = store.active(profile, node)
    if digest is None:
        raise NoImageError(f"no image is active for profile {profile}: cluster image activate")
    try:
        manifest = store.manifest(digest)
    except StoreError as error:
        raise NoImageError(str(error)) from error
    missing = [name for name in FILES if image_file(root, digest, name) is None]
    layers = tuple(layer.sha256 for layer in manifest.layers)
    missing += [f"layer {sha256[:16]}" for sha256 in layers if layer_file(root, f"{sha256}.squashfs") is None]
    if missing:
        raise NoImageError(f"image {digest} has no {', '.join(missing)}")
    return Bootable(digest, manifest.files["root.squashfs"].sha256, layers)


def image_file(root: Path, digest: str, name: str) -> Path | None:
    """Return a file of an image; None when there is no such image or file."""
    if not _DIGEST.fullmatch(digest) or name not in FILES:
        return None
    path = root / "images" / digest / name
    return path if path.is_file() else None


def layer_file(root: Path, name: str) -> Path | None:
    """Return a layer by its file name, `<sha256>.squashfs`; None when there is no such layer."""
    sha256, dot, suffix = name.partition(".")
    if not _SHA256.fullmatch(sha256) or f"{dot}{suffix}" != ".squashfs":
        return None
    path = root / "layers" / name
    return path if path.is_file() else None
