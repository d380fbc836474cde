"""Take from Salt as the boot engine does: the key store, the master's fingerprint, the returns of jobs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import salt.cache
import salt.config
import salt.crypt
import salt.utils.crypt
from salt.exceptions import CommandExecutionError

from bottleneck.plan import nodes as plan
from bottleneck.telemetry.store import Store
from control import node_keys, nodes, readiness
from netboot.boot import progress_report
from netboot.boot.events import Armed
from netboot.boot.settings import BootNode
from netboot.boot.stages import BOOT_STAGES
from tests import hostile, sealing
from tests.boot_bench import ADDRESSES, Bench, bench
from tests.by_file import load

NODE = BootNode("node0", "node0", "02:77:00:00:00:10", "10.9.0.10", "eth0")
ENGINE = Path(__file__).parents[2] / "_engines" / "boot.py"


@pytest.fixture(scope="module")
def engine() -> ModuleType:
    module = load("_engines/boot.py", "boot_engine")
    assert module.__virtual__() == "boot"
    return module


@pytest.fixture
def opts(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = salt.config.master_config(None)
    found.update({"pki_dir": str(tmp_path / "pki"), "cachedir": str(tmp_path / "cache"), "user": None})
    found["cluster_directory"] = str(tmp_path / "cluster")
    # Not this machine's own keys: Salt's options are no plain dict.
    assert found["pki_dir"] == str(tmp_path / "pki")
    (tmp_path / "cache" / "sessions").mkdir(parents=True)
    for name in ("minions", "minions_pre", "minions_rejected", "minions_denied"):
        (tmp_path / "pki" / name).mkdir(parents=True)
    return found


def keys(opts: dict[str, Any]) -> Any:
    return salt.cache.Cache(opts, driver=opts["keys.cache_driver"])


@pytest.mark.parametrize("state", ["accepted", "pending", "rejected", None])
def test_a_key_replaces_whatever_was_there(engine: ModuleType, opts: dict[str, Any], state: str | None) -> None:
    old, new = hostile.public_key(), hostile.public_key()
    store = keys(opts)
    if state:
        store.store("keys", "node0", {"state": state, "pub": old})
    store.store("denied_keys", "node0", [old])
    session = Path(opts["cachedir"]) / "sessions" / "node0"
    session.write_text("the old session")
    former = node_keys.key_of(opts, "node0")
    engine.SaltKeys(opts).admit("node0", new)
    assert node_keys.key_of(opts, "node0") != former and node_keys.is_required(opts, "node0")
    assert store.fetch("keys", "node0") == {"state": "accepted", "pub": new}
    assert not store.fetch("denied_keys", "node0")
    assert not session.exists()
    assert store.list("keys") == ["node0"]


def test_a_key_that_does_not_stay_is_an_error(engine: ModuleType, opts: dict[str, Any]) -> None:
    admitting = engine.SaltKeys(opts)
    admitting._cache = SimpleNamespace(store=lambda *_: None, fetch=lambda *_: {"state": "pending", "pub": "other"})
    with pytest.raises(OSError, match="did not stay"):
        admitting.admit("node0", hostile.public_key())


def test_the_fingerprint_is_what_a_minion_compares(engine: ModuleType, opts: dict[str, Any]) -> None:
    with pytest.raises(OSError, match="no public key"):
        engine.SaltKeys(opts).master_finger()
    path = Path(opts["pki_dir"]) / "master.pub"
    path.write_text(hostile.public_key() + "\n")
    expected = salt.utils.crypt.pem_finger(str(path), sum_type=opts["hash_type"])
    assert engine.SaltKeys(opts).master_finger() == expected


def test_the_node_s_key_is_one_that_salt_reads(tmp_path: Path) -> None:
    """The key that openssl writes on the node is one that Salt's own classes take."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (setup/packages test)")
    private = tmp_path / "minion.pem"
    made = subprocess.run(["openssl", "genrsa", "-traditional", "2048"], capture_output=True, check=True).stdout
    private.write_bytes(made)
    public = subprocess.run(["openssl", "rsa", "-in", private, "-pubout"], capture_output=True, check=True, text=True)
    assert salt.crypt.PrivateKey.from_file(str(private))
    assert salt.crypt.PublicKey.from_str(public.stdout)


