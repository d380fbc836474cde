"""
Measure ceilings: what each node, each link and the deployments' messages can do at most.

Works out who measures what (``bottleneck.plan.probing``), has the nodes do it, keeps the result
with its spread (``bottleneck.runs.ceilings``). Whatever was started is ended when it fails.
"""

import contextlib
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

from bottleneck.plan import probing
from bottleneck.profile import Profile
from bottleneck.runs import ceilings
from control import records
from control.nodes import Nodes, engine_slice, progress

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

NODE_SECONDS = 55
LINK_PORT = 29610
# Between a deployment's nodes, right before a run: it is to cost little. iperf3's first 0.4 s
# (slow start, a shaper's burst) are discarded, so one second is enough from megabits on.
FRESH_LOAD_SECONDS = 1
FRESH_BUDGET_SECONDS = 20.0


def run(only: str | None = None, force: bool = False) -> dict[str, Any]:
    """
    Measure every ceiling, or one part of them (``nodes``, ``links``, ``allreduce``); return them all.

    CLI Example:

    .. code-block:: bash

        salt-run probe.run
        salt-run probe.run only=links force=True
    """
    if only not in (None, *probing.SECTIONS):
        raise CommandExecutionError(f"only={only}: expected one of {', '.join(probing.SECTIONS)}")
    nodes = Nodes(__opts__)
    profile = nodes.profile
    path = records.path_of(__opts__, records.CEILINGS)
    started = time.monotonic()
    progress("asking", "", "is anything running", started)
    _check_free(nodes, force)
    new = ceilings.Ceilings(measured=time.time(), profile=profile.name)
    with _ended_on_failure(nodes, nodes.names):
        if only in (None, "nodes", "allreduce"):
            new = new.model_copy(update=_nodes(nodes, only, started))
        if only in (None, "links"):
            new = new.model_copy(update={"links": _links(nodes, started)})
    merged = ceilings.merge(_before(path, profile), new)
    ceilings.store(path, merged)
    return {"ceilings": merged.to_json(), "path": str(path), "seconds": round(time.monotonic() - started, 1)}


def fresh() -> dict[str, Any]:
    """
    Measure, in seconds, the links between the nodes of what is deployed; it may be up but must be idle.

    Return ``measured`` and ``left`` (the pairs that time did not allow), each as ``network: node, node``.
    Both are empty when the deployment's nodes exchange nothing.

    CLI Example:

    .. code-block:: bash

        salt-run probe.fresh
    """
    nodes = Nodes(__opts__)
    profile = nodes.profile
    path = records.path_of(__opts__, records.CEILINGS)
    started = time.monotonic()
    pairs = probing.replica_pairs(__salt__["cluster.deployment_record"]().get("workers") or [])
    if not pairs:
        return {"measured": [], "left": [], "seconds": 0.0}
    names = sorted({name for _, one, two in pairs for name in (one, two)})
    _check_idle(nodes, names)
    links: dict[str, dict[str, ceilings.LinkCeilings]] = {}
    done = 0
    with _ended_on_failure(nodes, names):
        for pair in pairs:
            if done and time.monotonic() - started > FRESH_BUDGET_SECONDS:
                break
            links.setdefault(pair[0], {}).update(_link(nodes, pair, FRESH_LOAD_SECONDS, started))
            done += 1
    new = ceilings.Ceilings(measured=time.time(), profile=profile.name, links=links)
    ceilings.store(path, ceilings.merge(_before(path, profile), new), keep_previous=False)
    words = [f"{network}: {one}, {two}" for network, one, two in pairs]
    return {"measured": words[:done], "left": words[done:], "seconds": round(time.monotonic() - started, 1)}


def show() -> dict[str, Any]:
    """
    Return the ceilings measured last, or an empty dict.

    CLI Example:

    .. code-block:: bash

        salt-run probe.show
    """
    found = _before(records.path_of(__opts__, records.CEILINGS), Nodes(__opts__).profile)
    return found.to_json() if found else {}


