"""
Keep models on this control node for the nodes to fetch.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

from control.nodes import profile_of, progress
from netboot.boot import hub
from netboot.boot.models import INDEX, ModelError, publish, read_index

if TYPE_CHECKING:
    from loader_dunders import __opts__


def published() -> dict[str, Any]:
    """
    Return the models that nodes fetch: name -> bytes.

    CLI Example:

    .. code-block:: bash

        salt-run model.published
    """
    folders = sorted(path.parent for path in _store().glob(f"*/{INDEX}"))
    try:
        return {folder.name: sum(file.bytes for file in read_index(folder).files.values()) for folder in folders}
    except ModelError as error:
        raise CommandExecutionError(str(error)) from error


def put(folder: str) -> dict[str, Any]:
    """
    Put a folder of this machine where nodes fetch models, under its own name; return its files with their digests.

    CLI Example:

    .. code-block:: bash

        salt-run model.put /srv/models/mistral-small-instruct-2409-w4a16

    folder
        named as the folder on the nodes is: with the digest of what the model is made of, or as the profile's
        ``source``
    """
    try:
        return publish(Path(folder), _store()).model_dump()
    except (ModelError, OSError) as error:
        raise CommandExecutionError(str(error)) from error


def download(source: str | None = None, name: str | None = None, revision: str = "main") -> dict[str, Any]:
    """
    Download a model of the hub, once for all nodes, to where they fetch models; return its files with their digests.

    CLI Example:

    .. code-block:: bash

        salt-run model.download
        salt-run model.download ORGANISATION/MODEL name=my-checkpoint

    What has arrived before a failure is kept, and the next call goes on from there. ``HF_TOKEN`` and ``HF_ENDPOINT``
    are those of the hub's own client.

    source
        name of a model on the hub; the profile's when left out
    name
        the folder's name on the nodes; that of the profile's model when left out
    revision
        branch, tag or commit
    """
    model = profile_of(__opts__).model
    source, name = source or model.source, name or Path(model.directory()).name
    started = time.monotonic()

    def report(there: int, total: int) -> None:
        rate = there / max(time.monotonic() - started, 1e-3)
        detail = f"{there / 1e9:.2f} of {total / 1e9:.2f} GB, {rate / 1e6:.0f} MB/s"
        progress("downloading", "", detail, started, share=there / total if total else 1.0)

    try:
        index = hub.download(source, _store(), name, hub.Hub.of_environment(os.environ), revision, report)
    except (ModelError, OSError) as error:
        raise CommandExecutionError(str(error)) from error
    return {"name": name, **index.model_dump(), "bytes": sum(file.bytes for file in index.files.values())}


def _store() -> Path:
    return Path(__opts__.get("cluster_models", "/var/lib/cluster/models"))
