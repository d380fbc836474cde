"""Host overhead: steps wait for the host, or for a core on every node."""

from __future__ import annotations

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes._restraint import common_wait
from bottleneck.diagnosis.causes.base import LAB, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent

# A step that takes more than this many times its floor is shown with it.
_FAR = 2


def find(context: Context) -> Finding | None:
    """Find what the host takes between kernels, and how long the workers of every node alike had no core.

    Parameters
    ----------
    context : Context
        Supplies the host's share of steps in the ledger, and the waits for cores of all nodes.

    Returns
    -------
    Finding or None
        Scored by both shares of the time in steps; None without either.
    """
    own, crowded = context.share("host"), common_wait(context)
    if own + crowded <= 0:
        return None
    resources = ("host", "cpu_wait") if crowded > 0 else ("host",)
    entries = [entry for entry in context.ledger.entries if entry.resource in resources]
    evidence = []
    if own > 0:
        words = f"the host takes {percent(own)} of the time in steps"
        evidence.append(line(words, own, "1", context.sources("host")))
    if crowded > thresholds.LEAST_SHOWN:
        evidence.append(
            line(
                f"the workers of every node were ready to run but had no core {percent(crowded)} of the time in steps, "
                f"and their own work is {percent(context.work)}: other processes have the nodes' cores",
                crowded,
                "1",
                "samples: run delay while other processes ran, and steal",
            )
        )
    if context.seen.settings.eager:
        evidence.append(line("the engine does not capture graphs (enforce_eager)", None, "", "server settings"))
    for work in context.ledger.work:
        if work.floor_seconds and work.steps > 0 and work.wall_seconds > _FAR * work.floor_seconds:
            evidence.append(
                line(
                    f"a step of {work.kind} takes {work.wall_seconds / work.steps * 1e3:.3g} ms, "
                    f"{work.wall_seconds / work.floor_seconds:.3g} times what its bytes and operations need",
                    work.floor_seconds / work.wall_seconds,
                    "1",
                    work.floor_source,
                )
            )
    return Finding(
        min(1.0, own + crowded),
        max(entries, key=lambda entry: entry.seconds).node,
        fault=crowded > max(own, thresholds.MENDABLE),
        evidence=tuple(evidence),
        terms=(Term("host between kernels", own), Term("every node's workers without a core", crowded)),
    )


CAUSE = Cause(
    name="host_overhead",
    title="Host overhead on {node}",
    meaning="Between the kernels the host is what takes time: scheduling a step, launching kernels, sampling.",
    signals=(
        "a step takes many times what its operations and bytes need, whatever the batch",
        "the engine runs without captured graphs (enforce_eager), or the model is tiny",
        "processes of the engine wait for a core, or the head's loop keeps its peers asleep",
    ),
    similar=(
        ("decode_memory_bandwidth", "there the step is near bytes / ceiling; no kernel is several times off"),
        ("link_latency", "there the time grows with the number of messages between nodes"),
        ("straggler", "there one node alone lacks CPU; here every node has its host's cost alike"),
    ),
    advice=(
        "End what else runs on the nodes' cores, if something does: cluster top shows each core.",
        (
            "Let the engine capture graphs: no enforce_eager in the deployment's server settings, where the "
            "accelerator and the split allow it."
        ),
        "Give the engine's processes cores of their own, and faster ones; more sequences per step share the cost.",
        "Look at the launch cost of this host: cluster probe --only nodes",
    ),
    fault=True,
    tried=LAB,
    tier=Tier.LIMIT,
    find=find,
    rests_on_steps=True,
    host_or_kernels=True,
)
