"""Measure how many samples a second the control node takes, over how many nodes send them.

    python bench/ingest_curve.py [--nodes 2,8,32,128,256] [--samples 400] [--seconds 10] [--json | --write]

A real master with the telemetry engine; nodes are simulated, each with its minion's key, its own node key and its own
connection to the master, through which it sends what a sampler sends: sealed batches as minion events, the next one as
soon as the master has taken the last. So the master's workers, its event bus, the engine's checks and windows and the
store on disk are all in it, and the senders' own work is, too, on a machine that has no more cores. What counts is what
is in the store at the end, over the time until it was; what the bus dropped is counted beside it. Root; in namespaces
of their own that end with the command. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "bench")]

from loss_cluster import listens, say, wait_for  # noqa: E402 (the folder of benches is no package)

INSIDE = "CLUSTER_INGEST_INSIDE"
PAGE = REPOSITORY / "doc" / "reference" / "telemetry-ingest.md"
PROGRAMS = Path(sys.executable).parent
PORT = 9477
START_SECONDS, SETTLE_SECONDS = 120.0, 60.0
# Senders of one process: requests wait for the master most of the time.
THREADS = 4
# As the sampler of a node with two cores and two links sends it; the slow part comes once a second.
SLOW = {
    "psi": {"memory": [0.0, 0.0], "io": [6.286311, 6.228756], "cpu": [5.221261, 0.0]},
    "mem": {"total": 33554432000, "available": 30064771072},
    "disk": {"read_bytes": 6133657600, "write_bytes": 4136984576},
}
FAST = {
    "cpu": {"0": [99.45, 90.74, 8.71, 1410.99, 0.11, 0.97], "1": [48.31, 34.81, 13.5, 1463.15, 0.0, 0.96]},
    "links": {
        "ethernet": [255556679, 260080197, 211291, 217521, 0, 0, 0, 0],
        "direct": [27018240813, 27887089051, 1294758, 1303650, 0, 0, 0, 0],
    },
    "cgroup": {"throttled_s": 0.0, "periods": 0, "throttled_periods": 0, "quota_cores": None},
    "workers": {"tp2-0": {"cpu_user_s": 127.05, "cpu_system_s": 25.84, "run_delay_s": 0.11, "processes": 3}},
}


def node_name(number: int) -> str:
    return f"node{number}"


def configure(folder: Path, nodes: int) -> None:
    """Write the profile of so many nodes and the master's configuration."""
    import yaml

    from bench.enrolment import configured
    from bottleneck.profile import load_profile
    from tests import run_builder

    text = run_builder.PROFILE.read_text().replace("10.77.0.", "10.76.200.")
    described = yaml.safe_load(text)
    described["networks"]["ethernet"]["subnet"] = "10.76.0.0/16"
    for number in range(2, nodes):
        high, low = divmod(number, 100)
        link = {
            "interface": "eth0",
            "mac": f"02:76:00:00:{high:02x}:{low:02x}",
            "address": f"10.76.{high}.{100 + low}",
        }
        described["nodes"][node_name(number)] = {
            **described["nodes"]["node0"],
            "hostname": node_name(number),
            "links": {"ethernet": link},
        }
    (folder / "profile.yaml").write_text(yaml.safe_dump(described))
    load_profile(folder / "profile.yaml")
    (folder / "state").mkdir()
    master = {
        "interface": "127.0.0.1",
        "auto_accept": True,
        "worker_threads": 2,
        "module_dirs": [str(REPOSITORY)],
        "cluster_profile": str(folder / "profile.yaml"),
        "cluster_store": str(folder / "state" / "store.db"),
        "cluster_directory": str(folder / "state"),
        "engines": [{"telemetry": {"address": "127.0.0.1", "port": PORT}}],
    }
    configured(folder, "master", master)


class Node:
    """One simulated node: its connection to the master and the batches that it sends."""

    def __init__(self, folder: Path, number: int, samples: int) -> None:
        import salt.channel.client
        import salt.config

        from control import node_keys

        self.name = node_name(number)
        own = folder / "nodes" / self.name
        own.mkdir(parents=True)
        settings = {
            "id": self.name,
            "master": "127.0.0.1",
            "master_ip": "127.0.0.1",
            "master_uri": "tcp://127.0.0.1:4506",
            "__role": "minion",
            "root_dir": str(own),
            "pki_dir": str(own / "pki"),
            "cachedir": str(own / "cache"),
            "sock_dir": str(own / "run"),
            "log_file": str(own / "log"),
            "keysize": 2048,
        }
        self._options = {**salt.config.DEFAULT_MINION_OPTS.copy(), **settings}
        (own / "pki").mkdir()
        self._key = node_keys.key_of({"cluster_directory": folder / "state"}, self.name)
        self._samples = samples
        self._sequence = 0
        self._boot = f"{self.name}-{time.time_ns()}"
        self._channel = salt.channel.client.ReqChannel.factory(self._options, crypt="aes")
        self.sent = 0

    def send(self) -> None:
        """Send the next batch and wait until the master has taken it."""
        from bottleneck import node_seal

        self._sequence += 1
        end = time.time()
        step = 1.0 / self._samples
        moments = [end - 1.0 + step * number for number in range(self._samples)]
        batch = {
            "node": self.name,
            "boot": self._boot,
            "sequence": self._sequence,
            "t0": moments[0],
            "t1": moments[-1],
            "samples": [{"t": moments[0], **SLOW, **FAST}, *({"t": moment, **FAST} for moment in moments[1:])],
        }
        text = json.dumps([batch], separators=(",", ":"))
        seal = node_seal.seal(self._key, node_seal.BATCHES, self.name, text)
        self._channel.send(
            {
                "id": self.name,
                "cmd": "_minion_event",
                "pretag": None,
                "tok": self._channel.auth.gen_token(b"salt"),
                "tag": f"cluster/telemetry/batch/{self.name}",
                "data": {"text": text, "seal": seal},
            },
            timeout=30,
        )
        self.sent += self._samples


