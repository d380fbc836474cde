"""The hardware module on synthetic trees: made up after the kernel's documented layout, recorded from no machine."""

from __future__ import annotations

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
        {"name": "0-1", "host": "node1", "receive_bits_per_second": 40e9, "transmit_bits_per_second": 40e9}
    ]


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
