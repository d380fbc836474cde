"""Events of a boot, as values: the record (`netboot.boot.state`) is what they add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from netboot.boot.stages import BootStage

# Why a node is expected to boot.
Arming = Literal["", "first", "reprovision", "down"]


@dataclass(frozen=True)
class Armed:
    """A node is expected to boot."""

    now: float
    node: str
    reason: Arming
    powered_on: bool = False


@dataclass(frozen=True)
class Blocked:
    """A node is not to boot until it is armed again."""

    now: float
    node: str


@dataclass(frozen=True)
class DhcpAsked:
    """A node's firmware or iPXE asked for an address."""

    now: float
    node: str
    detail: str = ""
    given: bool = False


@dataclass(frozen=True)
class Troubled:
    """Evidence of trouble at a stage of a node (of one boot, when it is known)."""

    now: float
    node: str
    stage: BootStage
    text: str
    boot: str = ""


@dataclass(frozen=True)
class Delivered:
    """The end of a node's trouble at a stage: notes that begin with `about` no longer hold."""

    now: float
    node: str
    stage: BootStage
    about: str


@dataclass(frozen=True)
class UnknownAsked:
    """A machine that is no node asked for an address or a script."""

    now: float
    mac: str
    address: str = ""
    detail: str = ""


@dataclass(frozen=True)
class ScriptGiven:
    """A boot script was given to a node that is expected to boot."""

    now: float
    node: str
    boot: str
    nonce: str
    expires: float
    image: str
    mac: str
    minion_id: str


@dataclass(frozen=True)
class StageReached:
    """A boot completed a stage."""

    now: float
    node: str
    boot: str
    stage: BootStage
    detail: str = ""


@dataclass(frozen=True)
class Enrolled:
    """A boot proved that it has its nonce, and its key is the node's key now."""

    now: float
    node: str
    boot: str
    key: str


@dataclass(frozen=True)
class Refused:
    """A request for a script or a claim was refused."""

    now: float
    what: str
    node: str
    source: str
    reason: str


@dataclass(frozen=True)
class Deploying:
    """A deployment that a node is part of was started, or ended (`since` None)."""

    now: float
    node: str
    since: float | None


Event = (
    Armed
    | Blocked
    | DhcpAsked
    | Troubled
    | Delivered
    | UnknownAsked
    | ScriptGiven
    | StageReached
    | Enrolled
    | Refused
    | Deploying
)