def _nodes(nodes: Nodes, only: str | None, started: float) -> dict[str, Any]:
    """Return what was measured of the nodes side by side; each imports torch once and ends with the collectives."""
    when, profile = time.time(), nodes.profile
    collectives = probing.collectives(profile) if only in (None, "allreduce") else []
    names = list(profile.nodes) if only in (None, "nodes") else sorted({name for c in collectives for name in c.nodes})
    if not names:
        return {}
    specifications = {
        nodes.minion(name): {
            "cores": profile.nodes[name].cores,
            "engine": engine_slice(profile.engine_of(name)),
            "device": profile.engine_of(name).torch_device,
            "bench": probing.own_bench(profile, name),
            "collectives": [part for each in collectives if (part := each.for_node(name))],
        }
        for name in names
    }
    measure = only in (None, "nodes")
    what = "memory, arithmetic, disk, launches" if measure else ""
    detail = ", ".join(part for part in (what, "messages between ranks" if collectives else "") if part)
    progress("measuring", "nodes", detail, started)
    by_name = nodes.call_together(
        names,
        "probe.node",
        [specifications, measure, NODE_SECONDS],
        timeout=NODE_SECONDS + 10,
        on_answer=lambda name: progress("measured", name, "", started),
    )
    measured: dict[str, Any] = {}
    if measure:
        measured["nodes"] = {
            name: ceilings.node_ceilings(answer["machine"], answer, when, ceilings.device_kind(profile, name))
            for name, answer in by_name.items()
        }
    for each in collectives:
        found = next(result for result in by_name[each.nodes[0]]["collectives"] if result["kind"] == each.kind)
        sizes = {size: spread for size, repeats in found["sizes"].items() if (spread := ceilings.spread(repeats))}
        kind = "allreduce" if each.kind == "all_reduce" else "send_receive"
        measured[kind] = ceilings.CollectiveCeilings(
            deployment=each.deployment,
            backend=each.backend,
            link=each.link,
            ranks=len(each.nodes),
            measured=when,
            sizes=sizes,
        )
    return measured


def _links(nodes: Nodes, started: float) -> dict[str, dict[str, ceilings.LinkCeilings]]:
    """Measure one link at a time: two at once would share the nodes' cores."""
    pairs = probing.node_pairs(nodes.profile)
    seconds = probing.link_seconds(len(pairs))
    links: dict[str, dict[str, ceilings.LinkCeilings]] = {}
    for pair in pairs:
        links.setdefault(pair[0], {}).update(_link(nodes, pair, seconds, started))
    return links


def _link(nodes: Nodes, pair: tuple[str, str, str], seconds: float, started: float) -> dict[str, ceilings.LinkCeilings]:
    """Measure what both directions between two nodes carry, loading each for so many seconds."""
    network, one, two = pair
    progress("measuring", network, f"{one} and {two}", started)
    addresses = [nodes.profile.nodes[name].links[network].address for name in (one, two)]
    engines = [engine_slice(nodes.profile.engine_of(name)) for name in (one, two)]
    nodes.call(two, "probe.serve", [addresses[1], LINK_PORT, engines[1]])
    try:
        measured = nodes.call(one, "probe.link", [*addresses, LINK_PORT, engines[0], seconds])
    finally:
        nodes.call(two, "probe.stop")
    return ceilings.link_ceilings(one, two, measured, time.time())


@contextlib.contextmanager
def _ended_on_failure(nodes: Nodes, names: Sequence[str]) -> Iterator[None]:
    """End every probe when the block fails: nothing may keep running, nor after Ctrl-C."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            nodes.ask("probe.stop", names=names)
        raise


def _check_free(nodes: Nodes, force: bool) -> None:
    """Refuse to measure beside a deployment: each would spoil the other's numbers."""
    workers = _workers(nodes, nodes.names)
    if force:
        return
    reason = probing.busy_reason(__salt__["cluster.deployment_record"]().get("deployment"), workers)
    if reason:
        raise CommandExecutionError(f"{reason}; run cluster undeploy first, or cluster probe --force")


def _check_idle(nodes: Nodes, names: Sequence[str]) -> None:
    """Refuse to measure while requests are under way, or while that is not known."""
    requests = probing.requests_under_way(_workers(nodes, names))
    if requests is None:
        raise CommandExecutionError("the engine does not report whether requests are under way")
    if requests:
        raise CommandExecutionError(
            f"{requests:.0f} requests are under way: they and the probe would disturb each other"
        )


def _workers(nodes: Nodes, names: Collection[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what ``worker.status`` answers on each of the nodes; a silent one is an error."""
    answers = nodes.ask_workers(names)
    silent = [name for name, answer in answers.items() if answer is None]
    if silent:
        raise CommandExecutionError(f"{', '.join(silent)} did not answer: see cluster status")
    return {name: answer for name, answer in answers.items() if answer is not None}


def _before(path: Path, profile: Profile) -> ceilings.Ceilings | None:
    try:
        return ceilings.load(path, profile)
    except ceilings.CeilingsError as error:
        print(f"{error}; starting anew", file=sys.stderr)
        return None
