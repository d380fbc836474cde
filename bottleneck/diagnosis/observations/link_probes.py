"""Read the probes of the link between an engine's nodes: what it can carry, and how long it takes for a message."""

from __future__ import annotations

import math

from bottleneck.performance.collectives import DEFAULT_BACKEND, algorithm, moved_bytes
from bottleneck.runs.ceilings import LinkCeilings
from bottleneck.runs.run import Run
from bottleneck.runs.topology import Topology
from bottleneck.units import duration_text


def probed_capacity(run: Run, topology: Topology) -> tuple[float, float] | None:
    """Return the least that a probe found between an engine's nodes, bytes per second, and when.

    Parameters
    ----------
    run : Run
        Run with ceilings, or without.
    topology : Topology
        The run's topology, which says between which nodes messages go.

    Returns
    -------
    tuple[float, float] or None
        Bytes per second one way, and unix seconds (NaN when that was not recorded); None without a probe.
    """
    probes = [
        (way.bandwidth_bytes_per_second.median, way.measured or math.nan)
        for way in _ways(run, topology)
        if way.bandwidth_bytes_per_second
    ]
    return min(probes, default=None)


def _ways(run: Run, topology: Topology) -> list[LinkCeilings]:
    """Return what was probed of the link between an engine's nodes, each direction."""
    pairs = run.ceilings.links.get(topology.link or "", {})
    return [way for pair, way in pairs.items() if all(end in topology.nodes for end in pair.split("->"))]


def source_text(age_seconds: float) -> str:
    """Return where a probed ceiling is from, in words: its age says how far it can be trusted.

    Parameters
    ----------
    age_seconds : float
        Seconds from the probe to the run; NaN where it is not known.
    """
    if not math.isfinite(age_seconds) or age_seconds < 0:
        return "probe"
    return f"probe, {duration_text(age_seconds)} before"


def message_backend(run: Run, topology: Topology) -> str:
    """Return what sends messages over an engine's link: as it was probed, else as the engine is described.

    Parameters
    ----------
    run, topology : Run, Topology
        The run with its ceilings, and which of its nodes exchange messages, over which link.

    Returns
    -------
    str
        A key of `ALGORITHMS`.
    """
    for probe in (run.ceilings.allreduce, run.ceilings.send_receive):
        if probe is not None and probe.link == topology.link:
            return probe.backend
    profile, head = topology.profile, next(iter(topology.nodes), "")
    described = profile.engine_of(head).collective_backend if profile and head in profile.nodes else None
    return described or DEFAULT_BACKEND


def message_latency(
    run: Run, topology: Topology, probe_rate: float | None
) -> tuple[float | None, str, dict[float, float]]:
    """Find the time that the link itself takes for one message between the ranks, its source, the collectives' probes.

    Two probes know of it: the collective of the smallest message, less its bytes' time on the wire, and the one-way
    latency times the trips of the backend's algorithm. The lower one is taken. The first also holds what is not the
    link's: a rank whose core is busy elsewhere comes late, and on a machine with as many runnable processes as cores
    that alone is milliseconds, at the probe's time, not at the run's. Times the collectives of a step it can exceed the
    whole step. Waiting for a core is measured during the run (`cpu_wait`), and what the collective's software takes
    stays unexplained. The second is too much where collectives avoid TCP, as over an accelerator's own links. For the
    same reason the low ends count, not the medians. Beside accelerators the collective counts: no core is busy then.
    But a bench measures the link before the load, collectives only `cluster probe` does: where the trips of a newer
    latency come to more than a collective took, it is out of date.

    Parameters
    ----------
    run, topology : Run, Topology
        The run with its ceilings, and which of its nodes exchange messages, over which link.
    probe_rate : float or None
        Bytes per second that a probe found; None without one.

    Returns
    -------
    tuple of float or None, str, dict
        Seconds of one message (None when nothing was probed), where that is from, and bytes of a message to the seconds
        of one all-reduce of it.
    """
    ranks, link = topology.tensor_parallel, topology.link or ""
    probe = run.ceilings.allreduce
    if probe is not None and (probe.link, probe.ranks) != (link, ranks):
        probe = None
    # Beside a processor a probe's slow repeats are its core's; beside a card they are the collective's own.
    on_card = topology.on_accelerator(topology.groups[0].head)
    collectives = {
        float(size): spread.median if on_card else spread.low
        for size, spread in (probe.sizes if probe else {}).items()
        if size > 0
    }
    ways = [(way.latency_seconds.low, way.measured or -math.inf) for way in _ways(run, topology) if way.latency_seconds]
    choices: list[tuple[float, str]] = []
    if ranks > 1 and collectives:
        size, seconds = min(collectives.items())
        wire = moved_bytes(size, ranks) / (probe_rate or math.inf)
        choices.append((max(0.0, seconds - wire), f"all-reduce probe, {size:.0f} B over {link}"))
    if ways:
        made = algorithm(message_backend(run, topology))
        trips = made.all_trips(ranks) if ranks > 1 else 1
        one_way, measured = max(ways)
        by_trips = (trips * one_way, f"one-way latency probe of {link}, {trips} trips a message ({made.name})")
        newer = probe is not None and measured > (probe.measured or math.inf)
        if newer and choices and by_trips[0] > choices[0][0]:
            # What their software takes is as it was; bytes and wire are as they are now.
            software, rate = choices[0][0], probe_rate or math.inf
            now = {size: software + by_trips[0] + moved_bytes(size, ranks) / rate for size in collectives}
            return by_trips[0], f"{by_trips[1]}; collectives were probed before", now
        if not (choices and on_card):
            choices.append(by_trips)
    latency, source = min(choices, default=(None, ""))
    return latency, source, collectives
