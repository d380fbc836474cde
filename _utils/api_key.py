"""
Bring the key of this node's engine along with a request to its API, and to its metrics where the engine wants it there.
"""

import os
from collections.abc import Mapping
from typing import Any


def authorization(worker: Mapping[str, Any] | None) -> dict[str, str]:
    """
    Return the header with the API's key; none for a worker without one, or while its file is not there.

    worker
        the worker's specification as it is kept on the node: of any content, as what is torn or edited may be
    """
    try:
        # A number would be an open file of this process.
        path = os.fspath((worker or {})["watch"]["api_key"]["file"])
        with open(path, encoding="utf-8") as file:
            key = file.read().strip()
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    # A header is no place for other characters: the request would fail instead of being refused.
    return {"Authorization": f"Bearer {key}"} if key and key.isascii() else {}
