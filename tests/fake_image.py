"""A small image in a real store: what the boot service needs to see of one, without building it."""

from __future__ import annotations

from pathlib import Path

from netboot.image.manifest import FILES, Manifest, file_of, image_digest, write_manifest
from netboot.image.store import Store


def publish(root: Path, profile: str, content: bytes = b"root" * 4096) -> Manifest:
    """Publish an image whose root is `content`, and make it active for `profile`."""
    store = Store(root)
    workspace = store.workspace("test")
    for name in FILES:
        (workspace / name).write_bytes(content if name.endswith(".squashfs") else name.encode() * 512)
    files = {name: file_of(workspace / name) for name in FILES}
    manifest = Manifest(
        digest=image_digest("0" * 64, files, []),
        created="2026-11-24T00:00:00Z",
        recipe="test",
        recipe_digest="0" * 64,
        kernel="6.12",
        suite="trixie",
        sources=[],
        packages={},
        python={},
        files=files,
    )
    write_manifest(workspace, manifest)
    store.publish(workspace, manifest)
    store.activate(profile, manifest.digest)
    return manifest
