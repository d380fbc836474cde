"""Tell whether a deployment serves: its workers' stages, and whether its heads' engines make steps.

An engine that lost a rank answers ``/health`` for minutes; one that is busy answers a request late. So an engine with
requests is judged by whether its counters of tokens grow, and one without by whether it answers one token. Where they
stand still, what the ranks do tells a hang from a long step (`hangs`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salt.exceptions import CommandExecutionError

from bottleneck.telemetry.engine_work import engine_work
from bottleneck.telemetry.prometheus_text import MetricsText
from control import engine_key, hangs
from control.nodes import Nodes

# Between two looks at the counters of a busy engine.
LOOK_SECONDS = 0.5
# A process of the worker has ended, and the others may be about to.
SETTLE_SECONDS = 10.0
POLL_SECONDS = 0.5
ASK_SECONDS = 10.0
ENDED = ("failed", "stopped")


@dataclass(frozen=True)
class Patience:
    """Seconds that a head has to answer with its metrics, and with one token."""

    metrics_seconds: float
    canary_seconds: float


# The short one is for an engine that is already suspected.
USUAL, SHORT = Patience(5.0, 15.0), Patience(2.0, 4.0)

Spec = Mapping[str, Any]
Ask = Callable[[str, Mapping[str, Any] | None, float], str]


def trouble(
    nodes: Nodes,
    specs: Sequence[Spec],
    model: str,
    settle: bool,
    ask: Ask | None = None,
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    exchanges: int = 0,
) -> str | None:
    """
    Return why a deployment does not serve, in one sentence, or None when it does.

    specs
        the deployment's workers
    settle
        whether a process was seen to end: then its worker is given time to end or to show that it goes on
    ask
        asks an engine; left out, with the key of its API
    exchanges
        how often the ranks of different nodes exchange something in a step (``hangs.exchanges``)
    """
    deadline = clock() + (SETTLE_SECONDS if settle else 0.0)
    while True:
        found, suspected = _of_workers(nodes, specs)
        if found or suspected or clock() >= deadline:
            break
        wait(POLL_SECONDS)
    if found:
        return found
    ask = ask or engine_key.asking(nodes.options)
    for head in (spec for spec in specs if spec["head"]):
        ranks = [spec for spec in specs if spec["name"] == head["name"]]

        def look(ranks: Sequence[Spec] = ranks) -> hangs.Hang | None:
            return suspected or hangs.look(nodes, ranks)

        seen = suspected is not None and suspected.kind != "silent"
        looks = hangs.looks_for_a_loop(exchanges) if exchanges else None
        why = _of_engine(head, model, ask, wait, clock, look, SHORT if seen else USUAL, looks)
        if why:
            # Where the engine works all the same, what was stopped was a helper, and a silent node's minion is all that
            # is ill.
            return suspected.sentence if suspected else f"{head['name']} on {head['node']}: {why}"
    return None


def _listed(worker: Mapping[str, Any] | None, key: str) -> list[Any]:
    """Return a list of a worker's answer; a node may answer anything, which is then none."""
    found = (worker or {}).get(key)
    return found if isinstance(found, list) else []


def _of_workers(nodes: Nodes, specs: Sequence[Spec]) -> tuple[str | None, hangs.Hang | None]:
    """Return why workers do not serve, or what may keep them from it: a stopped process, a cut link, a silent node."""
    answers = nodes.ask_workers([spec["node"] for spec in specs], timeout=ASK_SECONDS)
    silent = sorted(node for node, workers in answers.items() if workers is None)
    ended = []
    stopped: list[str] = []
    cut: list[str] = []
    for spec in specs:
        worker = (answers[spec["node"]] or {}).get(spec["name"])
        if answers[spec["node"]] is not None and (worker is None or worker.get("stage") in ENDED):
            reason = str((worker or {}).get("reason") or "it does not run")
            # A rank that reports the end of another is not the cause.
            ended.append(("other rank" in reason, f"{spec['name']} on {spec['node']} has ended: {reason}"))
        for pid in _listed(worker, "stopped_processes"):
            stopped.append(f"process {pid} of {spec['name']} on {spec['node']} is stopped: the ranks wait for it")
        for words in _listed(worker, "cut_links"):
            cut.append(f"the link between the ranks is cut: of {spec['node']}, {words}")
    if ended:
        return min(ended)[1], None
    if stopped:
        return None, hangs.Hang("stopped", stopped[0])
    if cut:
        return None, hangs.Hang("cut", cut[0])
    if silent:
        return None, hangs.Hang("silent", f"{', '.join(silent)} did not answer in {ASK_SECONDS:.0f} s")
    return None, None


def _of_engine(
    head: Spec,
    model: str,
    ask: Ask,
    wait: Callable[[float], None],
    clock: Callable[[], float],
    look: Callable[[], hangs.Hang | None],
    patience: Patience,
    looks_for_a_loop: int | None,
) -> str | None:
    url = f"http://{head['api_address']}:{head['api_port']}"
    deadline = clock() + hangs.LONGEST_STEP_SECONDS
    looped = 0

    def work() -> tuple[float, float]:
        return engine_work(MetricsText.parse(ask(f"{url}/metrics", None, patience.metrics_seconds)))

    try:
        requests, before = work()
        while requests:
            wait(LOOK_SECONDS)
            if work()[1] != before:
                return None
            hang = look()
            requests, made = work()
            if made != before:
                return None
            if hang is not None and hang.kind == "loop":
                looped += 1
                hang = hang if looks_for_a_loop and looped >= looks_for_a_loop else None
            else:
                looped = 0
            if requests and hang is not None:
                return f"{requests:.0f} requests, and no token: {hang.sentence}"
            if clock() >= deadline:
                return f"{requests:.0f} requests, and no token in {hangs.LONGEST_STEP_SECONDS:.0f} s"
        return _canary(url, model, ask, work, patience)
    except CommandExecutionError as error:
        return str(error)


def _canary(url: str, model: str, ask: Ask, work: Callable[[], tuple[float, float]], patience: Patience) -> str | None:
    """Ask for one token; one that does not come in time is no sign while others' come."""
    _, before = work()
    request = {"model": model, "prompt": "canary", "max_tokens": 1, "temperature": 0}
    try:
        ask(f"{url}/v1/completions", request, patience.canary_seconds)
    except CommandExecutionError:
        if work()[1] == before:
            raise
    return None
