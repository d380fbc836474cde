"""Which image a node boots: what is active for the profile, as its manifest says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

_DIGEST = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
FILES = ("vmlinuz", "initrd.img", "root.squashfs")


class NoImageError(Exception):
    """There is nothing to boot; the text says what is missing."""


@dataclass(frozen=True)
class Bootable:
    """An image that can be booted: its name, and the digest that the node checks the root with."""

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
    trial = root / "nodes" / profile / node
    link = trial if trial.exists() else root / "active" / profile
    try:
        manifest = json.loads((link / "manifest.json").read_text())
        digest, sha256 = manifest["digest"], manifest["files"]["root.squashfs"]["sha256"]
        layers = tuple(layer["sha256"] for layer in manifest.get("layers", []))
    except OSError as error:
        raise NoImageError(f"no image is active for profile {profile} ({error.strerror}: {link})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NoImageError(f"the manifest of the active image cannot be read: {link}/manifest.json") from error
    named = [sha256, *layers]
    if not _DIGEST.fullmatch(str(digest)) or not all(_SHA256.fullmatch(str(name)) for name in named):
        raise NoImageError(f"the manifest of the active image has no valid digest: {link}/manifest.json")
    missing = [name for name in FILES if not (root / "images" / digest / name).is_file()]
    missing += [f"layer {name[:16]}" for name in layers if not layer_file(root, f"{name}.squashfs")]
    if missing:
        raise NoImageError(f"image {digest} has no {', '.join(missing)}")
    return Bootable(digest, sha256, layers)


def image_file(root: Path, digest: str, name: str) -> Path | None:
    """Return a file of an image; None when there is no such image or file."""
    if not _DIGEST.fullmatch(digest) or name not in (*FILES, "manifest.json"):
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
