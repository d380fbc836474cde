"""Keys that strangers offer to Salt's store are bounded, counted and shown; no accepted key is touched."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import salt._logging
import salt.cache
import salt.config

from bottleneck.profile import load_profile
from bottleneck.telemetry.store import Store
from control import pending_keys
from tests import hostile, run_builder
from tests.by_file import load


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    for name in ("minions", *pending_keys.FOLDERS):
        (tmp_path / "pki" / name).mkdir(parents=True)
    (tmp_path / "pki" / "minions" / "node0").write_text(hostile.public_key())
    return tmp_path / "pki"


def offer(pki: Path, name: str, size: int, age: float, folder: str = "minions_pre") -> Path:
    path = pki / folder / name
    path.write_bytes(b"A" * size)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_a_flood_of_keys_leaves_the_newest(pki: Path) -> None:
    for number in range(1000):
        offer(pki, f"stranger{number}", 400, 1000 - number)
    found = pending_keys.bound(pki)
    left = {path.name for path in (pki / "minions_pre").iterdir()}
    assert left == {f"stranger{number}" for number in range(1000 - pending_keys.MOST_KEYS, 1000)}
    assert (found.count, found.size_bytes) == (1000 - len(left), 400 * (1000 - len(left))) and len(found.names) == 3
    assert pending_keys.bound(pki) == pending_keys.Dropped()
    assert (pki / "minions" / "node0").exists()


@pytest.mark.parametrize("folder", pending_keys.FOLDERS)
def test_what_is_too_large_to_be_a_key_goes_whatever_its_age(pki: Path, folder: str) -> None:
    kept = offer(pki, "node9", 451, 50.0, folder)
    large = offer(pki, "large", 32 << 20, 0.0, folder)
    found = pending_keys.bound(pki)
    assert (found.count, found.size_bytes, found.names) == (1, 32 << 20, ("large",))
    assert kept.exists() and not large.exists()


def test_many_that_are_just_small_enough_are_bounded_by_their_bytes(pki: Path) -> None:
    for number in range(60):
        offer(pki, f"s{number}", pending_keys.LARGEST_KEY_BYTES, number)
    pending_keys.bound(pki)
    size = sum(path.stat().st_size for path in (pki / "minions_pre").iterdir())
    assert 0 < size <= pending_keys.MOST_BYTES


def test_a_store_that_is_not_there_and_what_is_no_file_are_left_alone(pki: Path, tmp_path: Path) -> None:
    assert pending_keys.bound(tmp_path / "nothing") == pending_keys.Dropped()
    target = tmp_path / "elsewhere"
    target.write_bytes(b"A" * 100_000)
    (pki / "minions_pre" / "link").symlink_to(target)
    (pki / "minions_pre" / "folder").mkdir()
    offer(pki, ".stranger.partial", 100_000, 0.0)
    assert pending_keys.bound(pki) == pending_keys.Dropped()
    assert target.exists()


def test_it_is_where_salt_keeps_them(pki: Path, tmp_path: Path) -> None:
    opts: dict[str, Any] = salt.config.master_config(None)
    opts.update({"pki_dir": str(pki), "cachedir": str(tmp_path / "cache"), "user": None})
    cache = salt.cache.Cache(opts, driver=opts["keys.cache_driver"])
    cache.store("keys", "stranger", {"state": "pending", "pub": "B" * 100_000})
    cache.store("keys", "node1", {"state": "accepted", "pub": hostile.public_key()})
    assert pending_keys.bound(pki).names == ("stranger",)
    assert sorted(cache.list("keys")) == ["node0", "node1"]


def test_the_engine_bounds_counts_and_names_them(pki: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = load("_engines/telemetry.py", "telemetry_engine")
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    now = {"time": 1_800_000_000.0}
    with Store(tmp_path / "store.db") as store:
        opts = {"cluster_directory": tmp_path, "pki_dir": str(pki)}
        made = engine.Collector(
            opts, load_profile(run_builder.PROFILE), store, lambda: now["time"], lambda: now["time"]
        )
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                for number in range(200):
                    offer(pki, f"stranger{number}", 400, number)
                now["time"] += pending_keys.LOOK_SECONDS
                made.step(None)
        registry = prometheus_client.CollectorRegistry()
        registry.register(made)
        counted = registry.get_sample_value("cluster_pending_keys_dropped_total")
        assert counted == 3 * (200 - pending_keys.MOST_KEYS)
        assert "strangers" in caplog.text and "stranger" in caplog.text
