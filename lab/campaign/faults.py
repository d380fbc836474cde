"""Kinds of faults: how each is made, how it is undone, and what the cluster is to make of it.

A fault that ends the deployment's service has the cluster start all ranks again, with a cause on record. Any other is
outlived: nothing is started again, and all is as before once it is gone.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab import operations
from lab.campaign import endless_loop
from lab.campaign.site import STATE_DIRECTORY, Process, Site
from lab.layout import CONTROL, LabError

# What systemd waits before it starts a daemon again, on real machines; a lab has no systemd.
RESTART_SECONDS = 2.0
# A cut that a node is missed for, and one that slows.
CUT_SECONDS, SLOW_SECONDS = 12.0, 10.0
SLOW_LINK_BYTES_PER_SECOND = 20e6 / 8
SLOW_CORES = 0.3
TELEMETRY_TAG = "cluster/telemetry/batch/"
RANK, CORE = "VLLM::Worker", "VLLM::EngineCore"
PROGRAM = ("bin/vllm", "serve")
# Said of what signal 9 ended while the kernel ended nothing for want of memory.
OUTSIDE = "from outside"


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes
    ----------
    kind
        Its name.
    act
        Makes it; returns what it hit, in a few words.
    causes
        Words of which the cause on record has one, where the ranks are started again; empty where they are not.
    undo
        Takes away what the cluster cannot, once it was seen.
    """

    kind: str
    act: Callable[[Site, random.Random], str]
    causes: tuple[str, ...] = ()
    undo: Callable[[Site], None] | None = None

    @property
    def restarts(self) -> bool:
        """True where all ranks are to be started again."""
        return bool(self.causes)


KINDS: dict[str, Fault] = {}


def _kind(
    kind: str, *causes: str, undo: Callable[[Site], None] | None = None
) -> Callable[[Callable[[Site, random.Random], str]], Callable[[Site, random.Random], str]]:
    def register(act: Callable[[Site, random.Random], str]) -> Callable[[Site, random.Random], str]:
        KINDS[kind] = Fault(kind, act, causes, undo)
        return act

    return register


def _head(site: Site) -> str:
    return next(str(each["node"]) for each in site.deployment()["workers"] if each["head"])


def _follower(site: Site) -> str:
    return next(str(each["node"]) for each in site.deployment()["workers"] if not each["head"])


def _one(site: Site, chance: random.Random, place: str, number: int, *words: str) -> str:
    found: Process = chance.choice(site.find(place, *words))
    site.signal([found], number)
    return f"{found.command[:40]} on {place}"


# -- ranks


def _signalled(place: Callable[[Site], str], number: int, *words: str) -> Callable[[Site, random.Random], str]:
    """Return the fault that sends a signal to one process of a place, by the words of its command line."""

    def act(site: Site, chance: random.Random) -> str:
        return _one(site, chance, place(site), number, *words)

    return act


for _name, _cause, _place, _number, _words in (
    ("kill a follower's rank", OUTSIDE, _follower, signal.SIGKILL, (RANK,)),
    ("kill the head's rank", OUTSIDE, _head, signal.SIGKILL, (RANK,)),
    ("kill the engine's loop", OUTSIDE, _head, signal.SIGKILL, (CORE,)),
    ("kill the front process", OUTSIDE, _head, signal.SIGKILL, PROGRAM),
    ("kill the follower's program", OUTSIDE, _follower, signal.SIGKILL, PROGRAM),
    ("ask a follower's program to end", "ended", _follower, signal.SIGTERM, PROGRAM),
    ("stop a follower's rank", "stopped", _follower, signal.SIGSTOP, (RANK,)),
    ("stop the head's rank", "stopped", _head, signal.SIGSTOP, (RANK,)),
    ("stop the engine's loop", "stopped", _head, signal.SIGSTOP, (CORE,)),
    ("stop the front process", "stopped", _head, signal.SIGSTOP, PROGRAM),
):
    _kind(_name, _cause)(_signalled(_place, _number, *_words))


def _looped(place: Callable[[Site], str]) -> Callable[[Site, random.Random], str]:
    """Return the fault that has one rank of a place compute without end."""

    def act(site: Site, chance: random.Random) -> str:
        found: Process = chance.choice(site.find(place(site), RANK))
        endless_loop.begin(found.pid)
        return f"{found.command[:40]} on {found.place}"

    return act


