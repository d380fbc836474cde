"""Seal as a node would, with the key that the control node of a test gave it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bottleneck import node_seal
from control import node_keys


def event(folder: Path, node: str, batches: Any, sender: object = None) -> dict[str, Any]:
    """Return an event's data with batches that a node sealed; node and minion have one name."""
    text = json.dumps(batches)
    key = node_keys.key_of({"cluster_directory": folder}, node)
    sealed = {"text": text, "seal": node_seal.seal(key, node_seal.BATCHES, node, text)}
    return {"id": node if sender is None else sender, "data": sealed}
