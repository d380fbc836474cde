"""The hardware module on synthetic trees: made up after the kernel's documented layout, recorded from no machine."""

from __future__ import annotations

import struct
from pathlib import Path
from types import ModuleType

import pytest

from tests.by_file import load

REPOSITORY = Path(__file__).parents[2]
GIB = 2**30


@pytest.fixture(scope="module")
def hardware() -> ModuleType:
    return load("_modules/hardware.py")


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def arc_node(root: Path, window_bytes: int = 16 * GIB, driver: str | None = "i915", lanes: int = 16) -> Path:
    """Make the tree of a board with an Arc card, whose own switch stands between the slot and the chip."""
    slot = root / "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    chip = slot / "0000:02:01.0/0000:03:00.0"
    for name, text in {"vendor": "0x8086", "device": "0x56a0", "class": "0x030000", "numa_node": 0}.items():
        write(chip / name, text)
    # What the chip says of its own link is made up by the card: one lane of the first generation.
    for device, width, speed in ((chip, 1, "2.5"), (slot, lanes, "16.0")):
        write(device / "current_link_width", width)
        write(device / "max_link_width", width)
        write(device / "current_link_speed", f"{speed} GT/s PCIe")
        write(device / "max_link_speed", f"{speed} GT/s PCIe")
    start = 0x4000000000
    windows = [
        f"{0x60000000:#018x} {0x60FFFFFF:#018x} 0x0000000000140204",
        f"{start:#018x} {start + window_bytes - 1:#018x} 0x000000000014220c",
        f"{0:#018x} {0:#018x} 0x0000000000000000",
    ]
    write(chip / "resource", "\n".join(windows))
    write(chip / "hwmon/hwmon3/temp1_input", 61000)
    link(root / "sys/bus/pci/devices/0000:03:00.0", chip)
    if driver:
        (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True)
        link(chip / "driver", root / "sys/bus/pci/drivers" / driver)
    # No accelerator: a network card.
    write(root / "sys/devices/pci0000:00/0000:00:1f.6/class", "0x020000")
    link(root / "sys/bus/pci/devices/0000:00:1f.6", root / "sys/devices/pci0000:00/0000:00:1f.6")
    return root


def test_a_card_behind_its_own_switch(hardware: ModuleType, tmp_path: Path) -> None:
    (found,) = hardware.accelerators(str(arc_node(tmp_path)))
    assert found["address"] == "0000:03:00.0"
    assert (found["vendor"], found["device"], found["driver"]) == ("0x8086", "0x56a0", "i915")
    assert found["link"] == {
        "device": "0000:01:00.0",
        "lanes": 16,
        "most_lanes": 16,
        "transfers_per_second": 16e9,
        "most_transfers_per_second": 16e9,
    }
    assert found["largest_window_bytes"] == 16 * GIB
    assert (found["numa_node"], found["temperature_celsius"]) == (0, 61.0)


def test_a_card_right_below_the_root_port(hardware: ModuleType, tmp_path: Path) -> None:
    card = tmp_path / "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    write(card / "class", "0x120000")
    write(card / "current_link_width", 8)
    write(card / "current_link_speed", "8.0 GT/s PCIe")
    link(tmp_path / "sys/bus/pci/devices/0000:01:00.0", card)
    (found,) = hardware.accelerators(str(tmp_path))
    assert found["link"]["device"] == "0000:01:00.0"
    assert (found["link"]["lanes"], found["link"]["transfers_per_second"]) == (8, 8e9)
    assert found["driver"] is None
    assert found["largest_window_bytes"] is None


def test_an_npu_on_the_processors_chip_has_no_link(hardware: ModuleType, tmp_path: Path) -> None:
    npu = tmp_path / "sys/devices/pci0000:00/0000:00:08.2"
    write(npu / "class", "0x118000")
    write(npu / "vendor", "0x1022")
    link(tmp_path / "sys/bus/pci/devices/0000:00:08.2", npu)
    (found,) = hardware.accelerators(str(tmp_path))
    assert (found["vendor"], found["link"]) == ("0x1022", None)


