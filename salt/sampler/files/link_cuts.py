"""Notice within two seconds that the link between ranks is cut, where this node's worker has connections over it."""

import socket
from collections.abc import Callable
from typing import Any

import node_files
import rank_links
from workers import unit_records

# Between two looks; a link is cut when two of them in succession show it: a cable may be out for a moment.
LOOK_SECONDS = 1.0
# For so long something counts as sent again lately: the waits before the fourth and the fifth time are shorter.
LATELY_SECONDS = 5.0


class LinkCuts:
    """The link of the worker that runs on this node, if it has one.

    Parameters
    ----------
    worker_file
        What is on record of the node's worker (``_modules/worker.py``).
    directory
        Where the records of units are (``_modules/supervise.py``).
    is_suspected
        Looks at the link that an address belongs to, and is given whether anything was sent again lately.
    sent_again
        Counts what was.
    """

    def __init__(
        self,
        worker_file: str,
        directory: str,
        is_suspected: Callable[[str, bool], bool] = rank_links.is_suspected,
        sent_again: Callable[[], int] = rank_links.sent_again,
    ) -> None:
        self._worker_file, self._directory = worker_file, directory
        self._is_suspected, self._sent_again = is_suspected, sent_again
        self._looked = -LOOK_SECONDS
        self._count, self._counted = sent_again(), -LATELY_SECONDS
        self._suspected = self._reported = False

    def look(self, now: float) -> list[dict[str, Any]]:
        """Return the worker whose link was cut since the last look; ``now`` is a monotonic time in seconds."""
        if 0.0 <= now - self._looked < LOOK_SECONDS:
            return []
        self._looked = now
        count = self._sent_again()
        if count != self._count:
            self._count, self._counted = count, now
        worker, address = self._worker()
        suspected = address is not None and self._is_suspected(address, now - self._counted < LATELY_SECONDS)
        is_news = suspected and self._suspected and not self._reported
        self._suspected, self._reported = suspected, suspected and (self._reported or is_news)
        if not is_news:
            return []
        running = dict(unit_records(self._directory))
        pid = running.get(worker, {}).get("pid")
        return [{"worker": worker, "pid": pid, "kind": "cut"}] if pid else []

    def _worker(self) -> tuple[str, str | None]:
        """Return the worker's name and its address on the link; an address of None without any."""
        record = node_files.read_json(self._worker_file)
        try:
            name, address = record["name"], record["link_address"]
            socket.inet_aton(address)
        except (OSError, KeyError, TypeError):
            return "", None
        return str(name), str(address)
