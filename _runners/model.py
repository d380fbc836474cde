"""
Keep models on this control node for the nodes to fetch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

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


def _store() -> Path:
    return Path(__opts__.get("cluster_models", "/var/lib/cluster/models"))