_kind("an endless loop in a follower's rank", "without end")(_looped(_follower))
_kind("an endless loop in the head's rank", "without end")(_looped(_head))


def _link_of(site: Site, node: str) -> str:
    """Return the interface of the link between the ranks."""
    workers = site.deployment()["workers"]
    address = next(str(each["link_address"]) for each in workers if each["node"] == node)
    links = site.profile.nodes[node].links.values()
    return str(next(link.interface for link in links if str(link.address) == address))


def _ranks_link_up(site: Site) -> None:
    for node in site.nodes:
        site.run(node, "ip", "link", "set", _link_of(site, node), "up")


@_kind("cut the link between the ranks", "link", "reach", undo=_ranks_link_up)
def _cut_ranks_link(site: Site, _chance: random.Random) -> str:
    node = _follower(site)
    interface = _link_of(site, node)
    site.run(node, "ip", "link", "set", interface, "down")
    return f"{interface} of {node}"


def _restore_ways(site: Site) -> None:
    node = _follower(site)
    site.run(node, "ip", "neigh", "flush", "dev", _link_of(site, node), "nud", "permanent")


@_kind("lose what a rank sends over the link", "link", "reach", undo=_restore_ways)
def _lose_packets(site: Site, _chance: random.Random) -> str:
    """Send a follower's packets to a card that nobody has: the link is up, and nothing arrives."""
    node, head = _follower(site), next(each for each in site.deployment()["workers"] if each["head"])
    interface = _link_of(site, node)
    address, nobody = str(head["link_address"]), "02:00:00:00:00:fe"
    site.run(node, "ip", "neigh", "replace", address, "lladdr", nobody, "dev", interface, "nud", "permanent")
    return f"from {node} to {address}"


# -- what is outlived: daemons


@_kind("kill a sampler")
def _kill_sampler(site: Site, chance: random.Random) -> str:
    return _one(site, chance, chance.choice(site.nodes), signal.SIGKILL, "sampler.py")


def _salt_daemon(site: Site, place: str, number: int, program: str) -> list[Process]:
    found = site.find(place, f"bin/{program}")
    site.signal(found, number)
    return found


@_kind("kill a minion")
def _kill_minion(site: Site, chance: random.Random) -> str:
    node = chance.choice(site.nodes)
    _salt_daemon(site, node, signal.SIGKILL, "salt-minion")
    time.sleep(RESTART_SECONDS)
    operations.restart_salt(site.name, node)
    return node


@_kind("kill the master")
def _kill_master(site: Site, _chance: random.Random) -> str:
    _salt_daemon(site, CONTROL, signal.SIGKILL, "salt-master")
    time.sleep(RESTART_SECONDS)
    operations.restart_salt(site.name, CONTROL)
    return "all of its processes"


@_kind("kill the telemetry engine")
def _kill_engine(site: Site, _chance: random.Random) -> str:
    store = f"{STATE_DIRECTORY}/store.db"
    for each in site.processes(CONTROL):
        with suppress(OSError):
            if any(str(file.readlink()) == store for file in _files(each.pid)):
                site.signal([each], signal.SIGKILL)
                return "the process that has the store"
    raise LabError(f"no process on {CONTROL} has {store} open", "cluster doctor")


