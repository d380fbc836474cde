"""Ask whether a node's minion answers: one question for all who ask at about the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from netboot.boot.settings import BootNode

Alive = Callable[[BootNode], Awaitable[bool]]

# How long an answer about a node's life is good for: from its DHCP request to its script.
GOOD_SECONDS = 8.0


class _Asked(NamedTuple):
    """A question whether a node's minion answers, and over which connection it was put."""

    at: float
    connection: int
    answer: asyncio.Task[bool]


class Liveness:
    """Questions to nodes' minions that are under way or were answered a moment ago."""

    def __init__(self, connection: Callable[[BootNode], int | None], alive: Alive, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._alive = alive
        self._clock = clock
        self._asked: dict[str, _Asked] = {}

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