def send_all(nodes: list[Node], seconds: float) -> None:
    """Have nodes send by turns, a few at a time, for so long."""
    end = time.monotonic() + seconds

    def work(own: list[Node]) -> None:
        while True:
            for node in own:
                if time.monotonic() > end:
                    return
                node.send()

    threads = [threading.Thread(target=work, args=(nodes[first::THREADS],)) for first in range(THREADS)]
    for thread in (each for each, first in zip(threads, range(THREADS), strict=True) if nodes[first::THREADS]):
        thread.start()
    for thread in threads:
        if thread.ident is not None:
            thread.join()


def stored(folder: Path) -> int:
    """Return how many batches are in the store, without a core's time for reading them."""
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'state' / 'store.db'}?mode=ro", uri=True)) as store:
        (found,) = store.execute("SELECT count(*) FROM batches").fetchone()
    return int(found)


def measure(counts: list[int], samples: int, seconds: float) -> list[dict[str, Any]]:
    """Measure each number of nodes in turn, with the same master; return a row for each."""
    with tempfile.TemporaryDirectory(prefix="ci-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        configure(folder, max(counts))
        argv = [str(PROGRAMS / "salt-master"), f"--config-dir={folder / 'master'}", "--log-level=warning"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
        with (folder / "master.log").open("ab") as log:
            master = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            if not wait_for(lambda: listens(PORT), START_SECONDS, "the telemetry engine"):
                sys.exit((folder / "master.log").read_text()[-2000:])
            nodes: list[Node] = []
            rows = []
            for count in counts:
                say(f"{count} nodes")
                while len(nodes) < count:
                    node = Node(folder, len(nodes), samples)
                    # The first one is signed in by it.
                    node.send()
                    nodes.append(node)
                rows.append(_measured(folder, nodes, samples, seconds))
                say(f"{count} nodes: {rows[-1]['samples_per_second']:,.0f} samples/s")
            return rows
        finally:
            master.terminate()
            master.wait(20)


def _measured(folder: Path, nodes: list[Node], samples: int, seconds: float) -> dict[str, Any]:
    time.sleep(2.0)
    before_stored, before_sent = stored(folder), sum(node.sent for node in nodes)
    began = time.monotonic()
    send_all(nodes, seconds)
    sent = sum(node.sent for node in nodes) - before_sent
    found, last = samples * (stored(folder) - before_stored), time.monotonic()
    end = last + SETTLE_SECONDS
    while found < sent and time.monotonic() < end:
        time.sleep(0.1)
        now = samples * (stored(folder) - before_stored)
        if now > found:
            found, last = now, time.monotonic()
        elif time.monotonic() - last > 5.0:
            break
    return {
        "nodes": len(nodes),
        "samples_per_batch": samples,
        "sent": sent,
        "stored": found,
        "seconds": round(last - began, 2),
        "samples_per_second": round(found / (last - began), 1),
        "batches_per_second": round(found / samples / (last - began), 1),
    }


def page(rows: list[dict[str, Any]], command: str) -> str:
    """Return the page of the reference: the command and its table."""
    cells = [
        f"| {row['nodes']} | {row['sent']:,} | {row['stored']:,} | {row['batches_per_second']:,.0f} "
        f"| {row['samples_per_second']:,.0f} |"
        for row in rows
    ]
    return "\n".join(
        [
            "# How much telemetry the control node takes",
            "",
            "Samples a second that came from simulated nodes through the master into the store, over how many nodes",
            "sent them. Each has its own keys and connection, and sends its next batch as soon as the last is taken.",
            "",
            "```",
            command,
            "```",
            "",
            f"Run on {time.strftime('%Y-%m-%d')}: {os.cpu_count()} cores, which the senders share with the master and",
            f"the engine; {rows[0]['samples_per_batch']} samples a batch. A node may send 50 batches a second, which",
            "bounds what two nodes can.",
            "",
            "| nodes | samples sent | stored | batches/s | samples/s |",
            "|---|---|---|---|---|",
            *cells,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", default="2,8,32,128,256", help="numbers of nodes, by commas")
    parser.add_argument("--samples", type=int, default=400, help="samples of a batch")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each number of nodes sends")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on standard output")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(REPOSITORY)}")
    options = parser.parse_args()
    counts = sorted({int(each) for each in options.nodes.split(",")})
    if counts[0] < 1:
        parser.error(f"--nodes {options.nodes}: expected numbers from 1")
    if INSIDE not in os.environ:
        inside = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvpe(inside[0], [*inside, sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    rows = measure(counts, options.samples, options.seconds)
    if options.json:
        print(json.dumps({"schema": 1, "rows": rows}, indent=1))
    if options.write:
        PAGE.write_text(page(rows, f"python bench/ingest_curve.py {shlex.join(sys.argv[1:])}".strip()))
    if not options.json and not options.write:
        for row in rows:
            print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