def _files(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/fd").iterdir())


@_kind("stop a minion for a while")
def _stop_minion(site: Site, chance: random.Random) -> str:
    node = chance.choice(site.nodes)
    stopped = _salt_daemon(site, node, signal.SIGSTOP, "salt-minion")
    time.sleep(SLOW_SECONDS)
    site.signal(stopped, signal.SIGCONT)
    return node


# -- what is outlived: network and load


@_kind("cut a node from the control node")
def _cut_control(site: Site, chance: random.Random) -> str:
    node = chance.choice(site.nodes)
    interface = str(site.profile.nodes[node].links[site.profile.control.network].interface)
    site.run(node, "ip", "link", "set", interface, "down")
    time.sleep(CUT_SECONDS)
    site.run(node, "ip", "link", "set", interface, "up")
    return f"{interface} of {node}"


@_kind("slow the link between the ranks")
def _slow_link(site: Site, _chance: random.Random) -> str:
    node = _follower(site)
    interface = _link_of(site, node)
    network = next(name for name, link in site.profile.nodes[node].links.items() if str(link.interface) == interface)
    operations.throttle(site.name, network, SLOW_LINK_BYTES_PER_SECOND)
    try:
        time.sleep(SLOW_SECONDS)
    finally:
        operations.throttle(site.name, network, None)
    return network


@_kind("slow a node")
def _slow_node(site: Site, chance: random.Random) -> str:
    node = chance.choice(site.nodes)
    operations.slow(site.name, node, SLOW_CORES)
    try:
        time.sleep(SLOW_SECONDS)
    finally:
        operations.slow(site.name, node, None)
    return f"{node}: {SLOW_CORES:g} cores"


# -- what is outlived: disks and files


@_kind("fill /run of a node")
def _fill_run(site: Site, chance: random.Random) -> str:
    node = chance.choice(site.nodes)
    # Into a file system of its own, so that the machine's memory is not what fills.
    folder = "/run/cluster/telemetry"
    site.run(node, "mount", "-t", "tmpfs", "-o", "size=64k", "full", folder)
    try:
        site.run(node, "sh", "-c", f"head -c 1M /dev/zero > {folder}/filler", check=False)
        time.sleep(SLOW_SECONDS)
    finally:
        site.run(node, "umount", folder)
    return f"{folder} of {node}"


@_kind("damage the store")
def _damage_store(site: Site, chance: random.Random) -> str:
    path = site.path(CONTROL, f"{STATE_DIRECTORY}/store.db")
    with path.open("r+b") as file:
        file.write(chance.randbytes(8192))
    return "the first pages of store.db"


@_kind("damage a sampler's journal")
def _damage_journal(site: Site, chance: random.Random) -> str:
    node = chance.choice(site.nodes)
    folder = site.path(node, f"{STATE_DIRECTORY}/telemetry/spool/spool")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("former-1.000000000001.batches", "former-1.000000000002.open", "noise"):
        (folder / name).write_bytes(chance.randbytes(4096))
    _one(site, chance, node, signal.SIGKILL, "sampler.py")
    return f"{folder.name} of {node}, and its sampler killed"


# -- what is outlived: hostile events


def _send(site: Site, node: str, tag: str, data: str) -> str:
    site.run(node, f"{sys.prefix}/bin/salt-call", "--out=json", "event.send", tag, data, check=False)
    return f"{tag} from {node}"


@_kind("a batch in another node's name")
def _forged_batch(site: Site, chance: random.Random) -> str:
    sender, other = chance.sample(site.nodes, 2)
    data = f'{{"batches": [{{"node": "{other}", "boot": "forged", "sequence": 1, "t0": 1, "t1": 2, "samples": []}}]}}'
    return _send(site, sender, TELEMETRY_TAG + other, data)


@_kind("a batch that is none")
def _odd_batch(site: Site, chance: random.Random) -> str:
    node = chance.choice(site.nodes)
    data = f'{{"batches": [{{"node": "{node}", "boot": "odd", "sequence": 1, "t0": -1e999, "t1": "x"}}, 7, null]}}'
    return _send(site, node, TELEMETRY_TAG + node, data)


@_kind("a batch that is too large")
def _large_batch(site: Site, chance: random.Random) -> str:
    node = chance.choice(site.nodes)
    program = (
        "import sys, salt.config, salt.utils.event as e\n"
        "o = salt.config.minion_config('/etc/salt/minion')\n"
        "with e.MinionEvent(o, listen=False) as bus:\n"
        f"    bus.fire_master({{'batches': [{{'fill': 'x' * 3_000_000}}]}}, {TELEMETRY_TAG + node!r})\n"
    )
    site.run(node, sys.executable, "-c", program, check=False)
    return f"3 MB from {node}"


@_kind("an order in the control node's name")
def _forged_order(site: Site, chance: random.Random) -> str:
    node = chance.choice(site.nodes)
    return _send(site, node, "cluster/worker/exited", f'{{"node": "{node}", "workers": ["x"], "what": "ended"}}')


@_kind("starts that did not happen")
def _forged_starts(site: Site, chance: random.Random) -> str:
    sender, other = chance.sample(site.nodes, 2)
    for _ in range(3):
        _send(site, sender, f"salt/minion/{site.profile.nodes[other].hostname}/start", "{}")
    return f"of {other}, from {sender}"
