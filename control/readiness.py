"""Wait until a deployment's workers are ready, have them warm, and name the cause when one fails."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import salt.utils.http
from salt.exceptions import CommandExecutionError

from control.engine import authorization
from control.nodes import Nodes, progress

if TYPE_CHECKING:
    from bottleneck.profile import Profile

POLL_SECONDS = 2.0
# How long a rank that only lost another is not believed: the other may be still ending.
SETTLE_SECONDS = 20.0
# Of `failure_reasons.Rank`, as `worker.status` gives it.
UNNAMED, PEER = 1, 3

# How one node's worker is started, as `worker.start` takes it, and what `worker.status` answers of one.
Spec = Mapping[str, Any]
Worker = Mapping[str, Any]


def wait_ready(nodes: Nodes, specs: Sequence[Spec], started: float, timeout: float) -> None:
    """Report each worker's stage until all are ready; raise with the reason when one fails."""
    stages: dict[str, str] = {}
    deadline = started + timeout
    settled: float | None = None
    while time.monotonic() < deadline:
        answers = nodes.ask_workers([spec["node"] for spec in specs])
        seen: list[tuple[Spec, Worker]] = [
            (spec, (answers[spec["node"]] or {}).get(spec["name"], {})) for spec in specs
        ]
        for spec, worker in seen:
            stage = worker.get("stage", "unknown")
            if stages.get(spec["node"]) != stage:
                stages[spec["node"]] = stage
                progress(stage, spec["node"], spec["name"], started)
        failed = [(spec, worker) for spec, worker in seen if worker.get("stage") in ("failed", "stopped")]
        if failed:
            first = min(failed, key=_nearness)
            settled = settled or time.monotonic() + SETTLE_SECONDS
            # A rank that lost another may end before the one that it lost: that one's reason is awaited.
            if _nearness(first)[0] < PEER or len(failed) == len(specs) or time.monotonic() >= settled:
                raise CommandExecutionError(_failure(*first))
        if stages and all(stage == "ready" for stage in stages.values()):
            return
        time.sleep(POLL_SECONDS)
    slow = ", ".join(f"{node} is {stage}" for node, stage in stages.items() if stage != "ready")
    raise CommandExecutionError(f"not ready after {timeout:.0f} s: {slow} (see cluster logs)")


def _nearness(failed: tuple[Spec, Worker]) -> tuple[int, float]:
    """Return how near a failed worker is to the cause: by what it reported, then by when."""
    _, worker = failed
    failure = worker.get("failure") or {}
    rank, moment = failure.get("rank"), failure.get("moment")
    if rank is None:
        # Nothing was reported: it was stopped, or ended without a word.
        rank = PEER if "other rank" in (worker.get("reason") or "other rank") else UNNAMED
    return rank, float("inf") if moment is None else moment


def _failure(spec: Spec, worker: Worker) -> str:
    """Return the sentence that a deployment's failure ends with."""
    reason = worker.get("reason") or "the worker was stopped"
    text = f"{spec['name']} on {spec['node']} failed: {reason} (log: {worker.get('log')})"
    if "; next: " not in text:
        text += "; next: cluster logs NODE -n 200"
    return re.sub(r"\bNODE\b", spec["node"], text)


def warm(profile: "Profile", specs: Sequence[Spec], started: float, key: str) -> None:
    """Have each head answer one short request, so that the first real one finds everything in place."""
    for spec in specs:
        if not spec["head"]:
            continue
        progress("warming", spec["node"], "first request", started)
        answer = salt.utils.http.query(
            f"http://{spec['api_address']}:{spec['api_port']}/v1/completions",
            method="POST",
            header_dict={"Content-Type": "application/json", **authorization(key)},
            data=json.dumps({"model": profile.model.name, "prompt": "warm", "max_tokens": 4, "temperature": 0}),
            decode=False,
            raise_error=False,
        )
        if "error" in answer:
            raise CommandExecutionError(f"{spec['name']} is up but does not answer: {answer['error']}")
        progress("ready", spec["node"], spec["name"], started)
