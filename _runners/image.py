"""
Build the Linux image that the nodes boot, compare it, make it active, go back.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

from bottleneck.profile import ProfileError
from control import records
from control.nodes import profile_of, progress
from netboot.boot import storage
from netboot.image import operations
from netboot.image.canary import DEFAULT_DEADLINE_SECONDS
from netboot.image.commands import BuildError
from netboot.image.store import DEFAULT_ROOT, Store, StoreError

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

__func_alias__ = {"list_": "list"}


def build(
    recipe: str | None = None, activate: bool = False, accept_expired: bool = False, engines: bool = False
) -> dict[str, Any]:
    """
    Build the profile's image and keep it; the same inputs give the same digest.

    CLI Example:

    .. code-block:: bash

        salt-run image.build
        salt-run image.build activate=True

    recipe
        path of a recipe on the control node; the base recipe when left out
    activate
        make it the active image when it is built
    accept_expired
        take a Debian archive that is past its own date, as a snapshot is
    engines
        install the profile's engines that have a lock file on this machine, and make a layer of each
    """
    started = time.monotonic()

    def report(step: Mapping[str, Any]) -> None:
        progress(step["stage"], "", step.get("detail", ""), started)

    with _sentences():
        return operations.build(
            _store(), profile_of(__opts__), report, recipe, bool(activate), bool(accept_expired), bool(engines)
        )


def list_() -> dict[str, Any]:
    """
    Return every image, newest first.

    CLI Example:

    .. code-block:: bash

        salt-run image.list
    """
    with _sentences():
        return {"images": operations.show_all(_store(), profile_of(__opts__).name)}


def show(image: str = "active", verify: bool = False) -> dict[str, Any]:
    """
    Return an image's manifest.

    CLI Example:

    .. code-block:: bash

        salt-run image.show
        salt-run image.show 3f2a verify=True

    image
        the beginning of a digest, ``active`` or ``previous``
    verify
        read every file and compare its digest
    """
    with _sentences():
        return operations.show(_store(), profile_of(__opts__).name, str(image), bool(verify))


def active(profile: str | None = None) -> dict[str, Any]:
    """
    Return which image the nodes boot, which was before, and the trial that is under way.

    CLI Example:

    .. code-block:: bash

        salt-run image.active

    profile
        a profile's name; the master's own when left out
    """
    with _sentences():
        return operations.active(_store(), profile or profile_of(__opts__).name)


def diff(old: str = "previous", new: str = "active") -> dict[str, Any]:
    """
    Compare two images: packages, layers, files.

    CLI Example:

    .. code-block:: bash

        salt-run image.diff 3f2a 91cc
    """
    with _sentences():
        return operations.diff(_store(), profile_of(__opts__).name, str(old), str(new))


def activate(
    image: str, canary: str | None = None, deadline_seconds: float = DEFAULT_DEADLINE_SECONDS
) -> dict[str, Any]:
    """
    Make an image the one that nodes boot; it takes effect at each node's next boot.

    CLI Example:

    .. code-block:: bash

        salt-run image.activate 3f2a
        salt-run image.activate 3f2a canary=node0 deadline_seconds=600

    canary
        give it to this node alone until it came back; when it does not, the image is rolled back by itself
    """
    with _sentences():
        found = operations.activate(_store(), profile_of(__opts__), str(image), canary, float(deadline_seconds))
    _announce(found)
    return found


def rollback(profile: str | None = None) -> dict[str, Any]:
    """
    Make the previous image active again, or end the trial that is under way.

    CLI Example:

    .. code-block:: bash

        salt-run image.rollback

    profile
        a profile's name; the master's own when left out
    """
    with _sentences():
        found = operations.rollback(_store(), profile or profile_of(__opts__).name)
    _announce(found)
    return found


def gc(keep: int = 3) -> dict[str, Any]:
    """
    Remove images that are not active, previous, on trial, run by a node, or among the newest.

    CLI Example:

    .. code-block:: bash

        salt-run image.gc keep=2
    """
    with _sentences():
        return operations.collect(_store(), int(keep), _running())


def lock(image: str = "active") -> dict[str, Any]:
    """
    Return an image's packages as ``package=version`` lines, for a recipe's ``lock``.

    CLI Example:

    .. code-block:: bash

        salt-run image.lock
    """
    with _sentences():
        return {"lines": operations.locked(_store(), profile_of(__opts__).name, str(image))}


def _store() -> Store:
    return Store(__opts__.get("cluster_images") or DEFAULT_ROOT)


def _running() -> set[str]:
    """Return the digests of the images that nodes run, as far as their boots show."""
    directory = records.path_of(__opts__, records.BOOT)
    state = storage.read(directory)
    if state is None:
        if directory.joinpath(storage.FILE).exists():
            raise CommandExecutionError("the boot record cannot be read, so it is not known what the nodes run")
        return set()
    found = set()
    for node in state.nodes.values():
        # What it is about to run, and what it ran last.
        enrolled = [boot for boot in node.boots if boot.at("enrolled") is not None]
        found |= {boot.image for boot in [*node.boots[-1:], *enrolled[-1:]]}
    return found


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Turn what a person can mend into Salt's own error, which the CLI shows as a sentence."""
    try:
        yield
    except (BuildError, StoreError, ProfileError) as error:
        raise CommandExecutionError(str(error)) from error


def _announce(found: Mapping[str, Any]) -> None:
    """Fire the event on which the reactor looks for nodes that are due to boot again."""
    __salt__["event.send"]("cluster/image/changed", {"profile": found["profile"]})
