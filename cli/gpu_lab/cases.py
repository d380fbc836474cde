"""Read the benchmark's cases, and put them in an order that starts few deployments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bottleneck.diagnosis.causes import CAUSES
from bottleneck.units import DURATION, RATE, SIZE, Dimension
from cli.verify.loads import Load

CASES = Path(__file__).with_name("cases.yaml")
Device = Literal["cards", "processors"]
Kind = Literal[
    "link_rate",
    "link_delay",
    "foreign_kernels",
    "quota",
    "paused",
    "api_server",
    "eager",
    "slots",
    "cache",
    "budget",
    "low_rate",
    "uneven",
]
# Kinds that are settings of the server: they take a deployment of their own.
SETTINGS: Mapping[str, str] = {
    "eager": "enforce_eager",
    "slots": "max_num_seqs",
    "cache": "kv_cache_memory",
    "budget": "max_num_batched_tokens",
}
# So many faults lie between two runs without any: each has one right before it or right after it.
FAULTS_PER_CONTROL = 2
_UNITS: Mapping[str, Dimension] = {"link_rate": RATE, "link_delay": DURATION, "cache": SIZE}
_AT_A_NODE = frozenset({"foreign_kernels", "quota", "paused", "api_server"})


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Put(_Section):
    """A fault that is put in, or a setting that is one.

    Attributes
    ----------
    cards, processors
        Its strength there, with the unit of its kind; None where it is not put in.
    node, cable
        Where, if it is at one place: a node, or the cable between two.
    """

    kind: Kind
    cards: str | float
    processors: str | float | None = None
    node: str | None = None
    cable: tuple[str, str] | None = None

    @model_validator(mode="after")
    def _placed(self) -> Self:
        if (self.kind in _AT_A_NODE) != (self.node is not None):
            raise ValueError(f"{self.kind} {'without' if self.node is None else 'with'} a node")
        if self.cable is not None and self.kind != "link_rate":
            raise ValueError(f"{self.kind} on a cable; expected that of link_rate alone")
        for device in ("cards", "processors"):
            self.strength(device)
        return self

    def strength(self, device: Device) -> float | None:
        """Return its strength in base units; None where it is not put in."""
        written = self.cards if device == "cards" else self.processors
        if written is None:
            return None
        unit = _UNITS.get(self.kind)
        return float(unit.parse(str(written)) if unit else written)


class Case(_Section):
    """One case of the benchmark.

    Attributes
    ----------
    cards
        Cards of the lab it is for.
    load
        A name among the loads.
    expected
        The classes that are right.
    put
        What is put in; None for a control.
    beside
        The deployment whose run without it is the one to compare with; None is the same.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    cards: Literal[2, 4]
    deployment: str
    load: str
    expected: tuple[str, ...] = Field(min_length=1)
    put: Put | None = None
    beside: str | None = None


class Trace(_Section):
    """A run that is traced.

    Attributes
    ----------
    requests
        Sent under the profiler, on cards and on processors: a trace of two seconds is enough. The run without it sends
        as many as the load has.
    """

    name: str = Field(pattern=r"^trace-[a-z0-9-]+$")
    cards: Literal[2, 4]
    deployment: str
    load: str
    requests: tuple[int, int]
    put: Put | None = None

    def requests_on(self, device: Device) -> int:
        """Return how many requests are sent under the profiler."""
        return self.requests[device == "processors"]


class _Loads(_Section):
    cards: tuple[int, int, int, int]
    processors: tuple[int, int, int, int] | None = None


class Cases(_Section):
    """All loads, cases and traces."""

    schema_version: Literal[1] = Field(alias="schema")
    loads: dict[str, _Loads]
    cases: tuple[Case, ...]
    traces: tuple[Trace, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Self:
        listed: list[Case | Trace] = [*self.cases, *self.traces]
        names = [each.name for each in listed]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: expected each name once")
        for each in listed:
            if each.load not in self.loads:
                raise ValueError(f"{each.name}: load {each.load}; expected one of {', '.join(self.loads)}")
        for case in self.cases:
            strangers = sorted(set(case.expected) - set(CAUSES))
            if strangers:
                raise ValueError(f"{case.name}: {', '.join(strangers)}; expected classes such as link_bandwidth")
        return self

    def of(self, cards: int, device: Device) -> list[Case]:
        """Return the cases of a lab, those whose load and fault have a form there."""
        return [case for case in self.cases if self._has_form(case, cards, device)]

    def traces_of(self, cards: int, device: Device) -> list[Trace]:
        """Return the traces of a lab, likewise."""
        return [trace for trace in self.traces if self._has_form(trace, cards, device)]

    def _has_form(self, each: Case | Trace, cards: int, device: Device) -> bool:
        if each.cards != cards or self.load(each.load, device) is None:
            return False
        return each.put is None or each.put.strength(device) is not None

    def load(self, name: str, device: Device) -> tuple[Load, int] | None:
        """Return a load and how many requests it sends; None where it has no form."""
        numbers = getattr(self.loads[name], device)
        if numbers is None:
            return None
        clients, prompt, answer, requests = numbers
        return Load(name, clients, prompt, answer), requests


@cache
def all_cases() -> Cases:
    """Return the cases that are listed."""
    return Cases.model_validate(yaml.safe_load(CASES.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Turn:
    """One run to be made.

    Attributes
    ----------
    settings
        The server's, in place of the profile's.
    case
        The case that it is of; None for one that others are compared with.
    """

    deployment: str
    load: str
    settings: Mapping[str, object]
    case: Case | None = None

    @property
    def stage(self) -> tuple[str, str]:
        """Return what is to be deployed for it."""
        return self.deployment, json.dumps(dict(self.settings), sort_keys=True)

    @property
    def is_plain(self) -> bool:
        """Return whether nothing is put in."""
        return not self.settings and (self.case is None or self.case.put is None)


def settings_of(case: Case, device: Device) -> dict[str, object]:
    """Return the server's settings that a case is."""
    if case.put is None or case.put.kind not in SETTINGS:
        return {}
    strength = case.put.strength(device)
    assert strength is not None
    value: object = int(strength)
    if case.put.kind == "cache":
        value = case.put.cards if device == "cards" else case.put.processors
    return {SETTINGS[case.put.kind]: True if case.put.kind == "eager" else value}


def turns(cases: Sequence[Case], device: Device) -> list[Turn]:
    """Return the runs of some cases, in order: two faults between two runs without any, settings after all others.

    A deployment is started once for all that needs no other settings, and once for each setting.
    """
    found: list[Turn] = []
    stages: dict[str, dict[str, list[Case]]] = {}
    for case in cases:
        stages.setdefault(case.beside or case.deployment, {})
        if case.beside is not None:
            stages.setdefault(case.deployment, {})
        stages[case.beside or case.deployment].setdefault(case.load, []).append(case)
    changed: list[Turn] = []
    for deployment, loads in stages.items():
        for load, chosen in loads.items():
            controls = [case for case in chosen if case.put is None]
            plain = [Turn(deployment, load, {}, case) for case in controls] or [Turn(deployment, load, {})]
            found += plain
            faults = []
            for case in chosen:
                settings = settings_of(case, device)
                if settings or case.deployment != deployment:
                    changed.append(Turn(case.deployment, load, settings, case))
                elif case.put is not None:
                    faults.append(Turn(deployment, load, {}, case))
            for first in range(0, len(faults), FAULTS_PER_CONTROL):
                found += [*faults[first : first + FAULTS_PER_CONTROL], Turn(deployment, load, {})]
    return found + sorted(changed, key=lambda turn: turn.stage)
