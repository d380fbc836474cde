"""
Measure ceilings: what each node, each link and the deployments' messages can do at most.

Says who measures what (``bottleneck.probing``), has the nodes do it, keeps the result
with its spread (``bottleneck.ceilings``). Whatever was started is ended when it fails.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

import salt.client
from salt.exceptions import CommandExecutionError

from bottleneck import ceilings, probing
from bottleneck.profile import ProfileError, load_profile

NODE_SECONDS = 55
LINK_PORT = 29610
# Between a deployment's nodes, right before a run: it is to cost little. iperf3's first 0.4 s
# (slow start, a shaper's burst) are discarded, so one second is enough from megabits on.
FRESH_LOAD_SECONDS = 1
FRESH_BUDGET_SECONDS = 20.0


def run(only=None, force=False):
    """
    Measure every ceiling, or one part of them (``nodes``, ``links``, ``allreduce``); return them all.

    CLI Example:

    .. code-block:: bash

        salt-run probe.run
        salt-run probe.run only=links force=True
    """
    if only not in (None, *probing.SECTIONS):
        raise CommandExecutionError(f"only={only}: expected one of {', '.join(probing.SECTIONS)}")
    profile = _profile()
    path = Path(__opts__["cluster_directory"]) / "ceilings.json"
    started = time.monotonic()
    _progress("asking", "", "is anything running", started)
    _check_free(profile, force)
    new = ceilings.Ceilings(measured=time.time(), profile=profile.name)
    with _ended_on_failure(_hostnames(profile)):
        if only in (None, "nodes", "allreduce"):
            _nodes(profile, new, only, started)
        if only in (None, "links"):
            _links(profile, new, started)
    merged = ceilings.merge(_before(path), new)
    ceilings.store(path, merged)
    return {"ceilings": merged.to_json(), "path": str(path), "seconds": round(time.monotonic() - started, 1)}


def fresh():
    """
    Measure, in seconds, the links between the nodes of what is deployed; it may be up but must be idle.

    Return ``measured`` and ``left`` (the pairs that time did not allow), each as ``network: node, node``.
    Both are empty when the deployment's nodes exchange nothing.

    CLI Example:

    .. code-block:: bash

        salt-run probe.fresh
    """
    profile = _profile()
    path = Path(__opts__["cluster_directory"]) / "ceilings.json"
    started = time.monotonic()
    pairs = probing.replica_pairs(__salt__["cluster.deployment_record"]().get("workers") or [])
    if not pairs:
        return {"measured": [], "left": [], "seconds": 0.0}
    names = sorted({name for _, one, two in pairs for name in (one, two)})
    _check_idle(profile, names)
    new = ceilings.Ceilings(measured=time.time(), profile=profile.name)
    done = 0
    with _ended_on_failure([profile.nodes[name].hostname for name in names]):
        for pair in pairs:
            if done and time.monotonic() - started > FRESH_BUDGET_SECONDS:
                break
            _link(profile, new, pair, FRESH_LOAD_SECONDS, started)
            done += 1
    ceilings.store(path, ceilings.merge(_before(path), new), keep_previous=False)
    words = [f"{network}: {one}, {two}" for network, one, two in pairs]
    return {"measured": words[:done], "left": words[done:], "seconds": round(time.monotonic() - started, 1)}


def show():
    """
    Return the ceilings measured last, or an empty dict.

    CLI Example:

    .. code-block:: bash

        salt-run probe.show
    """
    found = _before(Path(__opts__["cluster_directory"]) / "ceilings.json")
    return found.to_json() if found else {}


def _nodes(profile, new, only, started):
    """Measure the nodes side by side; each imports torch once and ends with the collectives."""
    when = time.time()
    collectives = probing.collectives(profile) if only in (None, "allreduce") else []
    names = list(profile.nodes) if only in (None, "nodes") else sorted({name for c in collectives for name in c.nodes})
    if not names:
        return
    told = {
        profile.nodes[name].hostname: {
            "cores": profile.nodes[name].cores,
            "engine": _engine_slice(profile.engine_of(name)),
            "collectives": [part for each in collectives if (part := each.for_node(name))],
        }
        for name in names
    }
    measure = only in (None, "nodes")
    what = "memory, arithmetic, disk, launches" if measure else ""
    detail = ", ".join(part for part in (what, "messages between ranks" if collectives else "") if part)
    _progress("measuring", "nodes", detail, started)
    answers = _call_together(told, "probe.node", [told, measure, NODE_SECONDS], started)
    by_name = {name: answers[profile.nodes[name].hostname] for name in names}
    for name, answer in by_name.items():
        if measure:
            new.nodes[name] = ceilings.node_ceilings(answer["machine"], answer, when)
    for each in collectives:
        found = next(result for result in by_name[each.nodes[0]]["collectives"] if result["kind"] == each.kind)
        sizes = {size: spread for size, repeats in found["sizes"].items() if (spread := ceilings.spread(repeats))}
        measured = ceilings.CollectiveCeilings(
            deployment=each.deployment,
            backend=each.backend,
            link=each.link,
            ranks=len(each.nodes),
            measured=when,
            sizes=sizes,
        )
        setattr(new, "allreduce" if each.kind == "all_reduce" else "send_receive", measured)


def _links(profile, new, started):
    """Measure one link at a time: two at once would share the nodes' cores."""
    pairs = probing.node_pairs(profile)
    seconds = probing.link_seconds(len(pairs))
    for pair in pairs:
        _link(profile, new, pair, seconds, started)


