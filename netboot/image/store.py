"""The images on the control node: by digest, which one is active for whom, and what may go.

Everything that readers see changes by one rename, so that there is no moment at which
a node could be given half an image; everything that writes holds one lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from bottleneck import atomic_files
from bottleneck.json_files import JsonFileError, read_json
from bottleneck.profile.paths import CACHE_DIRECTORY
from netboot.image.canary import Canary
from netboot.image.manifest import MANIFEST, Layer, Manifest, file_of, read_manifest

DEFAULT_ROOT = Path("/var/lib/cluster/images")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_CANARY: TypeAdapter[Canary] = TypeAdapter(Canary)
_DIGEST = re.compile(r"[0-9a-f]{4,16}")


class StoreError(Exception):
    """The store cannot do this; the text says why and what there is."""


@dataclass(frozen=True)
class Removed:
    """Versions that a collection took away."""

    images: tuple[str, ...]
    layers: tuple[str, ...]
    bytes: int


class Store:
    """One folder of images.

    Parameters
    ----------
    root : Path
        Holds ``images/``, ``layers/``, ``active/``, ``previous/``, ``nodes/`` and ``canary/``.
    """

    def __init__(self, root: Path | str = DEFAULT_ROOT) -> None:
        self.root = Path(root)

    # Reading ----------------------------------------------------------------------------

    def images(self) -> list[Manifest]:
        """Return every image, newest first."""
        found = []
        for folder in (self.root / "images").glob("*"):
            with contextlib.suppress(JsonFileError):
                manifest = read_manifest(folder)
                if manifest:
                    found.append(manifest)
        return sorted(found, key=lambda each: (each.created, each.digest), reverse=True)

    def folder(self, digest: str) -> Path:
        """Return the folder of an image."""
        return self.root / "images" / digest

    def layer_path(self, sha256: str) -> Path:
        """Return the file of a layer."""
        return self.root / "layers" / f"{sha256}.squashfs"

    def resolve(self, text: str, profile: str | None = None) -> str:
        """Return the digest that a person means: the beginning of one, ``active`` or ``previous``.

        Raises
        ------
        StoreError
            When none or several match.
        """
        if text in ("active", "previous"):
            digest = self._pointer(self.root / text / _checked(profile or "", "profile"))
            if digest is None:
                raise StoreError(f"profile {profile} has no {text} image")
            return digest
        known = sorted(path.name for path in (self.root / "images").glob("*") if (path / MANIFEST).is_file())
        matches = [digest for digest in known if digest.startswith(text)] if _DIGEST.fullmatch(text) else []
        if len(matches) == 1:
            return matches[0]
        seen = f"{len(matches)} images begin with {text}" if matches else f"there is no image {text}"
        raise StoreError(f"{seen}; expected one of {', '.join(known) or 'none, since nothing was built yet'}")

    def manifest(self, digest: str) -> Manifest:
        """Return an image's manifest.

        Raises
        ------
        StoreError
            When there is no such image.
        """
        try:
            found = read_manifest(self.folder(digest))
        except JsonFileError as error:
            raise StoreError(f"there is no image {digest}: {error}") from error
        if found is None:
            raise StoreError(f"there is no image {digest}")
        return found

    def why_missing(self, digest: str) -> str:
        """Return why an image cannot be booted; empty when it can."""
        try:
            self.manifest(digest)
        except StoreError as error:
            return str(error)
        return ""

    def active(self, profile: str, node: str | None = None) -> str | None:
        """Return the digest that a node of a profile boots: its own, or the profile's."""
        if node is not None:
            own = self._pointer(self.root / "nodes" / _checked(profile, "profile") / _checked(node, "node"))
            if own:
                return own
        return self._pointer(self.root / "active" / _checked(profile, "profile"))

    def previous(self, profile: str) -> str | None:
        """Return the digest that was active before."""
        return self._pointer(self.root / "previous" / _checked(profile, "profile"))

    def canary(self, profile: str) -> Canary | None:
        """Return the trial that is under way.

        Raises
        ------
        StoreError
            When its record cannot be read.
        """
        try:
            return read_json(self._canary_file(profile), _CANARY)
        except JsonFileError as error:
            raise StoreError(f"{error}; take the file away, then cluster image activate") from error

    def verify(self, digest: str) -> list[str]:
        """Return what is wrong with an image's files and layers; nothing when their digests are right."""
        manifest = self.manifest(digest)
        expected = {self.folder(digest) / name: file.sha256 for name, file in manifest.files.items()}
        expected |= {self.layer_path(layer.sha256): layer.sha256 for layer in manifest.layers}
        wrong = []
        for path, sha256 in expected.items():
            try:
                seen = file_of(path).sha256
            except OSError:
                wrong.append(f"{path} is not there")
                continue
            if seen != sha256:
                wrong.append(f"{path} has sha256 {seen[:16]}, expected {sha256[:16]}")
        return wrong

    # Writing ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, what: str = "store", wait: bool = True) -> Iterator[None]:
        """Hold a lock of this store; it ends with the process that holds it.

        Raises
        ------
        StoreError
            When another holds it and `wait` is false.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f".lock-{what}").open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                handle.seek(0)
                raise StoreError(f"process {handle.read().strip() or '?'} is at it already; wait for it") from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield

    def workspace(self, name: str) -> Path:
        """Return a new folder on the store's filesystem; `sweep` takes it away if it is left over."""
        folder = self.root / f"partial-{name}-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def sweep(self) -> None:
        """Remove what a build that was killed left. Call it with the build lock held."""
        for left in self.root.glob("partial-*"):
            shutil.rmtree(left, ignore_errors=True)

    def publish(self, workspace: Path, manifest: Manifest, layers: Iterable[tuple[Layer, Path]] = ()) -> bool:
        """Make a finished build visible, in one rename; return whether it is new.

        The bytes are on the disk before the name is: after a power cut there is the whole image or none.
        """
        made = list(layers)
        # Before the lock, which a boot service may be waiting for: this takes as long as the disk does.
        for path in [*workspace.iterdir(), *(path for _, path in made)]:
            path.chmod(0o444)
            atomic_files.synchronise(path)
        workspace.chmod(0o755)
        with self.lock():
            for layer, path in made:
                self._publish_layer(layer, path)
            final = self.folder(manifest.digest)
            if (final / MANIFEST).is_file():
                shutil.rmtree(workspace)
                return False
            final.parent.mkdir(parents=True, exist_ok=True)
            workspace.rename(final)
            atomic_files.synchronise(final.parent)
            return True

    def activate(self, profile: str, digest: str) -> str | None:
        """Make an image the one that the profile's nodes boot; return the one that was.

        Nodes that had an image of their own lose it, and a trial ends.
        """
        self.manifest(digest)
        with self.lock():
            before = self.active(profile)
            if before and before != digest:
                self._point(self.root / "previous" / profile, before)
            self._point(self.root / "active" / _checked(profile, "profile"), digest)
            self._end_trial(profile)
            return before

    def rollback(self, profile: str) -> tuple[str, str]:
        """Make the previous image active again; return what was active and what is.

        During a trial the trial ends instead: the other nodes never had another image.

        Raises
        ------
        StoreError
            When there is nothing to go back to.
        """
        with self.lock():
            active = self.active(profile)
            trial = self.canary(profile)
            if trial and active:
                self._end_trial(profile)
                return trial.digest, active
            previous = self.previous(profile)
            if previous is None or active is None:
                raise StoreError(f"profile {profile} has no previous image to go back to")
            self.manifest(previous)
            self._point(self.root / "active" / profile, previous)
            self._point(self.root / "previous" / profile, active)
            self._end_trial(profile)
            return active, previous

    def begin_trial(self, canary: Canary) -> None:
        """Give one node an image first; the others keep theirs until it came back.

        Raises
        ------
        StoreError
            When another trial is under way.
        """
        self.manifest(canary.digest)
        with self.lock():
            under_way = self.canary(canary.profile)
            if under_way:
                raise StoreError(
                    f"a trial of {under_way.digest} on {under_way.node} is under way: roll it back or wait for it"
                )
            # The record first: an override without one would never end.
            path = self._canary_file(canary.profile)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_files.replace_json(path, canary.document(), durable=True)
            node = self.root / "nodes" / _checked(canary.profile, "profile") / _checked(canary.node, "node")
            self._point(node, canary.digest)

    def end_trial(self, profile: str) -> None:
        """Give every node the profile's image again."""
        with self.lock():
            self._end_trial(profile)

    def collect(self, keep: int = 3, running: Iterable[str] = ()) -> Removed:
        """Remove images that nobody needs: not active, previous or on trial anywhere, not run, not among the newest.

        Parameters
        ----------
        keep
            How many of the newest stay in any case.
        running
            Digests that nodes run now.
        """
        with self.lock():
            needed = set(running) | set(self._pointed())
            images = self.images()
            needed |= {each.digest for each in images[:keep]}
            going = [each for each in images if each.digest not in needed]
            wanted = {layer.sha256 for each in images if each.digest in needed for layer in each.layers}
            freed = sum(file.bytes for each in going for file in each.files.values())
            for each in going:
                doomed = self.root / f"partial-removed-{each.digest}"
                self.folder(each.digest).rename(doomed)
                shutil.rmtree(doomed)
            layers = []
            for path in sorted((self.root / "layers").glob("*.squashfs")):
                if path.stem not in wanted:
                    freed += path.stat().st_size
                    path.unlink()
                    layers.append(path.stem)
            return Removed(tuple(each.digest for each in going), tuple(layers), freed)

    # Inside -----------------------------------------------------------------------------

    def _canary_file(self, profile: str) -> Path:
        return self.root / "canary" / f"{_checked(profile, 'profile')}.json"

    def _end_trial(self, profile: str) -> None:
        shutil.rmtree(self.root / "nodes" / profile, ignore_errors=True)
        self._canary_file(profile).unlink(missing_ok=True)

    def _publish_layer(self, layer: Layer, path: Path) -> None:
        final = self.layer_path(layer.sha256)
        if final.exists():
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        path.rename(final)

    def _pointed(self) -> Iterator[str]:
        for pattern in ("active/*", "previous/*", "nodes/*/*"):
            for link in self.root.glob(pattern):
                digest = self._pointer(link)
                if digest:
                    yield digest

    def _pointer(self, link: Path) -> str | None:
        try:
            return Path(link.readlink()).name
        except OSError:
            return None

    def _point(self, link: Path, digest: str) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        target = Path(os.path.relpath(self.folder(digest), link.parent))
        fresh = link.with_name(f".{link.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.rename(link)
        atomic_files.synchronise(link.parent)


def cache_directory() -> Path:
    """Return where downloads are kept between builds."""
    return Path(CACHE_DIRECTORY) / "image"


def _checked(name: str, what: str) -> str:
    # Becomes part of a path.
    if not _NAME.fullmatch(name):
        raise StoreError(f"{what} {name!r}; expected a name of letters, digits, '-', '_' and '.'")
    return name
