"""Processes that the kernel ended for want of memory, as both versions of control groups count them."""

from pathlib import Path

import memory_kills
import pytest

from tests.tree import write


@pytest.mark.parametrize(
    ("cgroup", "path", "text"),
    [
        (
            "0::/system.slice/worker.service\n",
            "system.slice/worker.service/memory.events",
            "low 0\noom 4\noom_kill 3\n",
        ),
        (
            "5:memory:/lab/node0\n3:cpu,cpuacct:/lab\n",
            "memory/lab/node0/memory.oom_control",
            "under_oom 0\noom_kill 3\n",
        ),
        ("0::/\n", "memory.events", "oom_kill 3\n"),
    ],
    ids=["version 2", "version 1", "in a namespace"],
)
def test_the_groups_own_count_is_read(tmp_path: Path, cgroup: str, path: str, text: str) -> None:
    write(tmp_path / "proc" / "self" / "cgroup", cgroup)
    write(tmp_path / "proc" / "vmstat", "oom_kill 99\n")
    write(tmp_path / "groups" / path, text)
    assert memory_kills.count(str(tmp_path / "groups"), str(tmp_path / "proc")) == 3


def test_without_a_group_that_counts_the_machine_does(tmp_path: Path) -> None:
    write(tmp_path / "proc" / "self" / "cgroup", "0::/\n")
    write(tmp_path / "proc" / "vmstat", "nr_free 1\noom_kill 99\n")
    assert memory_kills.count(str(tmp_path / "groups"), str(tmp_path / "proc")) == 99
    (tmp_path / "proc" / "vmstat").write_text("oom_kill x\n")
    assert memory_kills.count(str(tmp_path / "groups"), str(tmp_path / "proc")) is None
    assert memory_kills.count(str(tmp_path / "none"), str(tmp_path / "none")) is None


def test_what_was_counted_since_is_known_only_between_two_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_kills, "count", lambda: 5)
    assert memory_kills.since(5) == 0 and memory_kills.since(3) == 2 and memory_kills.since(None) is None
    monkeypatch.setattr(memory_kills, "count", lambda: None)
    assert memory_kills.since(3) is None