def test_usb4_tells_hosts_and_their_lanes(hardware: ModuleType, tmp_path: Path) -> None:
    devices = tmp_path / "sys/bus/thunderbolt/devices"
    write(devices / "0-0/unique_id", "self")
    write(devices / "0-0/rx_speed", "20.0 Gb/s")
    for name, text in {
        "unique_id": "x",
        "device_name": "node1",
        "rx_speed": "20.0 Gb/s",
        "rx_lanes": 2,
        "tx_speed": "20.0 Gb/s",
        "tx_lanes": 2,
    }.items():
        write(devices / "0-1" / name, text)
    (devices / "domain0").mkdir()
    assert hardware.usb4(str(tmp_path)) == [
        {
            "name": "0-1",
            "host": "node1",
            "receive_bits_per_second": 40e9,
            "transmit_bits_per_second": 40e9,
            "lanes": 2,
        }
    ]


def usb4_host(root: Path, microseconds: float = 128, status: str = "active", registers: bool = True) -> Path:
    """Make a USB4 host interface whose registers are a plain file, laid out as drivers/thunderbolt/nhi_regs.h says."""
    host = root / "sys/bus/pci/devices/0000:00:0d.2"
    write(host / "class", "0x0c0340")
    write(host / "power/runtime_status", status)
    content = bytearray(0x40000)
    for vector in range(16):
        struct.pack_into("<I", content, 0x38C00 + 4 * vector, round(microseconds * 1000 / 256))
    if registers:
        (host / "resource0").write_bytes(content)
    return host


def test_how_long_a_usb4_host_holds_interrupts_back(hardware: ModuleType, tmp_path: Path) -> None:
    usb4_host(tmp_path)
    assert hardware.usb4_hosts(str(tmp_path)) == [
        {"address": "0000:00:0d.2", "driver": None, "interrupt_interval_seconds": pytest.approx(128e-6)}
    ]


def test_it_can_be_told_to_hold_them_back_shorter(hardware: ModuleType, tmp_path: Path) -> None:
    host = usb4_host(tmp_path)
    (state,) = hardware.set_usb4_interrupt_interval(8e-6, str(tmp_path))
    assert state["interrupt_interval_seconds"] == pytest.approx(8e-6, rel=0.05)
    content = (host / "resource0").read_bytes()
    assert struct.unpack_from("<16I", content, 0x38C00) == (31,) * 16
    assert not any(content[:0x38C00]) and not any(content[0x38C40:]), "no other register was touched"


@pytest.mark.parametrize("seconds", [-1e-6, 1.0])
def test_an_interval_out_of_range_is_refused(hardware: ModuleType, tmp_path: Path, seconds: float) -> None:
    usb4_host(tmp_path)
    with pytest.raises(ValueError, match=r"expected between 0 and 0\.016"):
        hardware.set_usb4_interrupt_interval(seconds, str(tmp_path))


def test_registers_out_of_reach_are_not_guessed(hardware: ModuleType, tmp_path: Path) -> None:
    for name, status, registers in (("asleep", "suspended", True), ("kept", "active", False)):
        usb4_host(tmp_path / name, status=status, registers=registers)
        (found,) = hardware.usb4_hosts(str(tmp_path / name))
        assert found["interrupt_interval_seconds"] is None
        with pytest.raises(RuntimeError, match="cannot be written"):
            hardware.set_usb4_interrupt_interval(8e-6, str(tmp_path / name))
    with pytest.raises(RuntimeError, match="no USB4 host interface"):
        hardware.set_usb4_interrupt_interval(8e-6, str(tmp_path / "none"))


