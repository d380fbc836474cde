"""Count what is lost and what is stored twice while everything between the samplers and the store is broken in turn.

    python bench/telemetry_loss.py [--nodes 2] [--rate 1000] [--outage 60] [--settle 20] [--json]

A real master with the telemetry engine, real minions and the samplers themselves, in namespaces of their own that end
with the command. Every sample is numbered when it is taken, and the number kept in a file of the bench: so what was
measured is known whatever becomes of the sampler. In the same run each node also fires one plain event a second with as
many numbers on the same bus, as `event.send` does, and what arrives of those is counted beside it. Faults: the master
is away, the network is cut, the store's disk is full, both clocks are set, and master, engine, minion and sampler are
killed (kill -9). Needs root, nft; about ten times `--outage`. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import mmap
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

INSIDE = "CLUSTER_LOSS_INSIDE"
CLOCK = "CLUSTER_LOSS_CLOCK"
PLAIN_TAG = "bench/plain/"
PROGRAMS = Path(sys.executable).parent
STORE_MEGABYTES = 512
# Run by each process under test when it begins.
SET_CLOCK = f"""
import sys
sys.path.insert(1, {str(REPOSITORY / "bench")!r})
import telemetry_loss
telemetry_loss.believe_the_bench()
"""


def believe_the_bench() -> None:
    """Have this process take the bench's word for how far its clock is set; the machine's own is everybody's."""
    with Path(os.environ[CLOCK]).open("rb") as file:
        offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    real = time.time
    time.time = lambda: real() + struct.unpack_from("<d", offset)[0]


# -- what runs on a node


def sampler(config: str, numbers: str) -> None:
    """Run the sampler as it is, with a number in every sample that is written down the moment it is taken."""
    believe_the_bench()
    folder = REPOSITORY / "salt" / "sampler" / "files"
    sys.path.insert(0, str(folder))
    import machine

    taken = open(numbers, "ab", buffering=0)  # noqa: PTH123, SIM115 (open for as long as this lives)

    waiting: collections.deque[int] = collections.deque()

    class Numbered(machine.Machine):
        def read(self, now: float, complete: bool) -> Any:
            number = time.monotonic_ns()
            waiting.append(number)
            taken.write(struct.pack("<q", number))
            return super().read(now, complete)

        def parse(self, readings: Any) -> list[dict[str, Any]]:
            return [{**sample, "n": waiting.popleft()} for sample in super().parse(readings)]

    machine.Machine = Numbered  # type: ignore[misc]
    sys.argv = [str(folder / "sampler.py"), config]
    runpy.run_path(sys.argv[0], run_name="__main__")


def plain(config: str, numbers: str, rate: int) -> None:
    """Fire one event a second with the numbers of that second's samples, as `event.send` does, and keep those sent."""
    import salt.config
    import salt.utils.event

    options = salt.config.minion_config(str(Path(config) / "minion"))
    with Path(numbers).open("ab", buffering=0) as sent:
        while True:
            time.sleep(1.0 - time.monotonic() % 1.0)
            found = [time.monotonic_ns() + each for each in range(rate)]
            with contextlib.suppress(Exception), salt.utils.event.MinionEvent(options, listen=False) as bus:
                if bus.fire_master({"n": found}, PLAIN_TAG + options["id"]):
                    sent.write(struct.pack(f"<{rate}q", *found))


# -- the run


