"""Real master, minion and sampler: what was measured is stored once and whole, whatever the master does."""

import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import salt._logging
import salt.channel.client
import salt.client
import salt.config
import salt.utils.event
import yaml
from saltfactories.utils import random_string

from bottleneck.plan.master import reactor_entries
from bottleneck.telemetry.store import Store
from control import node_keys, refused_answers, sealed_answers
from tests import hostile, run_builder, sealing
from tests.by_file import load
from tests.waiting import free_port, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

REPOSITORY = Path(__file__).parents[2]
SAMPLER = REPOSITORY / "salt/sampler/files/sampler.py"
FAR = 1e12


@pytest.fixture(scope="session")
def salt_factories_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    return {
        "root_dir": str(tmp_path_factory.mktemp("salt")),
        "start_timeout": 60,
        "system_service": False,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("telemetry")


@pytest.fixture(scope="module")
def profile(folder: Path) -> Path:
    """The embedded profile with everything a little faster, and every path here."""
    described = yaml.safe_load(run_builder.PROFILE.read_text())
    described["sampler"] |= {"send_interval": "1 s", "acknowledge_interval": "1 s", "engine_interval": "1 s"}
    described["telemetry"] |= {"window": "3 s", "heartbeat_deadline": "2 s"}
    path = folder / "embedded.yaml"
    path.write_text(yaml.safe_dump(described))
    return path


@pytest.fixture(scope="module")
def exporter_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def master(salt_factories: Any, folder: Path, profile: Path, exporter_port: int) -> Iterator[Any]:
    started = salt_factories.salt_master_daemon(
        random_string("master-"),
        defaults={
            "interface": "127.0.0.1",
            "user": "root",
            "worker_threads": 2,
            "module_dirs": [str(REPOSITORY)],
            "file_roots": {"base": [str(REPOSITORY / "salt")]},
            "pillar_roots": {"base": [str(REPOSITORY / "pillar")]},
            "cluster_profile": str(profile),
            "cluster_store": str(folder / "store.db"),
            "cluster_directory": str(folder),
            "engines": [{"telemetry": {"address": "127.0.0.1", "port": exporter_port}}],
            "reactor": [entry for entry in reactor_entries(REPOSITORY) if next(iter(entry)).startswith("cluster/")],
        },
    )
    with started.started():
        yield started


@pytest.fixture(scope="module")
def minion(master: Any, folder: Path) -> Iterator[Any]:
    started = master.salt_minion_daemon(
        "node0",
        defaults={
            "user": "root",
            "module_dirs": [str(REPOSITORY)],
            "enable_fqdns_grains": False,
            "enable_gpu_grains": False,
            "acceptance_wait_time": 1,
            "random_reauth_delay": 1,
            "recon_default": 100,
            "recon_max": 1000,
            "recon_randomize": False,
            "cluster_telemetry_directory": str(folder / "telemetry"),
            "cluster_node_key": str(folder / "node.key"),
        },
    )
    with started.started():
        # As the first apply does; from here on the node seals what it sends.
        assert sealed_answers.introduce(options(master), client(master), ["node0"], 60) == {"node0"}
        yield started


def options(master: Any) -> dict[str, Any]:
    """Return the master's options as its runners have them; those of the factory cannot be changed by Salt's client."""
    found: dict[str, Any] = salt.config.master_config(master.config["conf_file"])
    return found


def client(master: Any) -> salt.client.LocalClient:
    return salt.client.LocalClient(mopts=options(master))


class Impostor:
    """The second node of the cluster, taken over: accepted, and with every word of the protocol."""

    def __init__(self, folder: Path, master: Any) -> None:
        pki = folder / "node1" / "pki"
        pki.mkdir(parents=True)
        private, public = hostile.key_pair()
        (pki / "minion.pem").write_text(private)
        (pki / "minion.pub").write_text(public)
        (Path(master.config["pki_dir"]) / "minions" / "node1").write_text(public)
        options: dict[str, Any] = salt.config.minion_config(None, minion_id="node1")
        port = master.config["ret_port"]
        # Salt's options are no plain dict.
        options.update({"id": "node1", "pki_dir": str(pki), "root_dir": str(folder / "node1"), "user": "root"})
        options.update({"cachedir": str(folder / "node1"), "sock_dir": str(folder / "node1")})
        options.update({"master_ip": "127.0.0.1", "master_port": port, "master_uri": f"tcp://127.0.0.1:{port}"})
        self._channel = salt.channel.client.ReqChannel.factory(options)

    def send(self, command: str, **load: Any) -> None:
        self._channel.send({"cmd": command, "id": "node1", **load})

    def answers(self, jid: str, function: str, returned: Any) -> None:
        """Answer for node0, in both ways that Salt lets through."""
        load = {"jid": jid, "fun": function, "fun_args": [], "return": returned, "retcode": 0, "success": True}
        self.send("_return", resource_id="node0", **load)
        self.send("_minion_event", events=[{"tag": f"salt/job/{jid}/ret/node0", "data": {"id": "node0", **load}}])


@pytest.fixture(scope="module")
def impostor(folder: Path, master: Any, minion: Any) -> Impostor:
    return Impostor(folder, master)


@pytest.fixture
def store(folder: Path, master: Any) -> Iterator[Store]:
    with Store(folder / "store.db") as opened:
        yield opened


class Sampling:
    """A sampler beside the minion, and what it says of itself."""

    def __init__(self, folder: Path, minion: Any, port: int | None) -> None:
        self.folder = folder
        config = {
            "node": "node0",
            "links": {"ethernet": ["lo"]},
            "control": {"address": "127.0.0.1", "port": port} if port else None,
            "minion": {"id": "node0", "sock_dir": minion.config["sock_dir"]},
            "directory": str(folder / "telemetry"),
            "key_file": str(folder / "node.key"),
            "worker_file": str(folder / "worker.json"),
            "supervise_directory": str(folder / "supervise"),
            "rate_hertz": 10,
            "batch_interval_seconds": 0.5,
            "send_interval_seconds": 1,
            "engine_interval_seconds": 1,
            "acknowledge_interval_seconds": 1,
            "spool_batches": 600,
            "spool_bytes": 2**28,
            "spool_directory": str(folder / "kept"),
        }
        path = folder / "sampler.json"
        path.write_text(json.dumps(config))
        (folder / "telemetry" / "status.json").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, str(SAMPLER), str(path)],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stderr=(folder / "sampler.log").open("wb"),
        )
        self.boot = wait_for(lambda: self.status().get("boot"))

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "telemetry" / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0


