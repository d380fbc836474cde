"""A recorded run of the benchmark: what was put in, under which load, and how long a token took."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FaultKind:
    """One kind of fault that the benchmark puts in.

    Attributes
    ----------
    cause
        The class that it is named by. Work on one node of several makes it the slow one; on every node (or on the only
        one) it is the host that is busy.
    words
        It in words, for the tables.
    factor, unit
        Of its strength: the strength times `factor` is shown in this unit.
    """

    cause: str
    words: str
    factor: float
    unit: str


# In the order of the tables. How each is put into the lab is in `cli/verify`.
FAULTS: Mapping[str, FaultKind] = {
    "link_rate": FaultKind("link_bandwidth", "a slower link", 8e-6, "Mbit/s"),
    "link_delay": FaultKind("link_latency", "a longer link", 1e3, "ms"),
    "quota": FaultKind("straggler", "a node with less of its core", 1.0, "cores"),
    "foreign": FaultKind("straggler", "other programs on one node", 1.0, "programs"),
    "bursts": FaultKind("straggler", "the same, in bursts", 100.0, "% of the time"),
    "foreign_all": FaultKind("host_overhead", "other programs on every node", 1.0, "programs a node"),
    "api_server": FaultKind("api_server", "the API's process held back", 1.0, "cores"),
    "slots": FaultKind("sequence_limit", "fewer slots than clients", 1.0, "slots"),
    "cache": FaultKind("kv_cache_capacity", "a small KV cache", 1.0, "MiB"),
    "budget": FaultKind("token_budget", "a small token budget", 1.0, "tokens"),
    "low_rate": FaultKind("client_limited", "few requests", 1.0, "requests/s"),
    "cold_disk": FaultKind("weight_loading", "a start from a slow disk", 1e-6, "MB/s"),
}
# No rule is made or changed by these: whole faults and whole kinds of load, named here before anything was recorded.
HELD_OUT_FAULTS = frozenset({"bursts", "budget"})
HELD_OUT_LOADS = frozenset({"long"})
DEVELOPMENT, HELD_OUT = "development", "held-out"


@dataclass(frozen=True)
class Put:
    """One fault that was put in; the strength is in the unit of its kind."""

    kind: str
    strength: float
    node: str | None = None
    link: str | None = None

    @property
    def expected(self) -> str:
        """The class that names it."""
        return FAULTS[self.kind].cause

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Put:
        """Return a fault of the record.

        Parameters
        ----------
        document : Mapping[str, Any]
            Fault of a line of the record: kind, strength, and where it has one a node or a link.

        Raises
        ------
        ValueError
            For a kind that is not in `FAULTS`.
        KeyError
            Without a kind or a strength.
        """
        kind = str(document["kind"])
        if kind not in FAULTS:
            raise ValueError(f"fault {kind!r} in the record; expected one of {', '.join(FAULTS)}")
        return cls(kind, float(document["strength"]), document.get("node"), document.get("link"))


@dataclass(frozen=True)
class Trial:
    """One recorded run.

    Attributes
    ----------
    case
        Its name, unique in the record.
    group
        What one lab recorded at a stretch: only runs of one group are compared.
    settings
        The deployment's own, as JSON with sorted keys.
    load
        Kind, concurrency, input and output tokens.
    faults
        What was put in; empty for a healthy run.
    began
        Unix seconds.
    seconds_per_token
        Seconds of the load for each output token of all clients together: the inverse of the throughput. Of a start,
        how long it took.
    """

    case: str
    run: str
    group: str
    deployment: str
    settings: str
    load: tuple[str, int, int, int]
    requests: int
    faults: tuple[Put, ...]
    began: float
    seconds_per_token: float
    seed: int = 1

    @property
    def compared(self) -> tuple[object, ...]:
        """Return the key shared by runs that may be compared."""
        return self.group, self.deployment, self.load, self.requests

    @property
    def identity(self) -> tuple[object, ...]:
        """Return the key shared by the repeats of one case."""
        return *self.compared, self.settings, self.faults

    @property
    def split(self) -> str:
        """Return whether rules may be made by it."""
        kinds = {put.kind for put in self.faults}
        out = kinds & HELD_OUT_FAULTS or len(self.faults) > 1 or self.load[0] in HELD_OUT_LOADS
        return HELD_OUT if out else DEVELOPMENT

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Trial | None:
        """Return the trial of a line of the record; None for a line of a run that failed, or of no run at all.

        Parameters
        ----------
        line : Mapping[str, Any]
            Line of the record of `cluster verify`.

        Raises
        ------
        KeyError
            When a line of a run that succeeded lacks a part.
        ValueError
            For a fault whose kind is not in `FAULTS`.
        """
        if line.get("error") or "measured" not in line:
            return None
        measured = line["measured"]
        rate = measured.get("output_tokens_per_second")
        seconds = 1.0 / float(rate) if rate else float(measured.get("start_seconds") or 0.0)
        if not seconds > 0 or not math.isfinite(seconds):
            return None
        load = line["load"]
        clients, prompt, answer = (int(load[key]) for key in ("concurrency", "input_tokens", "output_tokens"))
        return cls(
            case=str(line["case"]),
            run=str(line["run"]),
            group=str(line["group"]),
            deployment=str(line["deployment"]),
            settings=json.dumps(line["settings"], sort_keys=True),
            load=(str(load["kind"]), clients, prompt, answer),
            requests=int(line["requests"]),
            faults=tuple(Put.from_json(fault) for fault in line["faults"]),
            began=float(line["began"]),
            seconds_per_token=seconds,
            seed=int(line["seed"]),
        )
