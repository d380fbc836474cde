"""dnsmasq's configuration, the iPXE scripts, and what dnsmasq's log says."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bottleneck.profile import load_profile
from netboot.boot import dhcp_log, kernel_tables, rendering, write
from netboot.boot.architectures import ARCHITECTURES, architecture, unsupported
from netboot.boot.dhcp_log import Reader, Tail
from netboot.boot.images import Bootable
from netboot.boot.rate_limit import SOURCES_KEPT, Budget
from netboot.boot.settings import Settings, plain_mac
from tests import boot_profile

MACS = {"node0": "02:77:00:00:00:10", "node1": "02:77:00:00:00:11"}


def settings_of(folder: Path, **boot: object) -> Settings:
    links = {
        name: {"interface": "eth0", "mac": mac, "address": f"10.9.0.{10 + number}"}
        for number, (name, mac) in enumerate(MACS.items())
    }
    described = boot_profile.described(
        "texts", {"address": "10.9.0.1", "interface": "cluster0"}, "10.9.0.0/24", links, boot
    )
    return Settings.of(load_profile(boot_profile.write(folder / "texts.yaml", described)))


def configuration(settings: Settings) -> list[str]:
    folder = Path("/run/cluster-test")
    text = rendering.dnsmasq_configuration(
        settings, tftp_directory=folder / "tftp", run_directory=folder, log_file=folder / "log"
    )
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_dhcp_is_on_the_one_interface_and_for_the_nodes_alone(tmp_path: Path) -> None:
    lines = configuration(settings_of(tmp_path))
    assert {"port=0", "interface=cluster0", "bind-interfaces", "except-interface=lo", "dhcp-ignore=tag:!known"} <= set(
        lines
    )
    assert "dhcp-range=10.9.0.0,static,255.255.255.0,3600" in lines
    assert [line for line in lines if line.startswith("dhcp-host=")] == [
        "dhcp-host=02:77:00:00:00:10,10.9.0.10,node0,set:node",
        "dhcp-host=02:77:00:00:00:11,10.9.0.11,node1,set:node",
    ]


def test_beside_another_dhcp_server_it_gives_no_addresses(tmp_path: Path) -> None:
    lines = configuration(settings_of(tmp_path, dhcp="proxy"))
    assert "dhcp-range=10.9.0.0,proxy,255.255.255.0" in lines
    assert not [line for line in lines if line.startswith(("enable-ra", "dhcp-authoritative", "dhcp-leasefile"))]
    assert 'pxe-service=tag:ipxe,x86PC,"cluster texts",tftp://10.9.0.1/first.ipxe' in lines


@pytest.mark.starts_programs
@pytest.mark.parametrize("dhcp", ["serve", "proxy"])
def test_dnsmasq_takes_the_configuration(tmp_path: Path, dhcp: str) -> None:
    settings = settings_of(tmp_path, dhcp=dhcp)
    ipxe = tmp_path / "ipxe"
    ipxe.mkdir()
    for name in rendering.IPXE_FILES:
        (ipxe / name).write_bytes(name.encode())
    changed = rendering.write_all(settings, tmp_path / "out", log_file=tmp_path / "log", ipxe=ipxe)
    assert len(changed) == 4
    assert rendering.write_all(settings, tmp_path / "out", log_file=tmp_path / "log", ipxe=ipxe) == []
    program = Path("/usr/sbin/dnsmasq")
    if not program.exists():
        pytest.skip("dnsmasq is not installed (setup/packages test)")
    checked = subprocess.run(
        [program, "--test", f"--conf-file={tmp_path / 'out' / 'dnsmasq.conf'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_the_boot_script_carries_what_the_node_needs(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, kernel_line=["intel_iommu=on"])
    image = Bootable("1" * 16, "2" * 64, ("3" * 64, "4" * 64))
    script = rendering.boot_script(settings, settings.nodes["node0"], "b" * 32, "a" * 64, image)
    kernel = next(line for line in script.splitlines() if line.startswith("kernel "))
    assert script.startswith("#!ipxe\n")
    for word in (
        "initrd=initrd.img",
        "intel_iommu=on",
        "cluster.url=http://10.9.0.1:8069",
        f"cluster.boot={'b' * 32}",
        "cluster.node=node0",
        "cluster.id=node0",
        f"cluster.image={'1' * 16}",
        f"cluster.sha256={'2' * 64}",
        f"cluster.layers={'3' * 64},{'4' * 64}",
        f"cluster.nonce={'a' * 64}",
        "BOOTIF=01-${netX/mac:hexhyp}",
        "systemd.machine_id=${uuid:hexraw}",
    ):
        assert f" {word} " in f"{kernel} ".replace(" || goto failed", " ")
    # The kernel takes 2047 bytes and drops the rest, silently.
    assert len(kernel) < 2000


def test_every_fetch_of_a_script_has_a_way_on(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    image = Bootable("1" * 16, "2" * 64)
    boot = rendering.boot_script(settings, settings.nodes["node0"], "b" * 32, "a" * 64, image)
    for script in (rendering.first_script(settings), boot):
        for line in script.splitlines():
            if line.split(" ")[0] in ("chain", "kernel", "initrd", "imgfetch", "boot"):
                assert "||" in line, line


def test_the_advertised_network_is_private_and_always_the_same(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    assert rendering.advertised_network(settings).is_private
    assert rendering.advertised_address(settings) == rendering.advertised_address(settings)


def test_writing_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write.main(["embedded", str(tmp_path)]) == 1
    assert "has no section boot" in capsys.readouterr().err


LOG = """\
Nov 24 09:28:27 dnsmasq-dhcp[6014]: 11 available DHCP subnet: 10.99.7.0/255.255.255.0
Nov 24 09:28:27 dnsmasq-dhcp[6014]: 11 vendor class: PXEClient:Arch:00007:UNDI:003001
Nov 24 09:28:27 dnsmasq-dhcp[6014]: 11 DHCPDISCOVER(cluster0) 02:77:00:00:00:10
Nov 24 09:28:27 dnsmasq-dhcp[6014]: 11 DHCPOFFER(cluster0) 10.9.0.10 02:77:00:00:00:10
Nov 24 09:28:28 dnsmasq-dhcp[6014]: 11 vendor class: PXEClient:Arch:00007:UNDI:003001
Nov 24 09:28:28 dnsmasq-dhcp[6014]: 11 DHCPACK(cluster0) 10.9.0.10 02:77:00:00:00:10 node0
Nov 24 09:28:29 dnsmasq-tftp[6014]: sent /srv/tftp/snponly.efi to 10.9.0.10
Nov 24 09:28:30 dnsmasq-dhcp[6014]: 12 vendor class: PXEClient:Arch:00011:UNDI:003016
Nov 24 09:28:30 dnsmasq-dhcp[6014]: 12 DHCPDISCOVER(cluster0) 02:66:00:00:00:66 ignored
Nov 24 09:28:31 dnsmasq-dhcp[6014]: 13 vendor class: udhcp 1.37.0
Nov 24 09:28:31 dnsmasq-dhcp[6014]: 13 DHCPDISCOVER(cluster0) 02:77:00:00:00:10
Nov 24 09:28:32 dnsmasq-dhcp[6014]: 14 DHCPDISCOVER(cluster0) 02:77:00:00:00:11 no address available
Nov 24 09:28:33 dnsmasq-tftp[6014]: file /srv/tftp/none.efi not found for 10.9.0.11
Nov 24 09:28:33 dnsmasq-tftp[6014]: failed sending /srv/tftp/snponly.efi to 10.9.0.11
"""


def test_the_log_of_dnsmasq_is_understood() -> None:
    reader = Reader()
    seen = [
        (found.kind, found.mac or found.address, found.text)
        for line in LOG.splitlines()
        if (found := reader.read(line))
    ]
    assert seen == [
        ("asked", "02:77:00:00:00:10", "UEFI x86-64"),
        ("given", "02:77:00:00:00:10", "UEFI x86-64"),
        ("sent", "10.9.0.10", "snponly.efi"),
        ("ignored", "02:66:00:00:00:66", "UEFI arm64"),
        ("trouble", "02:77:00:00:00:11", "DHCP: no address available"),
        ("trouble", "10.9.0.11", "TFTP: none.efi is not there"),
        ("trouble", "10.9.0.11", "TFTP: snponly.efi could not be sent whole"),
    ]


def test_a_log_is_followed_through_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert list(tail.lines()) == []
    path.write_text("one\ntw")
    assert list(tail.lines()) == ["one"]
    with path.open("a") as file:
        file.write("o\n")
    assert list(tail.lines()) == ["two"]
    path.rename(tmp_path / "log.1")
    path.write_text("three\n")
    assert list(tail.lines()) == ["three"]
    fresh = Tail(path)
    fresh.skip()
    assert list(fresh.lines()) == []


def test_mac_addresses_are_read_as_ipxe_writes_them() -> None:
    assert plain_mac("02-77-00-00-00-1A") == "02:77:00:00:00:1a"
    for text in ("", "02-77", "02:77:00:00:00:1g", "../../etc", "02:77:00:00:00:10:11"):
        assert plain_mac(text) is None


def test_a_budget_runs_out_and_comes_back_and_is_bounded() -> None:
    budget = Budget(burst=3, per_second=1)
    assert [budget.spend("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert budget.spend("b", 0.0)
    assert budget.spend("a", 1.5)
    for number in range(2 * SOURCES_KEPT):
        budget.spend(str(number), 2.0)
    assert len(budget._buckets) == SOURCES_KEPT


def test_the_kernels_tables_are_read(tmp_path: Path) -> None:
    arp = tmp_path / "arp"
    arp.write_text(
        "IP address       HW type     Flags       HW address            Mask     Device\n"
        "10.9.0.10        0x1         0x2         02:77:00:00:00:10     *        cluster0\n"
        "10.9.0.11        0x1         0x0         00:00:00:00:00:00     *        cluster0\n"
    )
    assert kernel_tables.mac_of("10.9.0.10", arp) == "02:77:00:00:00:10"
    assert kernel_tables.mac_of("10.9.0.11", arp) is None
    assert kernel_tables.mac_of("10.9.0.12", tmp_path / "none") is None
    tcp = tmp_path / "tcp"
    tcp.write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 0100090A:1199 0A00090A:C350 01 00000000:00000000\n"
        "   1: 0100090A:1199 0B00090A:C350 06 00000000:00000000\n"
    )
    assert kernel_tables.connection("10.9.0.10", 4505, tcp) == 0xC350
    assert kernel_tables.connection("10.9.0.10", 4506, tcp) is None
    assert kernel_tables.connection("10.9.0.11", 4505, tcp) is None


def test_every_architecture_number_has_a_name() -> None:
    """The registry's numbers go from 0 to 41; one that came after it is shown as a number."""
    assert sorted(ARCHITECTURES) == list(range(42))
    assert architecture("PXEClient:Arch:00041:UNDI:002001") == "Raspberry Pi (arm rpiboot)"
    assert architecture("HTTPClient:Arch:00019:UNDI:003001") == "UEFI arm64 over HTTP"
    assert architecture("PXEClient:Arch:00099:UNDI:003001") == "architecture 99"
    assert architecture("PXEClient") == ""
    assert not unsupported("UEFI x86-64") and "TFTP" in unsupported("UEFI x86-64 over HTTP")
    assert "there is iPXE for BIOS and UEFI x86-64" in unsupported("UEFI RISC-V 64")


def unit_environment() -> dict[str, str]:
    unit = Path(__file__).parents[2] / "salt" / "control" / "files" / "cluster-dnsmasq.service"
    lines = [
        line.removeprefix("Environment=") for line in unit.read_text().splitlines() if line.startswith("Environment=")
    ]
    return dict(line.split("=", 1) for line in lines)


def test_the_control_node_starts_dnsmasq_in_english() -> None:
    assert dict(dhcp_log.ENVIRONMENT).items() <= unit_environment().items()


@pytest.mark.starts_programs
@pytest.mark.skipif(not shutil.which("dnsmasq"), reason="no dnsmasq on this machine")
def test_dnsmasq_of_a_german_system_writes_english_with_the_units_environment() -> None:
    german = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "LANGUAGE": "de", "LANG": "de_DE.UTF-8"}

    def checked(environment: dict[str, str]) -> str:
        command = ["dnsmasq", "--test", "--conf-file=/dev/null"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
        return done.stderr + done.stdout

    if "syntax check OK" in checked(german):
        pytest.skip("this dnsmasq has no German")
    assert "syntax check OK" in checked({**german, **unit_environment()})