@pytest.fixture
def sampling(folder: Path, minion: Any, exporter_port: int) -> Iterator[Sampling]:
    running = Sampling(folder, minion, exporter_port)
    yield running
    if running.process.poll() is None:
        running.stop()


def sequences(store: Store, boot: str) -> list[int]:
    return sorted(batch["sequence"] for batch in store.batches(0.0, FAR) if batch["boot"] == boot)


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_batches_survive_a_restart_of_the_master(
    sampling: Sampling, master: Any, store: Store, exporter_port: int
) -> None:
    wait_for(lambda: sampling.status().get("acknowledged", 0) >= 4)
    before = sampling.status()["sequence"]
    master.terminate()
    time.sleep(4.0)
    master.start()
    wait_for(lambda: sampling.status()["acknowledged"] > before + 12)
    # What was sent into the void came again, so the watermark passed over the restart.
    reached = sampling.status()["acknowledged"]
    assert sampling.status()["dropped"] == 0
    sampling.stop()
    stored = sequences(store, sampling.boot)
    assert [number for number in stored if number <= reached] == list(range(1, reached + 1))
    assert len(stored) == len(set(stored))
    text = metrics(exporter_port)
    assert 'cluster_node_up{node="node0"} 1.0' in text
    assert 'cluster_link_receive_bytes_total{link="ethernet",node="node0"}' in text


def test_a_silent_node_is_lost_and_then_back(sampling: Sampling, master: Any, folder: Path, minion: Any) -> None:
    wait_for(lambda: sampling.status().get("acknowledged", 0) >= 1)
    tags: list[str] = []
    with salt.utils.event.get_master_event(master.config, master.config["sock_dir"], listen=True) as bus:

        def arrived(tag: str) -> bool:
            event = bus.get_event(wait=0.5, tag="cluster/node/", full=True)
            tags.extend([event["tag"]] if event else [])
            return tag in tags

        sampling.stop()
        wait_for(lambda: arrived("cluster/node/lost"))
        again = Sampling(folder, minion, None)
        wait_for(lambda: arrived("cluster/node/back"))
        # This one has no way to ask: a job brings it what is stored.
        wait_for(lambda: again.status().get("acknowledged", 0) >= 1)
        again.stop()


class Meddled:
    """Salt's client on the master, with something that happens once a job is published: every node reads every job."""

    def __init__(self, master: Any, then: Callable[[str, str], None]) -> None:
        self._client, self._then = client(master), then

    def run_job(self, minions: list[str], function: str, *arguments: Any, **keywords: Any) -> Any:
        job = self._client.run_job(minions, function, *arguments, **keywords)
        self._then(job["jid"], keywords["executor_opts"]["nonce"])
        return job