def test_links_tell_packets_state_and_speed(hardware: ModuleType, tmp_path: Path) -> None:
    net = tmp_path / "sys/class/net"
    for name, mtu, state, speed in (
        ("lo", 65536, "unknown", ""),
        ("eth0", 1500, "up", 2500),
        ("usb0", 9000, "down", -1),
    ):
        write(net / name / "mtu", mtu)
        write(net / name / "operstate", state)
        write(net / name / "speed", speed)
    assert hardware.links(str(tmp_path)) == {
        "eth0": {"mtu_bytes": 1500, "state": "up", "bits_per_second": 2.5e9, "driver": None},
        "usb0": {"mtu_bytes": 9000, "state": "down", "bits_per_second": None, "driver": None},
    }


LOG = """6,0,0,-;Linux version 6.12.48+deb13-amd64
3,800,2000001,-;i915 0000:03:00.0: firmware: failed to load i915/dg2_guc_70.bin (-2)
 SUBSYSTEM=pci
4,801,2000002,-;i915 0000:03:00.0: Direct firmware load for i915/dg2_guc_70.bin failed with error -2
3,802,2000003,-;xe 0000:04:00.0: [drm] GuC firmware xe/bmg_guc_70.bin: fetch failed with error -ENOENT
3,803,2000004,-;i915 0000:03:00.0: [drm] *ERROR* GT0: Failed to initialize GPU, declaring it wedged!
6,804,2000005,-;amdgpu 0000:c1:00.0: firmware: direct-loading firmware amdgpu/gc_11_5_1_me.bin
"""


def test_the_kernels_log_tells_what_firmware_a_driver_missed(hardware: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "dev/kmsg", LOG)
    assert hardware.kernel_log(str(tmp_path)) == {
        "complete": True,
        "firmware_missing": ["i915/dg2_guc_70.bin", "xe/bmg_guc_70.bin"],
        "given_up": ["i915 0000:03:00.0: [drm] *ERROR* GT0: Failed to initialize GPU, declaring it wedged!"],
    }
    write(tmp_path / "dev/kmsg", LOG.split("\n", 1)[1])
    assert hardware.kernel_log(str(tmp_path))["complete"] is False, "its beginning was overwritten"
    assert hardware.kernel_log(str(tmp_path / "none")) == {"complete": False, "firmware_missing": [], "given_up": []}


def test_firmware_heat_and_numa(hardware: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "sys/class/dmi/id/board_name", "MPG Z690 CARBON WIFI")
    write(tmp_path / "sys/class/dmi/id/bios_version", "1.B0")
    (tmp_path / "sys/firmware/efi").mkdir(parents=True)
    for number, name, value in ((0, "coretemp", 45000), (1, "nvme", 38850), (2, "coretemp", 52000)):
        write(tmp_path / f"sys/class/hwmon/hwmon{number}/name", name)
        write(tmp_path / f"sys/class/hwmon/hwmon{number}/temp1_input", value)
    for number in range(2):
        (tmp_path / f"sys/devices/system/node/node{number}").mkdir(parents=True)
    facts = hardware.facts(str(tmp_path))
    assert facts["firmware"] == {
        "board": "MPG Z690 CARBON WIFI",
        "vendor": None,
        "version": "1.B0",
        "date": None,
        "uefi": True,
    }
    assert facts["temperatures_celsius"] == {"coretemp": 52.0, "nvme": 38.85}
    assert facts["numa_nodes"] == 2


def test_a_tree_with_nothing_in_it(hardware: ModuleType, tmp_path: Path) -> None:
    facts = hardware.facts(str(tmp_path))
    assert (facts["accelerators"], facts["usb4"], facts["temperatures_celsius"]) == ([], [], {})
    assert facts["firmware"]["uefi"] is False


def test_this_machine_can_be_read(hardware: ModuleType) -> None:
    facts = hardware.facts()
    assert facts["kernel"] == Path("/proc/sys/kernel/osrelease").read_text().strip()
