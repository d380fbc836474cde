"""Stores with small images in them, for tests: real files and manifests, no build."""

from __future__ import annotations

import json
from pathlib import Path

from netboot.image.manifest import CONTENTS, FILES, Layer, Manifest, file_of, image_digest, write_manifest
from netboot.image.store import Store


def put_image(
    store: Store,
    text: str,
    *,
    created: str = "2026-11-24T09:00:00Z",
    packages: dict[str, str] | None = None,
    contents: dict[str, str] | None = None,
    layers: dict[str, bytes] | None = None,
    profile: str | None = "embedded",
) -> Manifest:
    """Publish an image whose files say `text`."""
    workspace = store.workspace("test")
    for name in FILES:
        (workspace / name).write_text(f"{name} {text}")
    (workspace / CONTENTS).write_text(json.dumps(contents or {}))
    made = []
    for name, content in (layers or {}).items():
        path = store.root / f"layer-{name}"
        path.write_bytes(content)
        file = file_of(path)
        made.append((Layer(name=name, sha256=file.sha256, bytes=file.bytes), path))
    files = {name: file_of(workspace / name) for name in FILES}
    manifest = Manifest(
        schema=1,
        digest=image_digest("0" * 64, files, [layer for layer, _ in made]),
        created=created,
        profile=profile,
        recipe="base",
        recipe_digest="0" * 64,
        kernel="6.12.1-amd64",
        suite="trixie",
        sources=[],
        packages=packages or {"iproute2": "6.15.0-1"},
        python={"salt": "3008.3"},
        files=files,
        layers=[layer for layer, _ in made],
    )
    write_manifest(workspace, manifest)
    store.publish(workspace, manifest, made)
    return manifest


def names(folder: Path) -> set[str]:
    """Return what a folder holds, hidden files as well."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()
