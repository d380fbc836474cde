"""Rules for what is wrong or slow inside a node, beside its work: host, heat, memory, the way to memory."""

from __future__ import annotations

from bottleneck.diagnosis.evidence import Candidate, Case, percent
from bottleneck.diagnosis.observations.node_signals import HOT_CELSIUS, NodeFacts
from bottleneck.diagnosis.rules.straggler import common_wait, crowded_share

# Tasks must stall for memory this share of the busy time.
STALLED = 0.1
# A remote access costs about twice a local one: at most half of what is remote is won.
REMOTE_COST = 0.5


def score_host_overhead(case: Case) -> Candidate:
    """The host, not the kernels, is what steps wait for."""
    own, crowded = case.share("host"), crowded_share(case)
    found = Candidate("host_overhead", min(1.0, own + crowded))
    if found.score <= 0:
        return found
    found.gain_share = min(1.0, found.score * case.norm)
    resources = ("host", "cpu_wait") if crowded > 0 else ("host",)
    entries = [entry for entry in case.ledger.entries if entry.resource in resources]
    found.node = max(entries, key=lambda entry: entry.seconds).node
    if own > 0:
        sources = "; ".join(sorted({entry.source for entry in entries if entry.resource == "host"}))
        found.say(f"the host takes {percent(own)} of the time in steps", own, "1", f"ledger: {sources}")
    if crowded > 0:
        wait = common_wait(case)
        found.say(
            f"the workers of every node were ready to run but had no core {percent(wait)} of the time in steps, and "
            f"their own work is {percent(case.work)}: other processes have the nodes' cores",
            wait,
            "1",
            "samples: run delay while other processes ran, and steal",
        )
    if case.signals.settings.eager:
        found.say("the engine was told not to capture graphs (enforce_eager)", None, "", "server settings")
    for work in case.ledger.work:
        if work.floor_seconds and work.steps > 0 and work.wall_seconds > 3 * work.floor_seconds:
            found.say(
                f"a step of {work.kind} takes {work.wall_seconds / work.steps * 1e3:.3g} ms, "
                f"{work.wall_seconds / work.floor_seconds:.3g} times what its bytes and operations need",
                work.floor_seconds / work.wall_seconds,
                "1",
                work.floor_source,
            )
    return found


def _hot(facts: NodeFacts, case: Case) -> tuple[float, str]:
    """Return the share of a node's speed that heat or power took, and how it is known."""
    by_time = case.busy_share_of(facts.thermal_seconds)
    if by_time > 0:
        return by_time, f"its processor's own counter says {percent(by_time)} of the busy time"
    lost = facts.clock_lost_share or 0.0
    if lost <= 0:
        return 0.0, ""
    if facts.temperature_celsius is not None and facts.temperature_celsius >= HOT_CELSIUS:
        return lost, f"its clock fell by {percent(lost)} at {facts.temperature_celsius:.0f} degrees Celsius"
    if facts.power_share is not None and facts.power_share >= 0.97:
        return lost, f"its clock fell by {percent(lost)} at {percent(facts.power_share)} of its power limit"
    return 0.0, ""


def score_thermal_throttling(case: Case) -> Candidate:
    """A processor or accelerator lowered its clock for heat or power."""
    found = Candidate("thermal_throttling")
    for facts in case.signals.nodes.values():
        share, words = _hot(facts, case)
        if share > found.score:
            found = Candidate("thermal_throttling", share, facts.node, gain_share=share)
            found.say(f"{facts.node} lowered its clock: {words}", share, "1", "samples: clock, temperature, power")
    return found


def score_numa_pcie(case: Case) -> Candidate:
    """Data takes a slow way inside a node."""
    found = Candidate("numa_pcie")
    reads = case.share("memory", "compute")
    copies = case.share("host", "unexplained")
    for facts in case.signals.nodes.values():
        remote = (facts.remote_memory_share or 0.0) * REMOTE_COST * reads
        narrow = (1.0 - facts.bus_share) * copies if facts.bus_share is not None else 0.0
        if max(remote, narrow) <= found.score:
            continue
        found = Candidate("numa_pcie", max(remote, narrow), facts.node, gain_share=max(remote, narrow))
        if remote >= narrow:
            share = facts.remote_memory_share or 0.0
            found.say(
                f"{percent(share)} of the memory that {facts.node} took is on another NUMA node than the cores",
                share,
                "1",
                "samples: numastat",
            )
        else:
            share = facts.bus_share or 0.0
            found.say(
                f"the accelerator of {facts.node} is attached at {percent(share)} of its bus",
                share,
                "1",
                "samples: PCIe link",
            )
    return found


def score_memory_capacity(case: Case) -> Candidate:
    """A node runs out of memory: its tasks stall for it."""
    found = Candidate("memory_capacity")
    for facts in case.signals.nodes.values():
        stalled = case.busy_share_of(facts.memory_stall_seconds)
        if stalled <= max(found.score, STALLED):
            continue
        found = Candidate("memory_capacity", stalled, facts.node, gain_share=stalled)
        found.say(
            f"tasks on {facts.node} stalled for memory {percent(stalled)} of the busy time",
            stalled,
            "1",
            "samples: pressure of memory",
        )
        if facts.memory_available_share is not None:
            found.say(
                f"at the least {percent(facts.memory_available_share)} of its memory was available",
                facts.memory_available_share,
                "1",
                "samples: memory",
            )
    return found
