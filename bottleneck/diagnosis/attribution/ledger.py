"""Keep the ledger: where the time of an output token went, by phase, node, link and resource.

Unit: seconds per output token, over all requests of the run: the sum of their times from sending to last token,
divided by the sum of their output tokens. The parts add up to the whole exactly; what no measurement explains is an
entry of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL, Work
from bottleneck.json_numbers import number

UNIT = "seconds per output token"
PER_REQUEST = "seconds per request"


RESOURCES = {
    "compute": "a node's own work, bound by arithmetic",
    "memory": "a node's own work, bound by reads of weights and cache",
    "host": "the engine's loop, kernel launches, sampling: what the host does between kernels",
    "throttled": "stopped by a CPU quota",
    "cpu_wait": "ready to run, but another process had the core",
    "link_transfer": "bytes on the link",
    "link_latency": "messages on the wire",
    "message_handling": "messages in the nodes' kernels",
    "message_wait": "from a message's arrival until the waiting worker runs",
    "queue": "in the engine's queue",
    "api_server": "in the API server: HTTP, tokenizer, detokenizer",
    "step_wait": "before the queue, until a running step ends",
    "unwatched": "host or messages between ranks over a link that nobody watched",
    "unexplained": "what no measurement explains",
}
"""Every resource of the ledger and what it is."""


@dataclass(frozen=True)
class Entry:
    """One part of an output token's time.

    Attributes
    ----------
    phase : str
        `queue`, `prefill`, `decode`, or `client` for what happened outside the engine.
    resource : str
        A key of `RESOURCES`.
    seconds : float
        Seconds per output token.
    share : float
        Of the ledger's total, 0 to 1.
    start, end : float
        The interval it was measured over, unix seconds.
    """

    phase: str
    resource: str
    seconds: float
    share: float
    source: str
    node: str | None = None
    link: str | None = None
    start: float = 0.0
    end: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON-able data."""
        return {
            "phase": self.phase,
            "node": self.node,
            "link": self.link,
            "resource": self.resource,
            "seconds": self.seconds,
            "share": self.share,
            "source": self.source,
            "start": self.start,
            "end": self.end,
        }


@dataclass(frozen=True)
class Ledger:
    """The whole and its parts.

    Attributes
    ----------
    kinds : dict
        (kind of steps, resource) to share of the total: a token that waits in `decode` for the prompt of another
        request lives through steps of kind `prefill`.
    work : tuple of Work
        The steps behind it, by engine and kind.
    unit : str
        What the seconds are per.
    first_token : Ledger or None
        The same for a request's first token: seconds per request, from sending to the first token.
    """

    total: float = 0.0
    entries: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""
    kinds: Mapping[tuple[str, str], float] = field(default_factory=dict)
    work: tuple[Work, ...] = field(default=(), compare=False)
    unit: str = UNIT
    first_token: Ledger | None = None

    def share(self, chosen: Callable[[Entry], bool]) -> float:
        """Return the share of the total that the chosen entries have together.

        Parameters
        ----------
        chosen : Callable[[Entry], bool]
            True for an entry that counts.

        Returns
        -------
        float
            0 to 1, of the time of an output token.
        """
        return math.fsum(entry.share for entry in self.entries if chosen(entry))

    def of(self, *resources: str) -> float:
        """Return the share of some resources inside prefill and decode.

        Parameters
        ----------
        *resources : str
            Names of `RESOURCES`, such as "link_transfer".

        Returns
        -------
        float
            0 to 1, of the time of an output token.
        """
        return self.share(lambda entry: entry.resource in resources and entry.phase in (PREFILL, DECODE))

    def of_kind(self, kind: str, *resources: str) -> float:
        """Return the share of some resources inside the steps of one kind.

        Parameters
        ----------
        kind : str
            Kind of step, `PREFILL` or `DECODE`; a mixed step is a prefill.
        *resources : str
            Names of `RESOURCES`.

        Returns
        -------
        float
            0 to 1, of the time of an output token.
        """
        return math.fsum(self.kinds.get((kind, resource), 0.0) for resource in resources)

    @property
    def attributed(self) -> float:
        """Share of the total that has a cause, 0 to 1."""
        return 1.0 - self.share(lambda entry: entry.resource == "unexplained")

    def phase(self, name: str) -> float:
        """Return the share of a phase.

        Parameters
        ----------
        name : str
            Phase of a request, such as `DECODE` or "queue".

        Returns
        -------
        float
            0 to 1, of the time of an output token.
        """
        return self.share(lambda entry: entry.phase == name)

    def to_json(self) -> dict[str, Any]:
        """Return the ledger as JSON-able data."""
        return {
            "unit": self.unit,
            "total": self.total,
            "source": self.source,
            "attributed": self.attributed if self.entries else 0.0,
            "steps": [
                {"kind": kind, "resource": resource, "share": share} for (kind, resource), share in self.kinds.items()
            ],
            "entries": [entry.to_json() for entry in self.entries],
            "notes": list(self.notes),
            **({} if self.first_token is None else {"first_token": self.first_token.to_json()}),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Ledger:
        """Return the ledger that `to_json` wrote.

        Parameters
        ----------
        document : dict[str, Any]
            Plain data; what is missing is empty, 0 or NaN.
        """
        entries = tuple(
            Entry(
                phase=str(item.get("phase", "")),
                resource=str(item.get("resource", "unexplained")),
                seconds=float(item.get("seconds", 0.0)),
                share=float(item.get("share", 0.0)),
                source=str(item.get("source", "")),
                node=item.get("node"),
                link=item.get("link"),
                start=float(item.get("start", 0.0)),
                end=float(item.get("end", 0.0)),
            )
            for item in document.get("entries") or []
        )
        total = number(document.get("total"))
        kinds = {
            (str(item.get("kind")), str(item.get("resource"))): number(item.get("share"))
            for item in document.get("steps") or []
        }
        return cls(
            total if math.isfinite(total) else 0.0,
            entries,
            tuple(str(note) for note in document.get("notes") or []),
            str(document.get("source", "")),
            kinds,
            unit=str(document.get("unit", UNIT)),
            first_token=cls.from_json(document["first_token"]) if document.get("first_token") else None,
        )
