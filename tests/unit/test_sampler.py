"""The sampler: its readers over recorded text and made-up trees; no process, no sleep."""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import salt.payload

from tests.tree import write

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import cgroup
import control_groups
import machine
import memory_bandwidth
import readers
import sample_schema
import thermal_numa


def as_lists(found: dict[str, Any]) -> dict[str, Any]:
    """Return what was read as it is on the wire."""
    read: dict[str, Any] = json.loads(json.dumps(found))
    return read


STAT = """cpu  62153 0 17232 377024 5290 0 217 238 0 0
cpu0 26707 5 7324 196695 176 3 58 116 0 0
cpu1 35445 0 9908 180329 5113 0 159 121 0 0
cpu11 1 0 1 1 1 0 1 1 0 0
intr 787215 0 0 0
ctxt 1
"""
PRESSURE = """some avg10=0.00 avg60=0.12 avg300=0.82 total=50058450
full avg10=0.00 avg60=0.00 avg300=0.00 total=1500000
"""
NET = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier
    lo: 1000 10 0 0 0 0 0 0 1000 10 0 0 0 0 0 0
  eth0: 1600178735   39600    1    2    0     0          0         0  2184622   23566    3    4    0     0      0  0
  usb4:5 6 7 8 0 0 0 0 9 10 11 12 0 0 0 0
"""
MEMINFO = "MemTotal:       24684096 kB\nMemFree:  1 kB\nMemAvailable:   23925832 kB\nBuffers: 2 kB\n"
DISKS = """   7       0 loop0 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9
 254       0 vda 120508 38329 7462770 101065 16855 153978 12053904 48237 0 61208 151406 21322 52 4591920 2054 1226 49
 254       1 vda1 100 100 100 100 100 100 100 100 0 0 0 0 0 0 0 0 0
