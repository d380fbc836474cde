"""Tell an engine that hangs from one with a long step in work, by what its processes do on every node.

Counters that stand still prove nothing: a long prompt over a slow link is one step of many seconds. But then a process
computes, or reads, or something passes over a link. Where a rank is stopped, where the link between ranks is cut, and
where nothing of all this happens on any node, no step will come. Nor will it where the ranks share every layer and
nothing passes between them for longer than a layer of the longest step takes: one of them computes without end.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bottleneck.plan.workers import DeploymentRecord
from bottleneck.profile import Profile
from control.nodes import Nodes

# A step with a long prompt, over a slow link, may take as long.
LONGEST_STEP_SECONDS = 30.0
# How long the processes are measured, and how long the answer may take beside that.
MEASURE_SECONDS = 1.5
ANSWER_SECONDS = 10.0
# A share of a core in the user's own code above which a process computes. One that only waits for its peer in a busy
# loop, as vLLM's engine does, yields the core again and again: that is time of the kernel.
COMPUTES_SHARE = 0.05
# Salt and the samplers send a few kB a second; a step of the smallest model over a link is more.
QUIET_BYTES_PER_SECOND = 64e3
# States of /proc: waiting for a disk, as a page of weights is read; stopped by a signal.
READS, STOPPED = "D", "T"
CPU = "cpu"

Spec = Mapping[str, Any]
Activity = Mapping[str, Any]


@dataclass(frozen=True)
class Hang:
    """A hang, the sentence that shows it, and which kind: ``stopped``, ``silent``, ``cut``, ``still`` or ``loop``.

    One look shows any of them but the last, which takes `looks_for_a_loop`.
    """

    kind: str
    sentence: str


def exchanges(profile: Profile, record: DeploymentRecord) -> int:
    """Return how often ranks of different nodes exchange something in a step, at least; 0 where it is not known.

    Ranks that share a layer (tensor parallel) exchange their parts of its result, of a layer with attention twice.
    Stages exchange once in a step, which tells nothing.
    """
    settings, world = record.settings, max(worker.world for worker in record.workers)
    if settings.tensor_parallel <= settings.ranks // world:
        return 0
    return len(profile.model.model_shape().layers) // settings.pipeline_parallel


def looks_for_a_loop(exchanges_of_a_step: int) -> int:
    """Return in how many looks, one after another, nothing may pass before even the longest step would have shown."""
    return max(2, math.ceil(LONGEST_STEP_SECONDS / exchanges_of_a_step / MEASURE_SECONDS))


def look(nodes: Nodes, specs: Sequence[Spec]) -> Hang | None:
    """Measure the ranks of one replica and return what shows that it hangs, or None."""
    arguments = [
        sorted({spec["name"] for spec in specs}),
        MEASURE_SECONDS,
        sorted({spec["link_address"] for spec in specs if spec.get("link_address")}),
    ]
    names = [spec["node"] for spec in specs]
    found = nodes.ask("worker_activity.measure", arguments, names, timeout=MEASURE_SECONDS + ANSWER_SECONDS)
    on_cpu = all(nodes.profile.nodes[spec["node"]].accelerator.kind == CPU for spec in specs)
    return judge(found, on_cpu)


def judge(activities: Mapping[str, object], on_cpu: bool) -> Hang | None:
    """
    Return what shows that the ranks hang, or None: then it is not known.

    activities
        by node, what ``worker_activity.measure`` answered
    on_cpu
        whether the engine computes with the processes that were measured; what a card does they do not show
    """
    known = {node: each for node, each in activities.items() if isinstance(each, Mapping) and _is_activity(each)}
    for node, each in known.items():
        for process in each["processes"]:
            if process["state"] == STOPPED:
                who = f"process {process['pid']} ({process['name']}) on {node}"
                return Hang("stopped", f"{who} is stopped, and the ranks wait for it")
    # A node that does not answer shows nothing, and it may be the one that computes.
    if not known or len(known) < len(activities):
        return None
    quiet = [each["link_bytes_per_second"] < QUIET_BYTES_PER_SECOND for each in known.values()]
    silent = [(node, each["unreachable"]) for node, each in known.items() if each["unreachable"]]
    if silent and all(quiet):
        node, peers = silent[0]
        return Hang("cut", f"{node} does not reach {', '.join(map(str, peers))}: the link between the ranks is cut")
    if not on_cpu or not all(quiet):
        return None
    if any(process["state"] == READS for each in known.values() for process in each["processes"]):
        return None
    computing = [(process["user"], node, process) for node, each in known.items() for process in _computing(each)]
    if not computing:
        return Hang("still", f"no rank computed, read or sent anything in {MEASURE_SECONDS:g} s")
    _, node, process = max(computing, key=lambda each: each[0])
    who = f"process {process['pid']} ({process['name']}) on {node}"
    return Hang("loop", f"{who} computes without end, and nothing passes between the ranks")


def _computing(activity: Activity) -> Iterable[Mapping[str, Any]]:
    return (
        process
        for process in activity["processes"]
        if process["user"] > COMPUTES_SHARE and process["user"] > process["system"]
    )


def _is_activity(answer: Activity) -> bool:
    """Return whether a node's answer is in its form: a node may answer anything."""
    processes = answer.get("processes")
    if not isinstance(processes, list) or not isinstance(answer.get("unreachable"), list):
        return False
    numbers: list[object] = [answer.get("link_bytes_per_second")]
    for process in processes:
        if not isinstance(process, Mapping) or not {"pid", "name", "state"} <= process.keys():
            return False
        numbers += [process.get("user"), process.get("system")]
    return all(type(each) in (int, float) for each in numbers)
