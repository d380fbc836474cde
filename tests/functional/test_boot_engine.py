"""What the boot engine takes from Salt: the key store, the master's fingerprint, what jobs say."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import salt.cache
import salt.config
import salt.crypt
import salt.utils.crypt

from netboot.boot.settings import BootNode
from tests import hostile
from tests.boot_bench import Bench, bench

NODE = BootNode("node0", "node0", "02:77:00:00:00:10", "10.9.0.10", "eth0")
ENGINE = Path(__file__).parents[2] / "_engines" / "boot.py"


@pytest.fixture(scope="module")
def engine() -> ModuleType:
    specification = importlib.util.spec_from_file_location("boot_engine", ENGINE)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.__virtual__() == "boot"
    return module


@pytest.fixture
def opts(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = salt.config.master_config(None)
    found.update({"pki_dir": str(tmp_path / "pki"), "cachedir": str(tmp_path / "cache"), "user": None})
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
    engine.SaltKeys(opts).admit("node0", new)
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
    """What openssl writes on the node is what Salt's own classes take."""
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
    monkeypatch.setattr(engine.neighbours, "connection", lambda *_: None)
    for dhcp, connection in (("serve", None), ("proxy", 0)):
        master = engine.Master({"publish_port": 4505}, SimpleNamespace(dhcp=dhcp))
        assert master.connection(NODE) == connection


def enrolled(service: Bench) -> None:
    boot = asyncio.run(service.node("node0").enrol(hostile.public_key()))
    assert boot.id == "node0"


def test_jobs_and_deployments_become_stages(engine: ModuleType, tmp_path: Path) -> None:
    with bench(tmp_path) as service:
        opts = {"cluster_directory": str(tmp_path), "publish_port": 4505}
        master = engine.Master(opts, service.settings)
        master.service = service.service
        enrolled(service)
        failed = {"file_|-a": {"__id__": "base-file", "result": False}}
        service.call(master._applied, "node0", {"fun": "state.apply", "return": failed})
        service.now += 901
        assert service.stuck() == ("applied", "1 states failed: base-file")
        service.call(master._applied, "node0", {"fun": "state.apply", "return": {"file_|-a": {"result": True}}})
        assert service.reached()[-1] == "applied"
        record = {"began": service.now, "ready": service.now + 40, "first_token": service.now + 43}
        record |= {"workers": [{"node": "node0"}]}
        (tmp_path / "deployment.json").write_text(json.dumps(record))
        service.do(master.see_deployment())
        assert service.reached()[-2:] == ["engine_ready", "first_token"]


def test_a_minion_that_does_not_connect_is_named(engine: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    with bench(tmp_path) as service:
        master = engine.Master({"cluster_directory": str(tmp_path), "publish_port": 4505}, service.settings)
        master.service = service.service
        enrolled(service)
        service.now += 901
        monkeypatch.setattr(engine.neighbours, "connection", lambda *_: None)
        service.do(master.see_minions())
        stage, cause = service.stuck()
        assert stage == "applied" and "not connected to the master" in cause
