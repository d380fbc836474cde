"""The state of the running cluster as the control node knows it, and the events that change it: values, without a rule.

How one state follows from another is `cluster_state`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bottleneck.telemetry.batches import Batch

if TYPE_CHECKING:
    from bottleneck.profile import Profile

# Tags of what is announced to others.
WINDOW_TAG, LOST_TAG, BACK_TAG = "cluster/telemetry/window", "cluster/node/lost", "cluster/node/back"
CLOCK_TAG = "cluster/node/clock"
STILL_LOST_TAG = "cluster/node/still_lost"
# Asks to look at a node's workers; who looks believes what the node's modules answer, and not the batch.
EXITED_TAG = "cluster/worker/exited"
# An engine has requests and makes nothing: asks to look, too.
STALLED_TAG = "cluster/engine/stalled"


@dataclass(frozen=True)
class Settings:
    """The part of the profile that matters here.

    Attributes
    ----------
    senders : dict
        Node name to the id its minion has.
    capacities : dict
        Node name to link name to bytes per second one way.
    """

    senders: Mapping[str, str]
    capacities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    window_seconds: float = 10.0
    lost_after_seconds: float = 10.0
    send_interval_seconds: float = 5.0
    acknowledge_interval_seconds: float = 10.0
    retention_seconds: float = 86_400.0

    @classmethod
    def of(cls, profile: Profile) -> Settings:
        """Return the settings that a profile has.

        Parameters
        ----------
        profile : Profile
            Profile of the cluster.
        """
        return cls(
            senders={name: node.hostname for name, node in profile.nodes.items()},
            capacities={
                name: {link: profile.networks[link].rate_bytes_per_second for link in node.links}
                for name, node in profile.nodes.items()
            },
            window_seconds=profile.telemetry.window_seconds,
            lost_after_seconds=profile.lost_after_seconds,
            send_interval_seconds=profile.sampler.send_interval_seconds,
            acknowledge_interval_seconds=profile.sampler.acknowledge_interval_seconds,
            retention_seconds=profile.telemetry.retention_seconds,
        )


@dataclass(frozen=True)
class NodeState:
    """Known facts of one node.

    Attributes
    ----------
    last_batch : float
        When its last batch came, unix seconds of the control node; 0 when none has.
    up : bool or None
        None until it is heard of for the first time.
    boot, past : str, tuple of str
        The life of its sampler that sends now, and those before it.
    sequence : int
        The highest number that has come.
    watermark, above : int, frozenset
        Everything up to `watermark` is stored, and the numbers in `above` beyond it.
    sample : dict
        The newest values: its last sample, with what only the batch's first one has.
    boundary : float
        End of its newest batch, in the node's own time.
    delay_seconds : float
        From the end of the newest batch to its arrival: the way and the difference of the clocks.
    asked, sent_by_job : float
        When it last asked what is stored, and when a job last sent it.
    lost_named, lost_times : float, int
        When its loss was last named, and how often since its last batch.
    clock_ahead : float
        How far its clock is ahead of the control node's where that is so far that its times were put right, seconds;
        0 while they are believed.
    former : tuple of str
        Lives of its sampler that are over and of which batches still came, from its journal.
    exits : int
        Ends of workers' processes that it reported.
    exited : float
        When the last of these led to an announcement.
    work, worked : float
        What its engine had done by the last reading (`engine_work`), and since when that is all, by the node's clock.
    refused : tuple of (str, int)
        Boot and number of batches that were refused for good: its sampler is to give them up.
    stalled : float
        When it was last announced that its engine makes nothing.
    """

    boot: str = ""
    last_batch: float = 0.0
    up: bool | None = None
    past: tuple[str, ...] = ()
    sequence: int = 0
    watermark: int = 0
    above: frozenset[int] = frozenset()
    sample: Mapping[str, object] = field(default_factory=dict)
    engine: Mapping[str, object] = field(default_factory=dict)
    sampler: Mapping[str, object] = field(default_factory=dict)
    boundary: float = 0.0
    delay_seconds: float = 0.0
    stored: int = 0
    repeated: int = 0
    asked: float = 0.0
    sent_by_job: float = 0.0
    lost_named: float = 0.0
    lost_times: int = 0
    clock_ahead: float = 0.0
    former: tuple[str, ...] = ()
    exits: int = 0
    exited: float = 0.0
    work: float = -1.0
    worked: float = 0.0
    stalled: float = 0.0
    refused: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class State:
    """The cluster as the control node sees it.

    Attributes
    ----------
    ticked, listens : float
        The last tick, and since when there was one after the other: a process that was stopped, or a machine that
        slept, has heard nobody for that long, and nobody is lost for it.
    """

    settings: Settings
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    window_start: float | None = None
    windows: int = 0
    rejected: int = 0
    failures: int = 0
    ticked: float = math.inf
    listens: float = 0.0
    announcements: tuple[tuple[str, dict[str, object]], ...] = ()


@dataclass(frozen=True)
class Arrived:
    """A batch was put into the store: `new` unless it was there, and what is complete up to `watermark`.

    Its times are the control node's; `clock_ahead` is by how much they had to be put right, seconds.
    """

    now: float
    batch: Batch
    new: bool
    watermark: int
    clock_ahead: float = 0.0


@dataclass(frozen=True)
class Rejected:
    """A batch was refused; `batch` is its node, boot and number when it would be refused whenever it came."""

    now: float
    batch: tuple[str, str, int] | None = None


@dataclass(frozen=True)
class Failed:
    """Something could not be done with what came, or with the time that passed: an error that was caught and logged."""

    now: float


@dataclass(frozen=True)
class Asked:
    """A sampler asked what is stored; or, with `by_job`, its node got the answer by a job."""

    now: float
    node: str
    by_job: bool = False


@dataclass(frozen=True)
class Tick:
    """Time has passed."""

    now: float


@dataclass(frozen=True)
class StoreReplaced:
    """The store began anew: what was stored and acknowledged is gone, what comes now is all there is."""

    now: float


@dataclass(frozen=True)
class ClockSet:
    """The control node's clock was set, forward by `seconds` or, below 0, back; `now` is by the new one."""

    now: float
    seconds: float


Event = Arrived | Rejected | Failed | Asked | Tick | StoreReplaced | ClockSet