def _link(profile, new, pair, seconds, started):
    """Measure both directions between two nodes, loading each for so many seconds."""
    network, one, two = pair
    _progress("measuring", network, f"{one} and {two}", started)
    ends = [profile.nodes[name] for name in (one, two)]
    addresses = [node.links[network].address for node in ends]
    engines = [_engine_slice(profile.engine_of(name)) for name in (one, two)]
    _call(ends[1].hostname, "probe.serve", [addresses[1], LINK_PORT, engines[1]])
    try:
        measured = _call(ends[0].hostname, "probe.link", [addresses[0], addresses[1], LINK_PORT, engines[0], seconds])
    finally:
        _call(ends[1].hostname, "probe.stop", [])
    new.links.setdefault(network, {}).update(ceilings.link_ceilings(one, two, measured, time.time()))


@contextlib.contextmanager
def _ended_on_failure(hostnames):
    """End every probe when the block fails: nothing may keep running, nor after Ctrl-C."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            _local().cmd(hostnames, "probe.stop", tgt_type="list", timeout=15)
        raise


def _check_free(profile, force):
    """Refuse to measure beside a deployment: each would spoil the other's numbers."""
    workers = _workers(profile, list(profile.nodes))
    if force:
        return
    reason = probing.busy_reason(__salt__["cluster.deployment_record"]().get("deployment"), workers)
    if reason:
        raise CommandExecutionError(f"{reason}; run cluster undeploy first, or cluster probe --force")


def _check_idle(profile, names):
    """Refuse to measure while requests are under way, or while that is not known."""
    requests = probing.requests_under_way(_workers(profile, names))
    if requests is None:
        raise CommandExecutionError("the engine does not say whether requests are under way")
    if requests:
        raise CommandExecutionError(
            f"{requests:.0f} requests are under way: they and the probe would disturb each other"
        )


def _workers(profile, names):
    """Return what ``vllm.status`` answers on each of the nodes."""
    hostnames = {name: profile.nodes[name].hostname for name in names}
    answers = _local().cmd(list(hostnames.values()), "vllm.status", tgt_type="list", timeout=10)
    silent = [name for name, hostname in hostnames.items() if not isinstance(answers.get(hostname), dict)]
    if silent:
        raise CommandExecutionError(f"{', '.join(silent)} did not answer: see cluster status")
    return {name: answers[hostname] for name, hostname in hostnames.items()}


def _before(path):
    try:
        return ceilings.load(path)
    except ceilings.CeilingsError as error:
        print(f"{error}; starting anew", file=sys.stderr)
        return None


def _profile():
    try:
        return load_profile(__opts__["cluster_profile"])
    except ProfileError as error:
        raise CommandExecutionError(str(error)) from error


def _hostnames(profile):
    return [node.hostname for node in profile.nodes.values()]


def _engine_slice(engine):
    return {
        "directory": engine.directory(),
        "preload": list(engine.preload),
        "environment": dict(engine.environment),
    }


def _local():
    return salt.client.LocalClient(mopts=__opts__)


def _call(hostname, function, arguments):
    return _call_together([hostname], function, arguments, None)[hostname]


def _call_together(hostnames, function, arguments, started):
    """Run a function on several nodes; raise at the first that fails, without waiting for the others."""
    found = {}
    waiting = set(hostnames)
    job = _local().cmd_iter(sorted(waiting), function, arguments, timeout=NODE_SECONDS + 10, tgt_type="list")
    with contextlib.closing(job):
        for answer in job:
            for hostname, result in (answer or {}).items():
                if hostname not in waiting or not isinstance(result, dict) or "ret" not in result:
                    continue
                if result.get("retcode"):
                    raise CommandExecutionError(f"{hostname}: {_last_line(result['ret'])}")
                waiting.discard(hostname)
                found[hostname] = result["ret"]
                if started is not None:
                    _progress("measured", hostname, "", started)
    if waiting:
        raise CommandExecutionError(f"{', '.join(sorted(waiting))} did not answer {function}")
    return found


def _last_line(returned):
    lines = [line.strip() for line in str(returned).splitlines() if line.strip()]
    return lines[-1].partition("Error: ")[2] or lines[-1] if lines else "it failed and said nothing"


def _progress(stage, node, detail, started):
    report = {"stage": stage, "node": node, "detail": detail, "seconds": round(time.monotonic() - started, 1)}
    print("@progress " + json.dumps(report), file=sys.stderr, flush=True)
