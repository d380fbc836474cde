"""Orders for the boot service, by files in a folder that only root can write to.

Not by HTTP, which anyone on the wire can speak, and not by Salt's bus, where every accepted
minion can send what it likes.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from bottleneck import atomic_files

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What the boot service is to do."""

    what: Literal["arm", "hold", "deploy", "undeploy"]
    node: str
    powered_on: bool = False


_order: TypeAdapter[Order] = TypeAdapter(Order)


def give(directory: Path, order: Order) -> None:
    """Leave an order for the boot service whose record is in `directory`."""
    folder = directory / "orders"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_files.replace(folder / f"{secrets.token_hex(8)}.json", _order.dump_json(order), mode=0o600)


def take(directory: Path) -> Iterator[Order]:
    """Return the orders that were left, the oldest first, and remove them."""
    folder = directory / "orders"
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        path.unlink()
        try:
            yield _order.validate_json(content)
        except ValidationError as error:
            log.error("An order that cannot be read was left at %s: %s", path, error)
