"""Everything that was measured of a run, gathered once and frozen: ledger and causes read nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bottleneck.diagnosis.observations.client import ClientFacts
from bottleneck.diagnosis.observations.engine import EngineFacts
from bottleneck.diagnosis.observations.issues import Issue
from bottleneck.diagnosis.observations.link import LinkFacts
from bottleneck.diagnosis.observations.node import NodeFacts
from bottleneck.diagnosis.observations.settings import EngineSettings
from bottleneck.json_numbers import finite
from bottleneck.runs.topology import Topology


@dataclass(frozen=True)
class BusyTime:
    """Length of the watched time of a run, and how much of that some request was under way.

    Attributes
    ----------
    span_seconds : float
        The generator's own duration, else the interval.
    busy_seconds : float
        Of it, with a request under way.
    source : str
        Where that is from; empty when it is only assumed.
    """

    span_seconds: float = 0.0
    busy_seconds: float = 0.0
    source: str = ""


@dataclass(frozen=True)
class Observations:
    """The facts of a run.

    Attributes
    ----------
    engines : tuple of EngineFacts
        One per replica, in the order of `topology.groups`.
    settings : EngineSettings
        How the engine runs.
    start : bool
        Whether an engine was starting all the time: then there are no steps, and shares are of the whole span.
    issues : tuple of Issue
        What is missing or doubtful.
    """

    topology: Topology
    engines: tuple[EngineFacts, ...] = ()
    nodes: Mapping[str, NodeFacts] = field(default_factory=dict)
    link: LinkFacts | None = None
    client: ClientFacts | None = None
    time: BusyTime = field(default_factory=BusyTime)
    settings: EngineSettings = field(default_factory=EngineSettings)
    start: bool = False
    live: bool = False
    issues: tuple[Issue, ...] = ()

    @property
    def span_seconds(self) -> float:
        """Return how long was watched."""
        return self.time.span_seconds

    @property
    def busy_seconds(self) -> float:
        """Return how much of it some request was under way."""
        return self.time.busy_seconds

    @property
    def idle_share(self) -> float | None:
        """Share of the span without any request, 0 to 1; None when it was not measured."""
        if not self.time.source or self.span_seconds <= 0:
            return None
        return min(1.0, max(0.0, 1.0 - self.busy_seconds / self.span_seconds))

    @property
    def suggested_concurrency(self) -> float | None:
        """A load that would fill the engine."""
        current = (self.client.concurrency if self.client else None) or max(
            (engine.running_max or 0.0 for engine in self.engines), default=0.0
        )
        wanted = 2 * 2 * current if current else None
        limit = self.topology.max_num_seqs
        return min(wanted, limit) if wanted and limit else (wanted or limit)

    @property
    def quality(self) -> float:
        """Product of all doubts, 0 to 1."""
        found = 1.0
        for issue in self.issues:
            found *= issue.factor
        return found

    def busy_share_of(self, seconds: float | None) -> float:
        """Return seconds as a share of the busy time, 0 to 1.

        Parameters
        ----------
        seconds : float or None
            Seconds of anything; None counts as 0.

        Returns
        -------
        float
            0 where nothing was under way.
        """
        return min(1.0, max(0.0, (seconds or 0.0) / self.busy_seconds)) if self.busy_seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return what was measured as JSON-able data; what is not known is null."""
        document = {
            "span_seconds": self.span_seconds,
            "busy_seconds": self.busy_seconds,
            "busy_source": self.time.source,
            "idle_share": self.idle_share,
            "client": None if self.client is None else asdict(self.client),
            "engines": [engine.to_json() for engine in self.engines],
            "nodes": {name: asdict(facts) for name, facts in self.nodes.items()},
            "link": None if self.link is None else self.link.to_json(),
        }
        cleaned: dict[str, Any] = finite(document)
        return cleaned