def test_only_a_node_itself_answers_for_it(
    master: Any, minion: Any, impostor: Impostor, folder: Path, exporter_port: int
) -> None:
    key = folder / "node.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().strip() == node_keys.key_of(options(master), "node0").hex()
    refused: list[str] = []
    kept: list[Any] = []

    def forge(jid: str, nonce: str) -> None:
        own = node_keys.key_of(options(master), "node1")
        content = {"job": jid, "nonce": nonce, "function": "test.sleep", "content": "forged", "failed": False}
        of_own_key = [sealing.answer(own, name, **content) for name in ("node0", "node1")]
        for returned in ("forged", True, *of_own_key, *kept):
            impostor.answers(jid, "test.sleep", returned)
            refused.extend(["_return", "_minion_event"])

    # Whatever comes first, the node's own answer is taken.
    (answer,) = sealed_answers.ask(options(master), Meddled(master, forge), ["node0"], "test.sleep", [5])
    assert (answer.minion, answer.content, answer.failed) == ("node0", True, False)
    assert refused_answers.read(options(master)) == {"node0": len(refused)} == {"node0": 8}
    # What it once said is no answer to another question.
    with salt.utils.event.get_master_event(master.config, master.config["sock_dir"], listen=True) as bus:
        list(sealed_answers.ask(options(master), client(master), ["node0"], "test.ping"))
        while not kept:
            event = wait_for(lambda: bus.get_event(wait=1, tag="salt/job/", full=True))
            kept += [event["data"]["return"]] if event["tag"].endswith("/ret/node0") else []
    assert sealed_answers.opened(options(master), "node0", kept[0])["content"] is True
    # Of a node that is silent there is no answer.
    asked = Meddled(master, forge)
    found = sealed_answers.ask(options(master), asked, ["node0"], "test.sleep", [120], timeout=10, patient=False)
    assert list(found) == []
    assert refused_answers.read(options(master)) == {"node0": len(refused)} == {"node0": 18}
    wait_for(lambda: 'cluster_answers_refused_total{node="node0"} 18.0' in metrics(exporter_port))


def test_a_node_goes_over_to_a_new_key_while_it_is_up(
    master: Any, minion: Any, sampling: Sampling, folder: Path
) -> None:
    before = (folder / "node.key").read_text()
    wait_for(lambda: sampling.status().get("acknowledged", 0) >= 1)
    runner = load("_runners/node_key.py", "node_key_runner")
    runner.__opts__ = options(master)
    assert runner.renew(["node0"]) == {"node0": True}
    assert (folder / "node.key").read_text() != before
    reached = sampling.status()["sequence"]
    wait_for(lambda: sampling.status()["acknowledged"] > reached + 2)
    # The former one is worth nothing any more, and whoever has lost the present one gets it again.
    (folder / "node.key").write_text(before)
    ping = sealed_answers.ask(options(master), client(master), ["node0"], "test.ping", timeout=10, patient=False)
    assert list(ping) == []
    assert sealed_answers.introduce(options(master), client(master), ["node0"], 60) == {"node0"}


def test_a_batch_under_another_name_is_refused(
    impostor: Impostor, store: Store, exporter_port: int, folder: Path
) -> None:
    forged = run_builder.batches(run_builder.Shape(), "m", random.Random(1))[0] | {"node": "node0"}
    own = sealing.event(folder, "node1", [forged])["data"]
    before = rejected(exporter_port)
    # In a list of events the sender names itself: node1 says that it is node0.
    events = [
        {"tag": "cluster/telemetry/batch/node0", "data": {"id": "node0", "data": data}}
        for data in (own, {"batches": [forged]}, {**own, "seal": "0" * 64})
    ]
    impostor.send("_minion_event", events=events)
    wait_for(lambda: rejected(exporter_port) >= before + 3)
    assert [batch for batch in store.batches(0.0, FAR) if batch["boot"] == forged["boot"]] == []


def rejected(port: int) -> float:
    name = "cluster_collector_batches_rejected_total"
    (line,) = [line for line in metrics(port).splitlines() if line.startswith(name)]
    return float(line.split()[1])


class Engine(BaseHTTPRequestHandler):
    """A head's /metrics, in the middle of a run."""

    protocol_version = "HTTP/1.1"
    began = time.time()

    def do_GET(self) -> None:
        moment = time.time() - Engine.began
        found = run_builder.engine_metrics(run_builder.Shape(), "m", moment)
        body = "".join(f"{key} {value}\n" for key, value in found.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def head(folder: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    worker = {"name": "tp2-0", "head": True, "api_address": "127.0.0.1", "api_port": server.server_address[1]}
    (folder / "worker.json").write_text(json.dumps(worker))
    record = {"deployment": "tp2", "settings": {}, "workers": [{"node": "node0", **worker}]}
    (folder / "deployment.json").write_text(json.dumps(record))
    yield
    (folder / "worker.json").unlink()
    server.shutdown()
    server.server_close()


def test_a_window_goes_through_the_reactor_and_becomes_a_verdict(
    head: None, sampling: Sampling, store: Store, exporter_port: int
) -> None:
    latest = wait_for(store.latest_verdict)
    assert latest["window"]["end"] - latest["window"]["start"] == pytest.approx(3.0)
    assert latest["window"]["nodes"] == ["node0"]
    assert latest["verdict"]["class"]
    wait_for(lambda: "cluster_verdict_confidence_ratio{" in metrics(exporter_port))