def test_a_busy_minion_may_miss_a_question(engine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board whose power was cut misses them all."""
    master = engine.Master({"publish_port": 4505}, SimpleNamespace(dhcp="serve"))
    for answers, alive in (([True], True), ([False, True], True), ([False] * engine.PINGS, False)):
        left = list(answers)
        monkeypatch.setattr(master, "_ping", lambda minion, left=left: left.pop(0))
        assert asyncio.run(master.alive(NODE)) is alive and not left


def test_whoever_proxies_another_s_addresses_asks_always(engine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.kernel_tables, "connection", lambda *_: None)
    for dhcp, connection in (("serve", None), ("proxy", 0)):
        master = engine.Master({"publish_port": 4505}, SimpleNamespace(dhcp=dhcp))
        assert master.connection(NODE) == connection


def test_a_node_s_newest_samples_are_those_of_the_store(
    engine: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "HEARTS_SECONDS", 0.0)
    path = tmp_path / "store.db"
    with Store(path) as store:
        batch = {"boot": "b", "sequence": 1, "t0": 1000.0, "t1": 1001.0, "samples": [{"t": 1000.0}]}
        store.put_batches([{**batch, "node": "node0"}])
        master = engine.Master({"cluster_store": str(path)}, None)
        assert master.heart(NODE) == 1001.0
        store.put_batches([{**batch, "node": "node0", "sequence": 2, "t1": 1002.0}])
        assert master.heart(NODE) == 1002.0
        assert master.heart(dataclasses.replace(NODE, name="node1", minion_id="node1")) is None
    monkeypatch.setattr(engine, "HEARTS_SECONDS", 1e9)
    assert master.heart(NODE) == 1002.0
    # A store that is no store, or none at all, says nothing of anyone.
    (tmp_path / "odd.db").write_bytes(b"no database" * 500)
    for opts in ({"cluster_store": str(tmp_path / "odd.db")}, {}):
        assert engine.Master(opts, None).heart(NODE) is None


def test_a_busy_master_does_not_hold_up_the_boots(engine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that is gone: that is for the log."""
    master = engine.Master({}, SimpleNamespace())
    release, announced = threading.Event(), []

    def fire(tag: str, data: dict[str, Any]) -> None:
        assert release.wait(20)
        announced.append((tag, data))

    async def announce() -> None:
        monkeypatch.setattr(master, "_fire", fire)
        master.announce("cluster/boot/stuck", {"node": "node0"})
        assert not announced
        release.set()
        monkeypatch.setattr(master, "_fire", lambda *_: 1 / 0)
        master.announce("cluster/boot/enrolled", {})
        await asyncio.get_running_loop().shutdown_default_executor()
        # The loop reports what the threads came to.
        await asyncio.sleep(0)

    errors: list[str] = []
    monkeypatch.setattr(engine.log, "error", lambda text, *values: errors.append(text % values))
    asyncio.run(announce())
    assert announced == [("cluster/boot/stuck", {"node": "node0"})]
    assert errors == ["The event cluster/boot/enrolled could not be sent: division by zero"]


def enrolled(service: Bench) -> None:
    boot = asyncio.run(service.node("node0").enrol(hostile.public_key()))
    assert boot.id == "node0"


def test_jobs_and_deployments_become_stages(
    engine: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with bench(tmp_path) as service:
        opts = {"cluster_directory": str(tmp_path), "publish_port": 4505}
        master = engine.Master(opts, service.settings)
        master.service = service.service
        enrolled(service)
        failed = {"file_|-a": {"__id__": "base-file", "result": False}}
        service.call(master._applied, "node0", failed)
        service.now += 901
        assert service.stuck() == ("applied", "1 states failed: base-file")
        service.call(master._applied, "node0", {"file_|-a": {"result": True}})
        assert service.reached()[-1] == "applied"
        record: dict[str, Any] = {"began": service.now, "ready": service.now + 40, "first_token": service.now + 43}
        record |= {"workers": [{"node": "node0"}]}
        (tmp_path / "deployment.json").write_text(json.dumps(record))
        service.do(master.see_deployment())
        assert service.reached()[-2:] == ["engine_ready", "first_token"]
        (tmp_path / "deployment.json").write_text("{")
        for _ in range(3):
            service.do(master.see_deployment())
        (announced,) = [each.getMessage() for each in caplog.records if "deployment.json" in each.getMessage()]
        assert "cluster undeploy, then cluster deploy" in announced, "once, with the file and the next command"
        assert service.reached()[-1] == "first_token", "what was known stays"


class Minions:
    """Salt's client: nodes whose workers are ready when they are asked for the second time."""

    def __init__(self, look: Callable[[], None] = lambda: None, stage: str = "ready") -> None:
        self.specs: dict[str, dict[str, Any]] = {}
        self.asked = 0
        self.look, self.stage = look, stage

    def cmd(self, targets: list[str], function: str, arguments: list[Any]) -> dict[str, Any]:
        if function == "worker.start":
            self.specs |= dict.fromkeys(targets, arguments[0])
            return dict.fromkeys(targets, True)
        if function == "worker.stop":
            return {target: [] for target in targets}
        assert function == "worker.status"
        self.asked += 1
        self.look()
        stage = self.stage if self.asked > 1 else "loading"
        return {target: {self.specs[target]["name"]: {"stage": stage}} for target in targets}


class Api(BaseHTTPRequestHandler):
    """A server that answers the first request."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"choices": []}')


def test_what_cluster_deploy_records_ends_the_trace(
    engine: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner writes the record, the engine reads it: power-on to first token, and nearly all of it attributed."""
    runner = load("_runners/cluster.py", "cluster_runner")
    with bench(tmp_path) as service, ThreadingHTTPServer((ADDRESSES["node0"], 0), Api) as api:
        threading.Thread(target=api.serve_forever, daemon=True).start()
        monkeypatch.setattr(plan, "API_PORT", api.server_port)
        # From here on by the clock on the wall, as the runner goes by it.
        service.now = time.time() - 100
        service.call(service.service.tell, Armed(service.now, "node0", "reprovision", powered_on=True))
        service.asks()
        service.now += 4
        boot = asyncio.run(service.node("node0").begin())
        service.call(service.service.fetched, boot.boot, "initrd.img")
        for stage in ("initramfs", "image", "systemd", "minion"):
            service.now += 4
            assert service.call(service.service.report, boot.boot, stage, "", False, ADDRESSES["node0"])
        claim = json.dumps(boot.claim(hostile.public_key())).encode()
        assert asyncio.run(hostile.post(service.url, claim, ADDRESSES["node0"]))[0] == 200
        master = engine.Master({"cluster_directory": str(tmp_path), "publish_port": 4505}, service.settings)
        master.service = service.service
        service.now += 30
        service.call(master._applied, "node0", {"file_|-a": {"result": True}})

        runner.__opts__ = {"cluster_profile": str(tmp_path / "bench.yaml"), "cluster_directory": str(tmp_path)}
        monkeypatch.setattr(readiness, "POLL_SECONDS", 0.01)
        awaited: list[str] = []
        starting: list[dict[str, Any]] = []

        def look() -> None:
            service.call(service.service.obey)
            now = progress_report.under_way(service.service.state.nodes["node0"])
            awaited.append(now[0] if now else "")
            starting.append(runner.starting_record())

        sealing.nodes_answer(monkeypatch)
        # One that fails is awaited while it starts, and no longer.
        monkeypatch.setattr(nodes.Nodes, "client", Minions(look, "failed"))
        with pytest.raises(CommandExecutionError, match="failed"):
            runner.deploy()
        look()
        assert awaited == ["engine_ready", "engine_ready", ""]
        # While it starts, and once it has failed, what it was can be asked: its start is recorded from that.
        assert starting[0]["workers"] and "ended" not in starting[0]
        assert starting[-1]["ended"] >= starting[0]["began"]
        monkeypatch.setattr(nodes.Nodes, "client", Minions(look))
        runner.deploy()
        assert awaited[-1] == "engine_ready"
        assert starting[-1]["began"] > starting[0]["began"] and runner.starting_record() == {}
        api.shutdown()
        service.do(master.see_deployment())
        view = service.call(
            progress_report.view, service.service.state, time.time(), service.settings.deadlines_seconds
        )
        seen = view["nodes"]["node0"]["boot"]
        stages = [span["stage"] for span in seen["stages"]]
        assert stages == [*BOOT_STAGES[:9], "idle", "engine_ready", "first_token"]
        record = json.loads((tmp_path / "deployment.json").read_text())
        assert seen["stages"][-1]["start"] == record["ready"]
        total = sum(span["seconds"] for span in seen["stages"])
        assert total == pytest.approx(record["first_token"] - seen["began"])
        assert seen["attributed_ratio"] >= 0.95
        # A node that is in no deployment goes on as before.
        assert view["nodes"]["node1"]["boot"] is None


def test_a_minion_that_does_not_connect_is_named(engine: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    with bench(tmp_path) as service:
        master = engine.Master({"cluster_directory": str(tmp_path), "publish_port": 4505}, service.settings)
        master.service = service.service
        enrolled(service)
        service.now += 901
        monkeypatch.setattr(engine.kernel_tables, "connection", lambda *_: None)
        service.do(master.see_minions())
        stage, cause = service.stuck()
        assert stage == "applied" and "not connected to the master" in cause
