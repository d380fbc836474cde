"""Count what is lost and what is stored twice while everything between the samplers and the store is broken in turn.

    python bench/telemetry_loss.py [--nodes 2] [--rate 1000] [--outage 60] [--settle 20] [--json | --write]

A real master with the telemetry engine, real minions and the samplers themselves, in namespaces of their own that end
with the command. Every sample is numbered when it is taken, and the number kept in a file of the bench: so what was
measured is known whatever becomes of the sampler. In the same run each node also fires one plain event a second with as
many numbers on the same bus, as `event.send` does, and what arrives of those is counted beside it. Faults: the master
is away, the network is cut, the store's disk is full, both clocks are set, and master, engine, minion and sampler are
killed (kill -9). Needs root, nft; about eight times `--outage`. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "bench")]

from loss_cluster import Cluster, Listener, listens, say, wait_for  # noqa: E402 (the folder of benches is no package)

INSIDE = "CLUSTER_LOSS_INSIDE"
PAGE = REPOSITORY / "doc" / "reference" / "telemetry-loss.md"


@contextlib.contextmanager
def cut() -> Iterator[None]:
    """Drop everything between master and nodes."""
    rules = """table inet loss {
        chain input {
            type filter hook input priority 0
            tcp dport { 4505, 4506, 9477 } drop
            tcp sport { 4505, 4506, 9477 } drop
        }
    }
    """
    subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "loss"], check=True)


@contextlib.contextmanager
def full(cluster: Cluster) -> Iterator[None]:
    """Fill the disk of the store."""
    filler = cluster.state / "filler"
    try:
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        yield
    finally:
        filler.unlink(missing_ok=True)


def faults(cluster: Cluster, outage: float) -> dict[str, Callable[[], None]]:
    """Return what is done, by name, one after the other."""
    first = cluster.names[0]

    def away() -> None:
        cluster.kill("master", signal.SIGTERM)
        time.sleep(outage)
        cluster.start("master")

    def severed() -> None:
        with cut():
            time.sleep(outage)

    def killed(what: str) -> Callable[[], None]:
        def kill() -> None:
            cluster.kill(what)
            time.sleep(2.0)
            cluster.start(what)

        return kill

    def filled() -> None:
        with full(cluster):
            time.sleep(outage)

    def set_by(name: str, seconds: float) -> Callable[[], None]:
        def change() -> None:
            cluster.set_clock(name, seconds)
            time.sleep(outage / 2)
            cluster.set_clock(name, 0.0)

        return change

    return {
        "nothing": lambda: time.sleep(outage / 2),
        f"master away {outage:.0f} s": away,
        f"network cut {outage:.0f} s": severed,
        "kill -9 master": killed("master"),
        "kill -9 engine": cluster.kill_engine,
        "kill -9 minion": killed(f"minion-{first}"),
        "kill -9 sampler": killed(f"sampler-{first}"),
        f"store's disk full {outage:.0f} s": filled,
        "node's clock a day ahead": set_by(first, 86_400.0),
        "node's clock an hour back": set_by(first, -3600.0),
        "control clock an hour back": set_by("master", -3600.0),
        "control clock an hour ahead": set_by("master", 3600.0),
    }


def stored(cluster: Cluster) -> dict[str, list[int]]:
    """Return the numbers of the samples in the store, by node."""
    from bottleneck.telemetry.store import Store

    found: dict[str, list[int]] = {name: [] for name in cluster.names}
    with Store(cluster.state / "store.db") as store:
        for batch in store.batches(0.0, 1e12):
            found[batch["node"]] += [sample["n"] for sample in batch["samples"]]
    return found


def measure(nodes: int, rate: int, outage: float, settle: float) -> dict[str, Any]:
    """Run all faults; return what was taken, stored, lost and doubled, by fault and node, and of plain events."""
    with tempfile.TemporaryDirectory(prefix="cl-", dir="/tmp", ignore_cleanup_errors=True) as name:
        cluster = Cluster(Path(name), nodes, rate)
        try:
            return _measure(cluster, outage, settle)
        finally:
            for what in list(cluster.processes):
                cluster.kill(what)
            # Lazily: a process that was killed a moment ago may still hold it.
            subprocess.run(["umount", "--lazy", cluster.state], check=False)


def _measure(cluster: Cluster, outage: float, settle: float) -> dict[str, Any]:
    cluster.configure()
    cluster.start("master")
    if not wait_for(lambda: listens(cluster.port), 120.0, "the telemetry engine"):
        sys.exit((cluster.folder / "master.log").read_text()[-2000:])
    listener = Listener(cluster)
    listener.start()
    for name in cluster.names:
        cluster.start(f"minion-{name}")
    for name in cluster.names:
        cluster.start(f"sampler-{name}")
        cluster.begun(name, 120.0)
        cluster.start(f"plain-{name}")
    spans: list[tuple[str, int, int]] = []
    for title, act in faults(cluster, outage).items():
        say(title)
        began = time.monotonic_ns()
        act()
        wait_for(lambda: listens(cluster.port), 60.0, "the telemetry engine")
        time.sleep(settle)
        spans.append((title, began, time.monotonic_ns()))
    say("the samplers end; what they keep is still sent")
    for name in cluster.names:
        cluster.kill(f"plain-{name}")
    for name in cluster.names:
        cluster.caught_up(name, 10 * outage + 120)
        cluster.kill(f"sampler-{name}", signal.SIGTERM)
    time.sleep(settle)
    for name in cluster.names:  # the last batches of a life that ended go out with the next one's
        cluster.start(f"sampler-{name}")
    time.sleep(3 * settle)
    end = spans[-1][2]
    for name in cluster.names:
        cluster.kill(f"sampler-{name}", signal.SIGTERM)
    time.sleep(settle)
    listener.ending = True
    listener.join(10)
    found = stored(cluster)
    rows = [_row(cluster, found, listener, title, low, high) for title, low, high in spans]
    whole = _row(cluster, found, listener, "all", spans[0][1], end)
    settings = {"nodes": len(cluster.names), "rate_hertz": cluster.rate, "outage_seconds": outage}
    return {**settings, "faults": rows, "all": whole}


def _row(
    cluster: Cluster, found: dict[str, list[int]], listener: Listener, title: str, low: int, high: int
) -> dict[str, Any]:
    counts: collections.Counter[str] = collections.Counter()
    for name in cluster.names:
        taken = {each for each in cluster.taken(name) if low <= each < high}
        kept = collections.Counter(each for each in found[name] if low <= each < high)
        sent = {each for each in cluster.taken(name, "sent") if low <= each < high}
        hostname = cluster.profile.nodes[name].hostname
        arrived = collections.Counter(each for each in listener.arrived[hostname] if low <= each < high)
        counts["taken"] += len(taken)
        counts["lost"] += len(taken - set(kept))
        counts["twice"] += sum(count - 1 for count in kept.values())
        counts["plain_sent"] += len(sent)
        counts["plain_lost"] += len(sent - set(arrived))
        counts["plain_twice"] += sum(count - 1 for count in arrived.values())
    names = ("taken", "lost", "twice", "plain_sent", "plain_lost", "plain_twice")
    return {"fault": title, **{each: counts[each] for each in names}}


def page(document: dict[str, Any], command: str) -> str:
    """Return the page of the reference: the command and its table."""
    rows = [*document["faults"], {**document["all"], "fault": "**all**"}]
    cells = [
        f"| {row['fault']} | {row['taken']:,} | {row['lost']:,} | {row['twice']:,} "
        f"| {row['plain_sent']:,} | {row['plain_lost']:,} | {row['plain_twice']:,} |"
        for row in rows
    ]
    nodes = "one node" if document["nodes"] == 1 else f"{document['nodes']} nodes"
    return "\n".join(
        [
            "# What telemetry loses",
            "",
            "Samples on their way from the nodes to the store while everything between the two is broken in turn,",
            "beside plain events on the same bus: how many were taken, how many were not in the store at the end, and",
            "how many were in it twice.",
            "",
            "```",
            command,
            "```",
            "",
            f"Run on {time.strftime('%Y-%m-%d')}: {nodes}, {document['rate_hertz']} samples a second asked of each, a",
            "real master, real minions, the samplers themselves;",
            f"outages of {document['outage_seconds']:g} s. A plain event has the numbers of one second, and counts as",
            "sent when `event.send` says so, as lost when a listener on the master's bus, which connects again by",
            "itself, did not get it: after a restart of the master that listener may take a while, and its losses are",
            "counted, too. What makes the difference: numbered batches, a journal on the node, and acknowledgement",
            "after the store has them ([data flow](../explanation/data-flow.md)).",
            "",
            "| fault | samples taken | lost | twice | plain: sent | lost | twice |",
            "|---|---|---|---|---|---|---|",
            *cells,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, choices=(1, 2), default=2)
    parser.add_argument("--rate", type=int, default=1000, help="samples a second and node")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds that each outage lasts")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds after each fault")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on standard output")
    parser.add_argument("--write", action="store_true", help="write doc/reference/telemetry-loss.md")
    options = parser.parse_args()
    if INSIDE not in os.environ:
        # Whatever is started, mounted or dropped in here ends with it.
        inside = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        # In place of this process, so that a signal to it ends all of that, too.
        os.execvpe(inside[0], [*inside, sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    document = measure(options.nodes, options.rate, options.outage, options.settle)
    if options.json:
        print(json.dumps({"schema": 1, **document}, indent=1))
    if options.write:
        command = f"python bench/telemetry_loss.py {shlex.join(sys.argv[1:])}"
        PAGE.write_text(page(document, command), encoding="utf-8")
    if options.json or options.write:
        return
    columns = list(document["all"])
    for row in (dict(zip(columns, columns, strict=True)), *document["faults"], document["all"]):
        print("  ".join(str(row[each]).rjust(30 if each == "fault" else 11) for each in columns))


if __name__ == "__main__":
    main()
