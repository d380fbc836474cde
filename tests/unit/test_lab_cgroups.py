"""Control groups on a made-up tree: plain files stand for the kernel's."""

from pathlib import Path
from typing import Any

import pytest

from lab import cgroups
from lab.cgroup_trees import discover
from lab.cgroups import CgroupError, Hierarchy


def _mountinfo(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{number} 1 0:{number} / {line}\n" for number, line in enumerate(lines, 20)))
    return path


@pytest.fixture
def unified(tmp_path: Path) -> Hierarchy:
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    mountinfo = _mountinfo(tmp_path / "mountinfo", f"{root} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate")
    return discover(mountinfo)


@pytest.fixture
def separate(tmp_path: Path) -> Hierarchy:
    lines = []
    for controllers in ("cpu,cpuacct", "cpuset", "memory", "pids", "name=systemd"):
        root = tmp_path / controllers
        root.mkdir()
        lines.append(f"{root} rw shared:9 - cgroup cgroup rw,{controllers}")
    return discover(_mountinfo(tmp_path / "mountinfo", *lines))


def _node(hierarchy: Hierarchy, files: dict[str, str]) -> None:
    """Make the files that the kernel would make with the node's group."""
    for directory in hierarchy.directories("demo", "node0"):
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text)


def test_version_2_is_one_tree(unified: Hierarchy) -> None:
    assert unified.version == 2
    assert len(unified.trees()) == 1
    assert [mount.filesystem for mount in unified.mounts] == ["cgroup2"]


def test_version_1_joins_controllers_that_share_a_mount(separate: Hierarchy, tmp_path: Path) -> None:
    assert separate.version == 1
    assert len(separate.trees()) == 4
    assert separate.roots["cpuacct"] == separate.roots["cpu"] == tmp_path / "cpu,cpuacct"
    assert {mount.options for mount in separate.mounts} == {"cpu,cpuacct", "cpuset", "memory", "pids"}


def test_version_1_is_used_beside_an_empty_version_2_tree(tmp_path: Path) -> None:
    unified = tmp_path / "unified"
    unified.mkdir()
    (unified / "cgroup.controllers").write_text("hugetlb\n")
    lines = [f"{unified} rw - cgroup2 cgroup2 rw"]
    for controller in ("cpu", "cpuset", "memory"):
        lines.append(f"/sys/fs/cgroup/{controller} rw - cgroup cgroup rw,{controller}")

    hierarchy = discover(_mountinfo(tmp_path / "mountinfo", *lines))

    assert hierarchy.version == 1
    assert set(hierarchy.roots) == {"cpu", "cpuset", "memory"}


def test_missing_controllers_are_named(tmp_path: Path) -> None:
    mountinfo = _mountinfo(tmp_path / "mountinfo", "/sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu")

    with pytest.raises(CgroupError, match="lack cpuset, memory"):
        discover(mountinfo)


def test_quota_of_version_2(unified: Hierarchy) -> None:
    _node(unified, {"cpu.max": "max 100000", "cpu.stat": "usage_usec 1500000\nthrottled_usec 250000\n"})
    _node(unified, {"memory.current": "1024", "memory.max": "max\n"})

    unified.set_cpu_quota("demo", "node0", 0.3)
    usage = unified.usage("demo", "node0")

    assert usage.quota_cores == pytest.approx(0.3)
    assert (usage.cpu_seconds, usage.throttled_seconds) == (1.5, 0.25)
    assert (usage.memory_bytes, usage.memory_limit_bytes) == (1024, None)
    unified.set_cpu_quota("demo", "node0", None)
    assert unified.usage("demo", "node0").quota_cores is None


def test_a_node_of_version_2_is_divided(unified: Hierarchy, separate: Hierarchy) -> None:
    """Its processes go one level down, with the quota that the node itself may change."""
    _node(unified, {"cpu.max": "max 100000", "cpu.stat": "usage_usec 3000000\n", "cgroup.procs": "7\n8\n"})
    _node(unified, {"memory.current": "1024", "memory.max": "max\n", "cgroup.subtree_control": ""})
    top = unified.directory("cpu", "demo", "node0")
    (top / "inside").mkdir()
    moved = top / "inside" / "cgroup.procs"
    for name, text in {"cgroup.procs": "", "cpu.max": "max 100000", "cpu.stat": "throttled_usec 500000\n"}.items():
        (top / "inside" / name).write_text(text)

    unified.divide("demo", "node0")
    unified.set_cpu_quota("demo", "node0", 0.5)

    assert moved.read_text() == "8", "the kernel takes one at a time; a plain file keeps the last"
    assert (top / "cgroup.subtree_control").read_text() == "+cpu"
    assert unified.membership_files("demo", "node0") == [moved]
    assert (top / "cpu.max").read_text() == "max 100000"
    usage = unified.usage("demo", "node0")
    assert (usage.cpu_seconds, usage.quota_cores, usage.throttled_seconds) == (3.0, 0.5, 0.5)

    _node(separate, {"cgroup.procs": "7\n"})
    separate.divide("demo", "node0")
    assert not (separate.home("demo", "node0") / "inside").exists(), "version 1 needs no division"


def test_quota_of_version_1(separate: Hierarchy) -> None:
    _node(separate, {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "cpuacct.usage": "2000000000"})
    _node(separate, {"cpu.stat": "nr_periods 1\nnr_throttled 1\nthrottled_time 500000000\n"})
    _node(separate, {"memory.usage_in_bytes": "4096", "memory.limit_in_bytes": "5368709120"})

    separate.set_cpu_quota("demo", "node0", 1.5)
    usage = separate.usage("demo", "node0")

    assert usage.quota_cores == pytest.approx(1.5)
    assert (usage.cpu_seconds, usage.throttled_seconds) == (2.0, 0.5)
    assert usage.memory_limit_bytes == 5 * 2**30
    separate.set_cpu_quota("demo", "node0", None)
    assert separate.usage("demo", "node0").quota_cores is None


