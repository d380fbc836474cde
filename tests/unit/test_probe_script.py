"""The pure parts of the probe that runs on the nodes, and its small parts against this machine."""

import json
import os
import socket
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from tests.by_file import load

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "probe" / "files"))

import device_measures

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data" / "bench"


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    return load("salt/probe/files/probe.py", "probe_script")


def test_forward_rates_are_the_receivers_not_the_senders(probe: ModuleType) -> None:
    document = json.loads((DATA / "iperf3_forward.json").read_text())
    rates = probe.interval_rates(document, reverse=False)
    server = [each["sum"] for each in document["server_output_json"]["intervals"]]
    assert rates == [each["bytes"] / each["seconds"] for each in server[2:]]
    sender = [each["sum"]["bytes"] / each["sum"]["seconds"] for each in document["intervals"][2:]]
    assert rates != sender


def test_reverse_rates_are_the_clients_own_and_leave_the_short_rest_out(probe: ModuleType) -> None:
    document = json.loads((DATA / "iperf3_reverse.json").read_text())
    rates = probe.interval_rates(document, reverse=True)
    assert rates == [each["sum"]["bytes"] / each["sum"]["seconds"] for each in document["intervals"][2:]]
    # The other side's last interval lasted 2 ms: as a receiver's it would be left out.
    swapped = {"intervals": [], "server_output_json": document["server_output_json"]}
    assert len(document["server_output_json"]["intervals"]) == 6
    assert len(probe.interval_rates(swapped, reverse=False)) == 3


def test_a_measurement_of_one_interval_is_kept(probe: ModuleType) -> None:
    only = {"intervals": [{"sum": {"seconds": 1.0, "bytes": 500}}]}
    assert probe.interval_rates(only, reverse=True) == [500.0]


@pytest.mark.parametrize(("seconds", "least", "calls"), [(0.2, 0.06, 1), (0.001, 0.06, 60), (0.0, 0.06, 60_000_000)])
def test_short_operations_are_called_until_a_repeat_is_long_enough(
    probe: ModuleType, seconds: float, least: float, calls: int
) -> None:
    assert probe.calls_for(seconds, least) == pytest.approx(calls, rel=1e-6)


def test_repeats_fit_the_budget(probe: ModuleType) -> None:
    counts = [probe.repeats_for(seconds, 0.7) for seconds in (0.06, 0.1, 0.15, 0.3, 2.0, 3.0)]
    assert counts == [9, 7, 5, 3, 3, 1]
    assert all(count % 2 for count in counts), "an odd number of repeats has a median among them"


def test_array_is_larger_than_the_cache_and_leaves_memory_free() -> None:
    gib = 2**30
    assert device_measures.array_bytes(32 * 2**20, 16 * gib) == 256 * 2**20
    assert device_measures.array_bytes(512 * 2**20, 64 * gib) == 2 * gib
    assert device_measures.array_bytes(512 * 2**20, 1 * gib) == gib // 4
    assert device_measures.array_bytes(8 * gib, 1024 * gib) == 4 * gib


def test_last_cache_is_the_largest(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1024K", "32M", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert device_measures.last_cache_bytes(str(tmp_path)) == 32 * 2**20
    assert device_measures.last_cache_bytes(str(tmp_path / "missing")) == 0


def test_disk_is_read_and_nothing_is_left(probe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BLOCK_BYTES", 2**16)
    monkeypatch.setattr(probe, "REPEATS", 3)
    rates, method = probe.disk_read(str(tmp_path))
    assert method in ("direct", "advised")
    assert len(rates) == 3 and min(rates) > 1e6
    assert not list(tmp_path.iterdir())


def test_a_filesystem_that_refuses_direct_reads_is_read_anyway(
    probe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2**21)
    direct_open, real = [], os.open

    def refuse(name: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            direct_open.append(name)
            raise OSError(22, "Invalid argument")
        return real(name, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    rates, method = probe._read_file(str(path), 2**21)
    assert method == "advised" and direct_open and len(rates) == probe.REPEATS


def test_ping_halves_the_round_trip(probe: ModuleType) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    threading.Thread(target=probe._echo, args=(listener,), daemon=True).start()
    repeats = probe.ping("127.0.0.1", "127.0.0.1", port, seconds=0.01)
    assert len(repeats) == probe.REPEATS
    assert all(1e-7 < seconds < 0.1 for seconds in repeats)


def test_a_pipeline_message_goes_there_and_back(probe: ModuleType) -> None:
    class Distributed:
        def __init__(self) -> None:
            self.reported: list[tuple[str, int]] = []

        def send(self, tensor: object, rank: int) -> None:
            self.reported.append(("send", rank))

        def recv(self, tensor: object, rank: int) -> None:
            self.reported.append(("recv", rank))

    for rank, expected in ((0, [("send", 1), ("recv", 1)]), (1, [("recv", 0), ("send", 0)]), (2, [])):
        distributed = Distributed()
        operation, messages = probe._message(distributed, "send_receive", object(), rank)
        operation()
        assert distributed.reported == expected
        assert messages == 2