"""
PROCESS = (
    "1234 (VLLM::Worker (0)) S 1200 1234 1234 0 -1 4194560 1 0 0 0 412 57 0 0 20 0 61 0 99887 3000000 2048 "
    "18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
)


# -- readers


def test_cores_are_seconds_of_the_allowed_cores_only() -> None:
    found = readers.cores(STAT, {"0", "1"})
    assert as_lists(found) == {
        "0": [pytest.approx(340.97), 267.12, pytest.approx(73.85), 1966.95, 1.76, 1.16],
        "1": [pytest.approx(455.12), 354.45, pytest.approx(100.67), 1803.29, 51.13, 1.21],
    }


def test_pressure_is_seconds() -> None:
    assert readers.pressure(PRESSURE) == (pytest.approx(50.05845), 1.5)
    # Before Linux 5.13 there is no "full" line for cpu.
    assert readers.pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=250000\n") == (0.25, 0.0)


def test_links_have_the_order_of_the_analysis() -> None:
    found = readers.links(NET, {"eth0": "ethernet", "usb4": "direct", "absent": "spare"})
    assert as_lists(found) == {
        "ethernet": [1600178735, 2184622, 39600, 23566, 1, 3, 2, 4],
        "direct": [5, 9, 6, 10, 7, 11, 8, 12],
    }


def test_the_cables_of_a_mesh_are_one_link() -> None:
    found = readers.links(NET, {"eth0": "mesh", "usb4": "mesh"})
    assert as_lists(found) == {"mesh": [1600178740, 2184631, 39606, 23576, 8, 14, 10, 16]}


def test_memory_and_disks_are_bytes() -> None:
    assert readers.memory(MEMINFO) == {"total": 24684096 * 1024, "available": 23925832 * 1024}
    assert readers.disks(DISKS, {"vda"}) == {"read_bytes": 7462770 * 512, "write_bytes": 12053904 * 512}


def test_only_whole_disks_are_counted(tmp_path: Path) -> None:
    for name in ("loop0", "nvme0n1", "vda", "dm-0", "zram0"):
        (tmp_path / name).mkdir()
    assert readers.whole_disks(str(tmp_path)) == {"nvme0n1", "vda"}
    assert readers.whole_disks(str(tmp_path / "absent")) == set()


def test_a_process_name_with_blanks_and_brackets() -> None:
    assert readers.process(PROCESS) == (4.12, 0.57, 2048 * 4096)
    assert readers.run_delay("1500000000 250000000 77\n") == (1.5, 0.25)


def test_a_handle_reads_what_is_there_now(tmp_path: Path) -> None:
    write(tmp_path / "file", "one")
    handle = readers.Handle(str(tmp_path / "file"))
    assert handle.read() == "one"
    (tmp_path / "file").write_text("x" * (readers.READ_BYTES + 5))
    assert len(handle.read() or "") == readers.READ_BYTES + 5
    handle.close()
    assert handle.read() is None
    assert readers.Handle(str(tmp_path / "absent")).read() is None


# -- control groups


def test_throttling_of_either_version() -> None:
    assert cgroup.statistics("nr_periods 10\nnr_throttled 3\nthrottled_time 1500000000\n") == (10, 3, 1.5)
    assert cgroup.statistics("usage_usec 5\nnr_periods 4\nnr_throttled 1\nthrottled_usec 250000\n") == (4, 1, 0.25)
    assert cgroup.statistics("usage_usec 5\n") == (0, 0, 0.0)


def test_limits_add_up_every_level_so_that_a_new_quota_makes_no_jump(tmp_path: Path) -> None:
    def level(directory: Path, quota: str, throttled: int) -> None:
        write(directory / "cpu.max", f"{quota} 100000\n")
        write(directory / "cpu.stat", f"nr_periods 10\nnr_throttled 2\nthrottled_usec {throttled}\n")

    level(tmp_path / "node0", "max", 400_000)
    level(tmp_path / "node0/worker", "max", 0)
    parts = [cgroup._Level(str(tmp_path / name), control_groups.VERSION_2) for name in ("node0/worker", "node0")]
    limits = cgroup.Limits(parts)
    before = limits.sample()
    assert before == {"throttled_s": 0.4, "periods": 20, "throttled_periods": 4, "quota_cores": None}
    level(tmp_path / "node0", "30000", 400_000)
    limits.refresh()
    assert limits.sample() == {**before, "quota_cores": 0.3}
    level(tmp_path / "node0", "30000", 900_000)
    assert (limits.sample() or {})["throttled_s"] == pytest.approx(0.9)
    assert cgroup.Limits([]).sample() is None


def test_parts_that_are_lists_travel_as_lists_in_the_order_of_the_schema() -> None:
    row = sample_schema.CoreSeconds(busy=1.0, user=2.0, system=3.0, idle=4.0, iowait=5.0, steal=6.0)
    sent = salt.payload.loads(salt.payload.dumps({"samples": [{"cpu": {"0": row}}]}))
    assert list(sent["samples"][0]["cpu"]["0"]) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert sample_schema.CORE_FIELDS == ("busy", "user", "system", "idle", "iowait", "steal"), (
        "as recorded runs have it"
    )
    assert sample_schema.LINK_FIELDS[:2] == ("receive_bytes", "transmit_bytes")


# -- memory controllers and heat


def test_heat_and_far_memory_are_read_where_the_kernel_tells_them(tmp_path: Path) -> None:
    for core, milliseconds in ((0, 1500), (1, 1500), (2, 40)):
        write(tmp_path / f"cpu/cpu{core}/thermal_throttle/package_throttle_total_time_ms", f"{milliseconds}\n")
    one = tmp_path / "one"
    write(one / "node/node0/numastat", "local_node 5\nother_node 1\n")
    for node in (0, 1):
        write(tmp_path / f"node/node{node}/numastat", f"numa_hit 9\nlocal_node {70 + node}\nother_node {10 * node}\n")
    found = thermal_numa.ThermalNuma(str(tmp_path))
    assert found.thermal() == {"throttled_s": 1.5}
    assert found.numa() == {"local_pages": 141, "remote_pages": 10}
    lone = thermal_numa.ThermalNuma(str(one))
    assert lone.thermal() is None and lone.numa() is None


def test_memory_controllers_are_found_with_their_scale(tmp_path: Path) -> None:
    device = tmp_path / "uncore_imc_free_running_0"
    write(device / "type", "23\n")
    write(device / "cpumask", "0\n")
    for event, number in (("data_read", "0xff,umask=0x20"), ("data_write", "0xff,umask=0x30")):
        write(device / "events" / event, f"event={number}\n")
        write(device / "events" / f"{event}.scale", "6.103515625e-5\n")
        write(device / "events" / f"{event}.unit", "MiB\n")
    assert memory_bandwidth.counters(str(tmp_path)) == [
        ("read_bytes", pytest.approx(64.0), 23, 0x20FF, 0),
        ("write_bytes", pytest.approx(64.0), 23, 0x30FF, 0),
    ]


def test_memory_traffic_where_resource_control_counts_it(tmp_path: Path) -> None:
    write(tmp_path / "mon_data/mon_L3_00/mbm_total_bytes", "1000\n")
    write(tmp_path / "mon_data/mon_L3_01/mbm_total_bytes", "Unavailable\n")
    found = memory_bandwidth.MemoryBandwidth(str(tmp_path / "none"), str(tmp_path))
    assert found.sample() == {"total_bytes": 1000}
    assert memory_bandwidth.MemoryBandwidth(str(tmp_path / "none"), str(tmp_path / "none")).sample() is None


def test_counts_become_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reading = tmp_path / "counter"
    reading.write_bytes(struct.pack("=Q", 10))
    monkeypatch.setattr(memory_bandwidth, "counters", lambda directory: [("read_bytes", 64.0, 23, 1, 0)])
    monkeypatch.setattr(memory_bandwidth, "open_counter", lambda *_, **__: reading.open("rb").fileno())
    monkeypatch.setattr("os.read", lambda descriptor, size: struct.pack("=Q", 10))
    assert memory_bandwidth.MemoryBandwidth().sample() == {"read_bytes": 640.0}


# -- the sampler as a whole


def test_a_source_in_an_unknown_form_is_left_out_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def _broken(sample: dict[str, Any]) -> None:
        raise ValueError("a new kernel")

    def _whole(sample: dict[str, Any]) -> None:
        sample["whole"] = 1

    found = machine.Machine.__new__(machine.Machine)
    sources: list[Callable[[dict[str, Any]], None]] = [_broken, _whole]
    sample: dict[str, Any] = {}
    found._run(sources, sample)
    assert sample == {"whole": 1}
    assert sources == [_whole]
    assert "broken is left out" in capsys.readouterr().err


def test_a_reading_in_an_unknown_form_costs_itself_alone(capsys: pytest.CaptureFixture[str]) -> None:
    found = machine.Machine({"local": ["lo"]}, "/nowhere")
    ten = [found.read(float(second), second == 0) for second in range(10)]
    now, slow, sources, texts, read = ten[3]
    ten[3] = (now, slow, sources, ["cpu0 1 two" if text == texts[0] else text for text in texts], read)
    found._cores = {"0"}
    samples = found.parse(ten)
    assert [sample["t"] for sample in samples] == list(range(10))
    assert ["cpu" in sample for sample in samples] == [True] * 3 + [False] * 7
    assert all("local" in sample["links"] for sample in samples)
    assert capsys.readouterr().err.count("cpu is left out") == 1