def test_quota_is_never_below_what_the_kernel_takes(unified: Hierarchy) -> None:
    _node(unified, {"cpu.max": "max 100000"})

    unified.set_cpu_quota("demo", "node0", 0.001)

    assert (unified.directory("cpu", "demo", "node0") / "cpu.max").read_text() == "1000 10000"


def test_misspelt_control_file_fails_instead_of_becoming_a_file(unified: Hierarchy) -> None:
    _node(unified, {})

    with pytest.raises(FileNotFoundError):
        unified.set_cpu_quota("demo", "node0", 1.0)


def test_processes_are_found_in_any_tree_and_below_the_node(separate: Hierarchy) -> None:
    _node(separate, {"cgroup.procs": "7\n8\n"})
    inner = separate.directory("memory", "demo", "node0") / "worker"
    inner.mkdir()
    (inner / "cgroup.procs").write_text("9\n")

    assert separate.processes("demo", "node0") == [7, 8, 9]
    assert separate.processes("demo") == [7, 8, 9]
    assert separate.nodes("demo") == ["node0"]
    assert separate.processes("other") == []


def test_new_cpusets_of_version_1_inherit(separate: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cpuset takes no process, so each level copies its parent's."""
    real_mkdir = Path.mkdir

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        real_mkdir(path, *arguments, **options)
        for name in ("cpu.shares", "cpuset.cpus", "cpuset.mems", "memory.limit_in_bytes"):
            if not (path / name).exists():
                (path / name).write_text("\n")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    root = separate.roots["cpuset"]
    (root / "cpuset.cpus").write_text("0-3\n")
    (root / "cpuset.mems").write_text("0\n")

    separate.create("demo", "node0", [2], 4096)

    node = separate.directory("cpuset", "demo", "node0")
    assert (node.parent / "cpuset.cpus").read_text() == "0-3"
    assert ((node / "cpuset.cpus").read_text(), (node / "cpuset.mems").read_text()) == ("2", "0")
    assert (separate.directory("memory", "demo", "node0") / "memory.limit_in_bytes").read_text() == "4096"
    # Labs together weigh more than the rest of the machine; among themselves they are alike.
    cpu = separate.directory("cpu", "demo", "node0")
    assert (cpu.parents[1] / "cpu.shares").read_text() == "10240"
    assert (cpu / "cpu.shares").read_text() == (cpu.parent / "cpu.shares").read_text() == "\n"
    # The control node, which is another machine, gives way to them.
    separate.create("demo", "control", cpu_share=0.25)
    assert (separate.directory("cpu", "demo", "control") / "cpu.shares").read_text() == "256"


def test_version_2_hands_controllers_on(unified: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[Path, str]] = []
    monkeypatch.setattr(cgroups, "_write", lambda path, text: written.append((path, text)))
    root = unified.trees()[0]
    for level in (root, root / "cluster", root / "cluster/demo"):
        level.mkdir(exist_ok=True)
        (level / "cgroup.subtree_control").write_text("memory pids\n" if level == root else "")

    unified.create("demo", "node0")

    assert written[0] == (root / "cgroup.subtree_control", "+cpu +cpuset +io")
    assert [path.parent.name for path, _ in written] == ["cgroup", "cluster", "cluster", "demo"]
    assert written[1] == (root / "cluster" / "cpu.weight", "1000")


def test_peak_memory_of_a_lab_where_the_kernel_keeps_it(unified: Hierarchy, separate: Hierarchy) -> None:
    for hierarchy, name in ((unified, "memory.peak"), (separate, "memory.max_usage_in_bytes")):
        _node(hierarchy, {})
        assert hierarchy.peak_memory_bytes("demo") is None
        (hierarchy.directory("memory", "demo", "node0").parent / name).write_text("6581223424\n")
        assert hierarchy.peak_memory_bytes("demo") == 6581223424


def test_a_nodes_disk_is_held_where_the_machine_can(unified: Hierarchy, tmp_path: Path) -> None:
    _node(unified, {"io.max": ""})
    unified.set_read_rate("demo", "node0", "254:0", 8e6)
    assert (unified.directory("io", "demo", "node0") / "io.max").read_text() == "254:0 rbps=8000000"
    unified.set_read_rate("demo", "node0", "254:0", None)
    assert (unified.directory("io", "demo", "node0") / "io.max").read_text() == "254:0 rbps=max"

    lines = []
    for controller in ("cpu", "cpuset", "memory", "blkio"):
        (tmp_path / controller).mkdir()
        lines.append(f"{tmp_path / controller} rw - cgroup cgroup rw,{controller}")
    separate = discover(_mountinfo(tmp_path / "mountinfo1", *lines))
    assert len(separate.membership_files("old", "node0")) == 3, "a lab without a group for disks is still entered"
    _node(separate, {"blkio.throttle.read_bps_device": ""})
    assert len(separate.membership_files("demo", "node0")) == 4
    separate.set_read_rate("demo", "node0", "254:0", 8e6)
    file = separate.directory("blkio", "demo", "node0") / "blkio.throttle.read_bps_device"
    assert file.read_text() == "254:0 8000000"
    separate.set_read_rate("demo", "node0", "254:0", None)
    assert file.read_text() == "254:0 0"


def test_a_machine_that_holds_no_disks_says_so(separate: Hierarchy) -> None:
    with pytest.raises(CgroupError, match="no blkio"):
        separate.set_read_rate("demo", "node0", "254:0", 8e6)
