"""A full disk and a flooded log under the boot service: it goes on serving, says so, and writes when it can again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bottleneck import atomic_files
from netboot.boot import dhcp_log, storage
from netboot.boot.dhcp_log import Tail
from netboot.boot.state import begin as begin_state
from tests.boot_bench import Bench, bench
from tests.boot_steps import begin, up_to


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as found:
        yield found


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_no_boot_and_the_record_is_written_when_there_is_room(
    service: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", full)
        boot = begin(service)
        up_to(service, boot, "minion")
        for _ in range(5):
            service.stuck(after=1)
        assert service.reached() == ["dhcp", "script", "kernel", "initramfs", "image", "systemd", "minion"]
        assert service.service.unwritten >= 5
        logged = [each.getMessage() for each in caplog.records if "cannot be written" in each.getMessage()]
        assert len(logged) == 1
    service.stuck(after=1)
    record = storage.read(service.folder / "boot")
    assert record is not None and record.nodes["node0"].boot == service.service.state.nodes["node0"].boot


def refusing_while(taken: Callable[[], bool]) -> Callable[..., None]:
    """Return a `replace` of a disk that is full while something takes its room."""
    replace = atomic_files.replace

    def refuse(path: Path, content: bytes, *, mode: int = 0o644, durable: bool = False) -> None:
        if taken():
            full()
        replace(path, content, mode=mode, durable=durable)

    return refuse


def test_the_record_takes_the_room_that_was_kept_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.keep_reserve(tmp_path)
    reserve = tmp_path / storage.RESERVE
    assert reserve.stat().st_blocks * 512 >= storage.RESERVE_BYTES, "room, not a hole"
    monkeypatch.setattr(atomic_files, "replace", refusing_while(reserve.exists))
    storage.write(tmp_path, begin_state(["node0"], 1.0), durable=True)
    assert storage.read(tmp_path) is not None and not reserve.exists()
    monkeypatch.setattr(atomic_files, "replace", full)
    with pytest.raises(OSError, match="No space"):
        storage.write(tmp_path, begin_state(["node0"], 2.0))
    monkeypatch.undo()
    storage.keep_reserve(tmp_path)
    assert reserve.exists()


def test_a_flooded_log_is_bounded_and_goes_on_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dhcp_log, "MOST_LOG_BYTES", 100_000)
    monkeypatch.setattr(dhcp_log, "KEPT_LOG_BYTES", 10_000)
    path = tmp_path / "dnsmasq.log"
    tail = Tail(path)
    with path.open("ab", buffering=0) as dnsmasq:
        largest = 0
        for number in range(300):
            dnsmasq.write(b"%06d " % number + b"x" * 1000 + b"\n")
            list(tail.lines())
            tail.bound()
            largest = max(largest, path.stat().st_size)
        assert largest <= 102_000
        assert (tmp_path / "dnsmasq.log.1").stat().st_size == 10_000
        dnsmasq.write(b"a node asks\n")
        assert list(tail.lines()) == ["a node asks"]


def test_a_log_that_cannot_be_kept_is_emptied_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dhcp_log, "MOST_LOG_BYTES", 1000)
    monkeypatch.setattr(dhcp_log, "KEPT_LOG_BYTES", 100)
    monkeypatch.setattr(atomic_files, "replace", full)
    path = tmp_path / "dnsmasq.log"
    path.write_bytes(b"x" * 2000)
    Tail(path).bound()
    assert path.stat().st_size == 0
    Tail(tmp_path / "nothing").bound()
