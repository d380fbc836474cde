"""Tell whether a node is up: by its samples, or by asking its minion, once for all who ask at about the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from netboot.boot.settings import BootNode

Alive = Callable[[BootNode], Awaitable[bool]]
# When the newest samples of a node were taken, unix seconds; None when none are known.
Heart = Callable[[BootNode], float | None]

# How long an answer about a node's life is good for: from its DHCP request to its script.
GOOD_SECONDS = 8.0
# A node whose newest samples are no older is up, whatever its connection is: someone may have taken its address.
HEART_SECONDS = 15.0
# How far a node's clock may be ahead of the control node's: so much later its samples can seem to be.
CLOCK_AHEAD_SECONDS = 30.0


class _Asked(NamedTuple):
    """A question whether a node's minion answers, and over which connection it was put."""

    at: float
    connection: int
    answer: asyncio.Task[bool]


class Liveness:
    """Samples that have come, and questions to nodes' minions that are under way or were answered a moment ago."""

    def __init__(
        self, connection: Callable[[BootNode], int | None], alive: Alive, clock: Callable[[], float], heart: Heart
    ) -> None:
        self._connection = connection
        self._alive = alive
        self._clock = clock
        self._heart = heart
        self._asked: dict[str, _Asked] = {}

    def sends_samples(self, node: BootNode) -> bool:
        """Return whether samples of a node have come of late."""
        beat = self._heart(node)
        return beat is not None and self._clock() - beat < HEART_SECONDS

    def has_sent_samples_since(self, node: BootNode, moment: float) -> bool:
        """Return whether samples of a node were surely taken after a moment, by the control node's clock."""
        beat = self._heart(node)
        return beat is not None and beat > moment + CLOCK_AHEAD_SECONDS

    def question(self, node: BootNode) -> asyncio.Task[bool] | None:
        """Return the question to the node's minion; None when no minion of its is connected.

        An answer is about one connection: whoever has come back since is asked anew.
        """
        now = self._clock()
        connection = self._connection(node)
        if connection is None:
            return None
        asked = self._asked.get(node.name)
        if asked is None or asked.connection != connection or not 0 <= now - asked.at <= GOOD_SECONDS:
            asked = _Asked(now, connection, asyncio.ensure_future(self._alive(node)))
            # Whoever waits for the answer sees its failure; nobody may.
            asked.answer.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._asked[node.name] = asked
        return asked.answer
