"""Compare what machine and cluster show after a fault with what must be true again."""

from __future__ import annotations

import collections
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.campaign.site import Process, Site
from lab.layout import CONTROL, LabError

# Salt's own come and go with every job, as do this program's commands.
PASSING = re.compile(r"salt-call|salt-run|nsenter|\bsleep\b|\bip\b|\btc\b|runpy|lab/campaign/load\.py|MinionProcess")
KINDS_OF_PROCESSES = (
    *("VLLM::", "bin/vllm", "sampler.py", "unit_keeper", "salt-minion", "salt-master", "haproxy", "defunct"),
)


@dataclass(frozen=True)
class Footprint:
    """The lab on this machine: kinds of processes by place, queueing disciplines, namespaces, mounts."""

    processes: Mapping[str, Mapping[str, int]]
    qdiscs: Mapping[str, tuple[str, ...]]
    namespaces: int
    mounts: int


def footprint(site: Site) -> Footprint:
    """Return what the lab takes now."""
    places = [CONTROL, *site.nodes]
    return Footprint(
        {place: _kinds(site.processes(place)) for place in places},
        {place: _qdiscs(site, place) for place in places},
        _namespaces(site),
        sum(len(Path(f"/proc/{site.record.inits[place][0]}/mounts").read_text().splitlines()) for place in places),
    )


def _kinds(processes: list[Process]) -> dict[str, int]:
    found: collections.Counter[str] = collections.Counter()
    for each in processes:
        kind = next((kind for kind in KINDS_OF_PROCESSES if kind in each.command), None)
        if kind and not PASSING.search(each.command):
            found[kind] += 1
    return dict(found)


def _qdiscs(site: Site, place: str) -> tuple[str, ...]:
    text = site.run(place, "tc", "-json", "qdisc", "show")
    return tuple(sorted(f"{each.get('dev')} {each.get('kind')}" for each in json.loads(text or "[]")))


def _namespaces(site: Site) -> int:
    text = subprocess.run(["lsns", "--json", "--type", "net"], capture_output=True, text=True, check=False).stdout
    init = {init for init, _ in site.record.inits.values()}
    try:
        return sum(int(each["pid"]) in init for each in json.loads(text)["namespaces"])
    except (ValueError, KeyError, TypeError):
        return len(init)


def leaks(before: Footprint, now: Footprint) -> list[str]:
    """Return what there is more of than before. Salt's daemons keep a varying number of processes; twice is a leak."""
    found = []
    for place, kinds in now.processes.items():
        for kind, count in kinds.items():
            known = before.processes.get(place, {}).get(kind, 0)
            most = 2 * known + 2 if kind.startswith("salt-") else known
            if count > most:
                found.append(f"{count} processes {kind} on {place}, {known} before")
    found += [
        f"queueing disciplines of {place}: {now.qdiscs[place]}, {known} before"
        for place, known in before.qdiscs.items()
        if now.qdiscs[place] != known
    ]
    if now.namespaces != before.namespaces:
        found.append(f"{now.namespaces} network namespaces, {before.namespaces} before")
    if now.mounts > before.mounts:
        found.append(f"{now.mounts} mounts, {before.mounts} before")
    return found


@dataclass(frozen=True)
class Telemetry:
    """The progress of each node's samples: its sampler's life, and what it dropped and still has."""

    dropped: Mapping[str, int]
    boots: Mapping[str, str]
    acknowledged: Mapping[str, int]


def telemetry(site: Site) -> Telemetry:
    """Return how far the samples have come now."""
    status = {node: site.sampler(node) for node in site.nodes}
    return Telemetry(
        {node: int(each.get("dropped", 0)) for node, each in status.items()},
        {node: str(each.get("boot", "")) for node, each in status.items()},
        {node: int(each.get("acknowledged", 0)) for node, each in status.items()},
    )


def arrives(site: Site, since: Telemetry) -> list[str]:
    """Return what keeps samples from arriving: nothing once every node's are stored again, and none were given up."""
    now = telemetry(site)
    found = []
    for node in site.nodes:
        same = now.boots[node] == since.boots[node]
        moved = now.acknowledged[node] > (since.acknowledged[node] if same else 0)
        if not moved:
            found.append(f"nothing of {node} was acknowledged since")
        if now.dropped[node] > (since.dropped[node] if same else 0):
            found.append(f"{node} gave up {now.dropped[node]} batches")
    return found


def status_problems(site: Site) -> list[str]:
    """Return what `cluster status` shows that is not so: every node up, every worker ready, nothing given up."""
    try:
        status = site.runner("cluster.status")
    except (LabError, ValueError, subprocess.TimeoutExpired) as error:
        return [f"cluster status: {error}"]
    found = []
    for name, node in status["nodes"].items():
        if not node["up"]:
            found.append(f"cluster status: {name} is not up")
        found += [
            f"cluster status: {each['name']} on {name} is {each['stage']}"
            for each in node["workers"].values()
            if each["stage"] != "ready"
        ]
    if status["recovery"]["given_up"]:
        found.append(f"cluster status: given up: {status['recovery']['given_up']['reason']}")
    if not status["deployment"]:
        found.append("cluster status: nothing is deployed")
    return found
