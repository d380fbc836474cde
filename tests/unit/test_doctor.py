"""The doctor's judgement: what was seen against what the profile says, with a mend for all that is not well."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bottleneck.profile import Profile, find_profile, load_profile
from cli.doctor import command
from cli.doctor.check import Check
from cli.doctor.chips import find_chip, table
from cli.doctor.control import judge_control
from cli.doctor.inspection import discover, server_of
from cli.doctor.nodes import judge_node
from cli.main import app
from remote.control_interface import ControlError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(find_profile("arc-a770/v0.1"))


WELL: dict[str, Any] = {
    "system": "Debian GNU/Linux 13 (trixie)",
    "interface": {
        "exists": True,
        "state": "up",
        "addresses": ["10.40.0.1/24"],
        "default_routes": ["enp3s0"],
        "others": ["enp3s0", "enx8cae4cf44e21"],
    },
    "listeners": [
        {"protocol": "tcp", "address": "10.40.0.1", "port": 4505, "program": "salt-master"},
        {"protocol": "tcp", "address": "10.40.0.1", "port": 4506, "program": "salt-master"},
        {"protocol": "tcp", "address": "10.40.0.1", "port": 9477, "program": "salt-master"},
        {"protocol": "tcp", "address": "10.40.0.1", "port": 8069, "program": "salt-master"},
        {"protocol": "tcp", "address": "10.40.0.1", "port": 8000, "program": "haproxy"},
        {"protocol": "udp", "address": "0.0.0.0%enx8cae4cf44e21", "port": 67, "program": "dnsmasq"},
        {"protocol": "udp", "address": "10.40.0.1", "port": 69, "program": "dnsmasq"},
        # On another interface, which is nobody's business here.
        {"protocol": "udp", "address": "192.168.1.5", "port": 69, "program": "in.tftpd"},
    ],
    "services": dict.fromkeys(("salt-master", "cluster-dnsmasq", "chrony"), "active"),
    "salt": "3008.3",
    "disk": {"/": [500 * 10**9, 300 * 10**9]},
    "clock": "yes",
    "keys": {"accepted": ["node0", "node1"], "pending": [], "denied": []},
    "pki_mode": 0o700,
    "images": {"arc-a770": {"digest": "0123456789abcdef", "missing": []}},
    "dhcp": {"asked": True, "servers": ["10.40.0.1"]},
}


def control(profile: Profile, **changes: Any) -> list[Check]:
    return list(judge_control(profile, {**copy.deepcopy(WELL), **changes}, 0.1, "3008.3"))


def bad(checks: list[Check]) -> dict[str, Check]:
    return {check.what: check for check in checks if check.status != "ok"}


def test_a_control_node_that_is_well(profile: Profile) -> None:
    assert bad(control(profile)) == {}


@pytest.mark.parametrize(
    ("changes", "what", "status", "evidence"),
    [
        (
            {"interface": {**WELL["interface"], "exists": False}},
            "interface",
            "failed",
            "no enx8cae4cf44e21; there are enp3s0",
        ),
        ({"interface": {**WELL["interface"], "state": "down"}}, "interface", "failed", "is down"),
        ({"interface": {**WELL["interface"], "addresses": []}}, "address", "failed", "none; expected 10.40.0.1/24"),
        (
            {"interface": {**WELL["interface"], "default_routes": ["enx8cae4cf44e21"]}},
            "default route",
            "failed",
            "over enx8cae4cf44e21",
        ),
        (
            {"dhcp": {"asked": True, "servers": ["10.40.0.1", "10.40.0.9"]}},
            "other DHCP servers",
            "failed",
            "10.40.0.9 answered",
        ),
        ({"dhcp": {"asked": False, "reason": "busy"}}, "other DHCP servers", "unknown", "busy"),
        ({"listeners": WELL["listeners"][1:]}, "port 4505/tcp", "failed", "nobody listens"),
        (
            {"listeners": [each for each in WELL["listeners"] if each["port"] != 9477]},
            "port 9477/tcp",
            "failed",
            "nobody listens",
        ),
        (
            {"listeners": [*WELL["listeners"], {"protocol": "udp", "address": "*", "port": 69, "program": "in.tftpd"}]},
            "port 69/udp",
            "failed",
            "held by dnsmasq, in.tftpd",
        ),
        ({"services": {"chrony": "failed"}}, "chrony", "failed", "systemd says failed"),
        ({"salt": "3007.1"}, "Salt", "failed", "3007.1; the lock file has 3008.3"),
        ({"disk": {"/": [10**11, 10**9]}}, "disk /", "warning", "1.0 of 100.0 GB free"),
        ({"clock": "no"}, "time servers", "warning", "no time server"),
        ({"pki_mode": 0o755}, "key folder", "failed", "mode 0755"),
        ({"pki_mode": None}, "keys", "failed", "none yet"),
        ({"keys": {"accepted": ["node0"]}}, "keys of nodes", "warning", "accepted: node0"),
        ({"keys": {"accepted": ["node0", "node1", "evil"]}}, "foreign keys", "failed", "evil"),
        ({"keys": {**WELL["keys"], "denied": ["node0"]}}, "keys not let in", "warning", "denied: node0"),
        ({"images": {}}, "image", "failed", "no active image"),
        ({"images": {"arc-a770": {"digest": "x", "missing": ["vmlinuz"]}}}, "image", "failed", "without vmlinuz"),
    ],
)
def test_what_is_wrong_there_is_named_with_its_mend(
    profile: Profile, changes: dict[str, Any], what: str, status: str, evidence: str
) -> None:
    found = bad(control(profile, **changes))
    assert list(found) == [what]
    assert found[what].status == status
    assert evidence in found[what].evidence
    assert found[what].mend


def test_a_clock_that_is_off(profile: Profile) -> None:
    (found,) = [each for each in judge_control(profile, WELL, -7.0, "3008.3") if each.what == "clock"]
    assert (found.status, found.evidence) == ("warning", "-7.00 s from this laptop's")


CARD: dict[str, Any] = {
    "address": "0000:03:00.0",
    "vendor": "0x8086",
    "device": "0x56a0",
    "driver": "i915",
    "link": {
        "device": "0000:01:00.0",
        "lanes": 16,
        "most_lanes": 16,
        "transfers_per_second": 2.5e9,
        "most_transfers_per_second": 16e9,
    },
    "largest_window_bytes": 16 * 2**30,
    "temperature_celsius": 60.0,
}
CABLE = {"name": "0-1", "host": "node1", "receive_bits_per_second": 40e9, "transmit_bits_per_second": 40e9, "lanes": 2}
HOST = {"address": "0000:00:0d.2", "driver": "thunderbolt", "interrupt_interval_seconds": 8e-6}
INTERFACES: dict[str, Any] = {
    "eth0": {"mtu_bytes": 1500, "state": "up", "bits_per_second": 2.5e9, "driver": "igc"},
    "thunderbolt0": {"mtu_bytes": 9000, "state": "up", "bits_per_second": None, "driver": "thunderbolt-net"},
}
LOG: dict[str, Any] = {"complete": True, "firmware_missing": [], "given_up": []}
FACTS: dict[str, Any] = {
    "accelerators": [CARD],
    "usb4": [CABLE],
    "usb4_hosts": [HOST],
    "links": INTERFACES,
    "kernel_log": LOG,
    "firmware": {"board": "MPG", "vendor": "AMI", "version": "1", "date": "2026", "uefi": True},
    "numa_nodes": 1,
    "cpus_online": "0-15",
    "temperatures_celsius": {"coretemp": 50.0},
    "kernel": "6.12",
}


def test_a_node_that_is_well(profile: Profile) -> None:
    assert bad(list(judge_node(profile, "node0", FACTS))) == {}


@pytest.mark.parametrize(
    ("changes", "what", "evidence", "mend"),
    [
        ({"accelerators": []}, "accelerator", "0 found; expected 1 Intel Arc A770", "reseat"),
        (
            {"accelerators": [{**CARD, "driver": "xe"}]},
            "driver",
            "bound to xe; expected i915",
            "echo 0000:03:00.0 > /sys/bus/pci/drivers/i915/bind'; to last: boot.kernel_line of the profile with"
            " i915.force_probe=56a0",
        ),
        ({"accelerators": [{**CARD, "driver": "vfio-pci"}]}, "driver", "bound to vfio-pci", "driver_override"),
        ({"accelerators": [{**CARD, "driver": None}]}, "driver", "bound to no driver", "modprobe i915"),
        (
            {"accelerators": [{**CARD, "largest_window_bytes": 2**28}]},
            "Resizable BAR",
            "256 MiB",
            "Above 4G Decoding",
        ),
        (
            {"accelerators": [{**CARD, "link": {**CARD["link"], "lanes": 4}}]},
            "PCIe",
            "4 lanes of generation 1 (at most 16 of generation 4); expected 16 of generation 4",
            "lspci -vv -s 0000:03:00.0",
        ),
        (
            {"accelerators": [{**CARD, "link": {**CARD["link"], "most_transfers_per_second": 8e9}}]},
            "PCIe",
            "expected 16",
            "reseat the card",
        ),
        ({"accelerators": [{**CARD, "link": None}]}, "PCIe", "tells no link", "lspci"),
        ({"accelerators": [{**CARD, "temperature_celsius": 97.0}]}, "accelerator's temperature", "97", "fans"),
        ({"kernel": "6.1.0-38-amd64"}, "kernel for the chip", "6.1.0-38-amd64; Arc A770 needs 6.2", "image build"),
        (
            {"kernel_log": {**LOG, "firmware_missing": ["regulatory.db", "i915/dg2_guc_70.bin"]}},
            "driver's firmware",
            "not found: i915/dg2_guc_70.bin",
            "firmware-intel-graphics",
        ),
        (
            {"kernel_log": {**LOG, "given_up": ["i915 0000:03:00.0: [drm] *ERROR* GT0: GuC initialization failed"]}},
            "driver's firmware",
            "given up: i915 0000:03:00.0",
            "dmesg",
        ),
        ({"kernel_log": {**LOG, "complete": False}}, "driver's firmware", "no longer begins at the boot", "journalctl"),
        ({"usb4": []}, "USB4", "0 hosts", "modprobe thunderbolt_net"),
        ({"usb4": [{**CABLE, "receive_bits_per_second": 5e9}]}, "USB4", "5 Gbit/s", "certified"),
        (
            {"usb4": [{**CABLE, "receive_bits_per_second": 20e9, "transmit_bits_per_second": 20e9}]},
            "USB4",
            "20 Gbit/s, 20 Gbit/s over 2 lanes; the profile counts on 10, a cable can carry 40",
            "unplug Ethernet at both ends",
        ),
        ({"usb4_hosts": []}, "USB4 interrupts", "no USB4 host interface", "modprobe thunderbolt"),
        (
            {"usb4_hosts": [{**HOST, "interrupt_interval_seconds": 128e-6}]},
            "USB4 interrupts",
            "0000:00:0d.2 holds them back for up to 128 us",
            "salt node0 hardware.set_usb4_interrupt_interval 8e-06",
        ),
        ({"usb4_hosts": [{**HOST, "interrupt_interval_seconds": None}]}, "USB4 interrupts", "cannot be read", "again"),
        (
            {"links": {**INTERFACES, "thunderbolt0": {**INTERFACES["thunderbolt0"], "mtu_bytes": 1500}}},
            "link usb4",
            "packets of 1500 bytes; the profile says 9000",
            "ip link set thunderbolt0 mtu 9000",
        ),
        ({"links": {"eth0": INTERFACES["eth0"]}}, "link usb4", "no thunderbolt0; there are eth0", "plug it in"),
        (
            {"links": {**INTERFACES, "eth0": {**INTERFACES["eth0"], "state": "down"}}},
            "link ethernet",
            "eth0 is down",
            "its cable",
        ),
        ({"firmware": {**FACTS["firmware"], "uefi": False}}, "firmware", "booted by bios; expected uefi", "boot mode"),
        ({"temperatures_celsius": {"nvme": 95.0}}, "temperature", "nvme: 95", "fans"),
    ],
)
def test_what_is_wrong_on_a_node_is_named_with_its_mend(
    profile: Profile, changes: dict[str, Any], what: str, evidence: str, mend: str
) -> None:
    found = bad(list(judge_node(profile, "node0", {**FACTS, **changes})))
    assert list(found) == [what]
    assert evidence in found[what].evidence
    assert mend in found[what].mend


def test_a_link_at_half_its_rate_is_a_warning_while_the_profile_has_what_it_counts_on(profile: Profile) -> None:
    half = {**CABLE, "receive_bits_per_second": 20e9, "transmit_bits_per_second": 20e9}
    slow = {**CABLE, "receive_bits_per_second": 5e9, "transmit_bits_per_second": 5e9}
    assert bad(list(judge_node(profile, "node0", {**FACTS, "usb4": [half]})))["USB4"].status == "warning"
    assert bad(list(judge_node(profile, "node0", {**FACTS, "usb4": [slow]})))["USB4"].status == "failed"


def test_a_ryzen_ai_max_wants_a_later_kernel_than_trixie_has() -> None:
    planned = load_profile(find_profile("ryzen-ai-max/v0.2"))
    card = {**CARD, "vendor": "0x1002", "device": "0x1586", "driver": "amdgpu", "link": None}
    for kernel, well in (("6.12.48+deb13-amd64", False), ("6.18.3", False), ("6.18.4", True), ("7.2.0-amd64", True)):
        found = bad(list(judge_node(planned, "node0", {**FACTS, "accelerators": [card], "kernel": kernel})))
        assert ("kernel for the chip" not in found) == well


def test_a_module_of_before_says_less_and_is_judged_by_that(profile: Profile) -> None:
    before = {key: value for key, value in FACTS.items() if key not in ("usb4_hosts", "links", "kernel_log")}
    assert bad(list(judge_node(profile, "node0", before))) == {}


def test_every_chip_is_of_a_vendor_that_a_kind_names() -> None:
    known = table()
    assert {chip.vendor for chip in known.chips} <= set(known.vendors.values())
    assert find_chip("0x8086", "0x56a0") and find_chip(None, None) is None


def test_a_chip_on_the_processor_beside_the_card_is_no_second_card(profile: Profile) -> None:
    onboard = {**CARD, "address": "0000:00:02.0", "driver": None, "link": None}
    assert bad(list(judge_node(profile, "node0", {**FACTS, "accelerators": [onboard, CARD]}))) == {}


def test_a_node_that_is_silent(profile: Profile) -> None:
    (found,) = judge_node(profile, "node1", None)
    assert (found.status, found.what) == ("failed", "Salt")


def test_the_question_for_other_servers_is_what_rfc_2131_says() -> None:
    packet = discover()
    assert len(packet) == 240 + 9
    assert packet[:4] == bytes([1, 1, 6, 0])
    assert packet[10:12] == b"\x80\x00"
    assert packet[28] & 0x03 == 2, "a locally administered address of one station"
    assert packet[236:243] == bytes.fromhex("63825363") + bytes([53, 1, 1])


def test_an_offer_is_read_and_nothing_else_is() -> None:
    transaction = b"abcd"
    offer = bytes([2, 1, 6, 0]) + transaction + bytes(228) + bytes.fromhex("63825363")
    options = bytes([0, 53, 1, 2, 54, 4, 10, 0, 0, 7, 255])
    assert server_of(offer + options, transaction) == "10.0.0.7"
    assert server_of(offer + options, b"efgh") is None
    assert server_of(bytes([1]) + offer[1:] + options, transaction) is None
    assert server_of(offer + bytes([54, 4, 10]), transaction) is None
    for length in range(len(offer + options)):
        server_of((offer + options)[:length], transaction)


class FakeControl:
    lab = ""


@pytest.fixture
def well_laptop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A laptop whose programs are there; nothing of this machine is asked."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(command, "check_laptop", lambda target: [Check("laptop", "ssh", "ok", "OpenSSH_10.0p2")])


@pytest.mark.usefixtures("well_laptop")
def test_the_command_prints_each_line_and_ends_with_what_was_found(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "check_reach", lambda target: Check("laptop", "control node", "ok", "yes"))
    monkeypatch.setattr(command, "connect", lambda profile, lab: FakeControl())
    monkeypatch.setattr(command, "inspect", lambda control, profile, target: ({**WELL, "salt": None}, 0.0))
    monkeypatch.setattr(command, "node_facts", lambda control, profile: {"node0": FACTS})
    look = {
        "kind": "xpu",
        "what": "sees the card",
        "is_well": False,
        "evidence": "CPU; expected GPU",
        "next": "on NODE",
    }
    monkeypatch.setattr(command, "engine_checks", lambda control, profile: {"node0": [look]})
    words = ["--control", "root@nuc", "doctor", "--profile", "arc-a770/v0.1", "--problems"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    failed = {(each["place"], each["what"]) for each in document["checks"] if each["status"] == "failed"}
    assert {("control", "Salt"), ("node1", "Salt"), ("node0", "xpu: sees the card")} <= failed
    text = CliRunner().invoke(app, words).output
    assert "not installed" in text
    assert "mend: cluster control init" in text


@pytest.mark.usefixtures("well_laptop")
def test_a_question_that_nobody_answers_in_time_is_a_line_of_its_own(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(control: object, profile: Profile) -> dict[str, Any]:
        raise ControlError("salt did not finish within 300 s")

    monkeypatch.setattr(command, "check_reach", lambda target: Check("laptop", "control node", "ok", "yes"))
    monkeypatch.setattr(command, "connect", lambda profile, lab: FakeControl())
    monkeypatch.setattr(command, "inspect", lambda control, profile, target: (WELL, 0.0))
    monkeypatch.setattr(command, "node_facts", silent)
    words = ["--control", "root@nuc", "doctor", "--profile", "arc-a770/v0.1", "--problems", "--json"]
    checks = json.loads(CliRunner().invoke(app, words).stdout)["checks"]
    assert ("unknown", "salt did not finish within 300 s") in [(each["status"], each["evidence"]) for each in checks]


@pytest.mark.usefixtures("well_laptop")
def test_a_control_node_out_of_reach_ends_with_4(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Check("laptop", "control node", "failed", "cannot reach root@nuc: No route to host", "cluster doctor")
    monkeypatch.setattr(command, "check_reach", lambda target: gone)
    result = CliRunner().invoke(app, ["--control", "root@nuc", "doctor", "--profile", "arc-a770/v0.1"])
    assert result.exit_code == 4
    assert "No route to host" in result.output


def test_the_lock_file_names_a_version_of_salt() -> None:
    assert command.locked_salt().startswith("3008.")