class Cluster:
    """The master, the minions and what runs beside them; what is killed is started again, as systemd would."""

    def __init__(self, folder: Path, nodes: int, rate: int) -> None:
        import yaml

        from bottleneck.profile import load_profile
        from tests import run_builder

        self.folder, self.rate, self.marker = folder, rate, f"{folder}"
        self.names = list(run_builder.NODES)[:nodes]
        described = yaml.safe_load(run_builder.PROFILE.read_text())
        described["sampler"] |= {"rate": f"{rate} Hz", "send_interval": "2 s", "acknowledge_interval": "4 s"}
        section = "telemetry" if "telemetry" in described else "perf"
        described[section] |= {"window": "15 s", "heartbeat_deadline": "5 s"}
        (folder / "profile.yaml").write_text(yaml.safe_dump(described))
        self.profile = load_profile(folder / "profile.yaml")
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SET_CLOCK)
        self.state = folder / "state"
        self.state.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={STORE_MEGABYTES}m", "loss", self.state], check=True)
        self.port = 9477
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.clocks = {name: self._clock(name) for name in ("master", *self.names)}

    def _clock(self, name: str) -> mmap.mmap:
        path = self.folder / f"{name}.clock"
        path.write_bytes(struct.pack("<d", 0.0))
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), 8)

    def set_clock(self, name: str, seconds: float) -> None:
        struct.pack_into("<d", self.clocks[name], 0, seconds)

    def configure(self) -> None:
        from bench.enrolment import configured

        master = {
            "interface": "127.0.0.1",
            "auto_accept": True,
            "worker_threads": 2,
            "module_dirs": [str(REPOSITORY)],
            "cluster_profile": str(self.folder / "profile.yaml"),
            "cluster_store": str(self.state / "store.db"),
            "cluster_directory": str(self.state),
            "engines": [{"telemetry": {"address": "127.0.0.1", "port": self.port}}],
        }
        configured(self.folder, "master", master)
        for name in self.names:
            (self.folder / name).mkdir()
            minion = {
                "id": self.profile.nodes[name].hostname,
                "master": "127.0.0.1",
                "acceptance_wait_time": 1,
                "random_reauth_delay": 1,
                "recon_default": 100,
                "recon_max": 1000,
                "recon_randomize": False,
                "module_dirs": [str(REPOSITORY)],
                "cluster_telemetry_directory": str(self.folder / name / "telemetry"),
            }
            configured(self.folder / name, "minion", minion)
            settings = {
                "node": name,
                "links": {"ethernet": ["lo"]},
                "control": {"address": "127.0.0.1", "port": self.port},
                "minion": {"id": minion["id"], "sock_dir": str(self.folder / name / "minion" / "run")},
                "directory": str(self.folder / name / "telemetry"),
                "spool_directory": str(self.folder / name / "spool"),
                "worker_file": str(self.folder / name / "worker.json"),
                "supervise_directory": str(self.folder / name / "supervise"),
                **self.profile.sampler.model_dump(mode="json"),
            }
            (self.folder / name / "sampler.json").write_text(json.dumps(settings))

    def start(self, what: str) -> None:
        kind, _, name = what.partition("-")
        folder = self.folder / name
        programs: dict[str, list[str]] = {
            "master": [str(PROGRAMS / "salt-master"), f"--config-dir={self.folder / 'master'}", "--log-level=warning"],
            "minion": [str(PROGRAMS / "salt-minion"), f"--config-dir={folder / 'minion'}", "--log-level=warning"],
            "sampler": [sys.executable, __file__, "sampler", str(folder / "sampler.json"), str(folder / "taken")],
            "plain": [sys.executable, __file__, "plain", str(folder / "minion"), str(folder / "sent"), str(self.rate)],
        }
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        if kind in ("master", "sampler"):
            environment[CLOCK] = str(self.folder / f"{name or 'master'}.clock")
        if kind == "master":
            environment["PYTHONPATH"] = f"{self.folder / 'site'}:{REPOSITORY}"
        with (self.folder / f"{what}.log").open("ab") as log:
            self.processes[what] = subprocess.Popen(
                programs[kind],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, what: str, number: int = signal.SIGKILL) -> None:
        """End a daemon and all of its processes: they are one session."""
        process = self.processes.pop(what)
        if number != signal.SIGKILL:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        ended = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                session = int((entry / "stat").read_text().rpartition(")")[2].split()[3])
                if entry.name.isdigit() and session == process.pid:
                    os.kill(int(entry.name), signal.SIGKILL)
                    ended.append(int(entry.name))
        process.wait()
        # This is the first process of its namespace: what it does not reap still looks alive to Salt, which then does
        # not start a second minion beside it.
        for pid in ended:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def kill_engine(self) -> None:
        """Kill the process of the master that holds the store; the master starts it again."""
        wait_for(self._kill_engine, 60.0, "a process that holds the store")

    def _kill_engine(self) -> bool:
        store = self.state / "store.db"
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if any(each.readlink() == store for each in (entry / "fd").iterdir()):
                    os.kill(int(entry.name), signal.SIGKILL)
                    return True
        return False

    def status(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self.folder / name / "telemetry" / "status.json").read_text())
            return found
        return {}

    def begun(self, name: str, seconds: float) -> None:
        """Wait until something of a node is stored and acknowledged."""
        wait_for(lambda: self.status(name).get("acknowledged", 0) > 0, seconds, f"{name}'s samples")

    def caught_up(self, name: str, seconds: float) -> None:
        """Wait until a node keeps no more than what it has just taken."""
        wait_for(lambda: self.status(name).get("waiting", 99) <= 8, seconds, f"{name}'s backlog")

    def taken(self, name: str, what: str = "taken") -> list[int]:
        path = self.folder / name / what
        content = path.read_bytes() if path.exists() else b""
        return [number for (number,) in struct.iter_unpack("<q", content[: len(content) // 8 * 8])]


class Listener(threading.Thread):
    """Counts the plain events that come over the master's bus."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.arrived: dict[str, list[int]] = collections.defaultdict(list)
        self.ending = False
        self._cluster = cluster

    def run(self) -> None:
        import salt.config
        import salt.utils.event

        options = salt.config.master_config(str(self._cluster.folder / "master" / "master"))
        while not self.ending:
            with (
                contextlib.suppress(Exception),
                salt.utils.event.get_master_event(options, options["sock_dir"], listen=True) as bus,
            ):
                while not self.ending:
                    event = bus.get_event(wait=1, tag=PLAIN_TAG, full=True, auto_reconnect=True)
                    if event:
                        self.arrived[event["tag"].removeprefix(PLAIN_TAG)] += event["data"]["data"]["n"]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


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


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            say(f"{what}: not within {seconds:.0f} s")
            return False
        time.sleep(0.5)
    return True


def stored(cluster: Cluster) -> dict[str, list[int]]:
    """Return the numbers of the samples in the store, by node."""
    from bottleneck.telemetry.store import Store

    found: dict[str, list[int]] = {name: [] for name in cluster.names}
    with Store(cluster.state / "store.db") as store:
        for batch in store.batches(0.0, 1e12):
            found[batch["node"]] += [sample["n"] for sample in batch["samples"]]
    return found


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, choices=(1, 2), default=2)
    parser.add_argument("--rate", type=int, default=1000, help="samples a second and node")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds that each outage lasts")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds after each fault")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on standard output")
    options = parser.parse_args()
    if INSIDE not in os.environ:
        # Whatever is started, mounted or dropped in here ends with it.
        inside = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        sys.exit(subprocess.run([*inside, sys.executable, *sys.argv], env={**os.environ, INSIDE: "1"}).returncode)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    document = measure(options.nodes, options.rate, options.outage, options.settle)
    if options.json:
        print(json.dumps({"schema": 1, **document}, indent=1))
        return
    columns = list(document["all"])
    for row in (dict(zip(columns, columns, strict=True)), *document["faults"], document["all"]):
        print("  ".join(str(row[each]).rjust(30 if each == "fault" else 11) for each in columns))


if __name__ == "__main__":
    if sys.argv[1:2] == ["sampler"]:
        sampler(*sys.argv[2:4])
    elif sys.argv[1:2] == ["plain"]:
        plain(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
