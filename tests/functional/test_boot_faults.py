"""Faults of a boot before enrolment, each injected: the node recovers, or its stage and the cause are named.

The boot service is the real one on loopback, with a clock that is turned instead of waited for. What is shown for each
fault is the table of doc/howto/netboot.md.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from netboot.boot import progress_report
from netboot.image.store import Store
from tests import fake_image, hostile
from tests.boot_bench import ADDRESSES, MACS, Bench, bench
from tests.boot_steps import begin, fetch_kernel, get, report, up_to


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as found:
        yield found


# -- before the kernel


def test_no_dhcp_request(service: Bench) -> None:
    from netboot.boot import command_queue

    command_queue.give(service.folder / "boot", command_queue.Command("arm", "node0", powered_on=True))
    service.call(service.service.obey)
    stage, cause = service.stuck(after=301)
    assert stage == "dhcp" and "no DHCP request" in cause
    boot = begin(service)
    assert service.stuck() == ("", "")
    recorded = service.service.state.nodes["node0"].boot
    assert recorded is not None and recorded.id == boot.boot and recorded.because == "reprovision"


def test_second_dhcp_server_wins(service: Bench) -> None:
    """The node takes the other server's offer and never comes back."""
    service.asks()
    stage, cause = service.stuck(after=61)
    assert stage == "script" and "another DHCP server" in cause


def test_address_taken_by_another_machine(service: Bench) -> None:
    service.asks(rest=" no address available")
    service.asks()
    service.asks(rest=" no address available")
    assert service.stuck(after=70) == ("script", "DHCP: no address available")


def test_wrong_architecture(service: Bench) -> None:
    service.asks(vendor="PXEClient:Arch:00011:UNDI:003016")
    stage, cause = service.stuck(after=70)
    assert stage == "script" and "UEFI arm64" in cause


def test_ipxe_missing_from_tftp(service: Bench) -> None:
    service.asks()
    service.log(f"x dnsmasq-tftp[1]: file /srv/tftp/undionly.kpxe not found for {ADDRESSES['node0']}")
    assert service.stuck(after=70) == ("script", "TFTP: undionly.kpxe is not there")


def test_tftp_transfer_breaks(service: Bench) -> None:
    service.asks()
    service.log(f"x dnsmasq-tftp[1]: failed sending /srv/tftp/snponly.efi to {ADDRESSES['node0']}")
    assert service.stuck(after=70) == ("script", "TFTP: snponly.efi could not be sent whole")


FIELD_CASES = Path(__file__).parents[1] / "data" / "field-cases" / "dnsmasq"


def field_case(service: Bench, name: str) -> None:
    """Have dnsmasq write what it wrote for somebody (tests/data/field-cases), about node0."""
    text = (FIELD_CASES / f"{name}.log").read_text()
    service.log(
        *text.replace("02:00:00:00:00:11", MACS["node0"]).replace("10.42.0.10", ADDRESSES["node0"]).splitlines()
    )


def trouble(service: Bench) -> str | None:
    view = service.call(progress_report.view, service.service.state, service.now, service.settings.deadlines_seconds)
    under_way = view["nodes"]["node0"]["under_way"]
    return under_way["trouble"] if under_way else None


def test_a_rom_that_asks_for_the_size_first_has_no_trouble(service: Bench) -> None:
    field_case(service, "tsize-probe-aborted")
    assert trouble(service) is None
    stage, cause = service.stuck(after=70)
    assert stage == "script" and "TFTP" not in cause


def test_a_rom_that_never_loads_after_asking_for_the_size(service: Bench) -> None:
    service.asks()
    service.log(
        f"x dnsmasq-tftp[1]: error 0 TFTP Aborted received from {ADDRESSES['node0']}",
        f"x dnsmasq-tftp[1]: failed sending /srv/tftp/undionly.kpxe to {ADDRESSES['node0']}",
    )
    stage, cause = service.stuck(after=70)
    assert stage == "script" and cause == (
        "TFTP: undionly.kpxe was not loaded: the machine broke off after asking for its size"
    )


def test_a_dnsmasq_of_another_language(service: Bench) -> None:
    field_case(service, "german-locale")
    stage, cause = service.stuck(after=70)
    assert stage == "script" and cause.startswith("TFTP: snponly.efi is not there") and "LC_ALL=C" in cause


def test_a_refused_request_is_a_request(service: Bench) -> None:
    """It asked; its address is leased to another machine, which is named."""
    field_case(service, "address-leased-to-another")
    stage, cause = service.stuck(after=70)
    assert stage == "script"
    assert cause == f"DHCP: no address available: {ADDRESSES['node0']} is leased to 1c:db:d4:00:00:f0"


def test_a_node_that_has_anothers_address_is_named(service: Bench) -> None:
    service.log(
        "x dnsmasq-dhcp[1]: 7 vendor class: PXEClient:Arch:00000:UNDI:002001",
        f"x dnsmasq-dhcp[1]: not using configured address {ADDRESSES['node0']} because it is leased to {MACS['node1']}",
        f"x dnsmasq-dhcp[1]: 7 DHCPDISCOVER(lo) {MACS['node0']} no address available",
    )
    assert service.stuck(after=70)[1].endswith(f"is leased to {MACS['node1']} (node1)")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("file /srv/tftp/snponly.efi not found for 127.0.0.99", "snponly.efi is not there"),
        ("failed sending /srv/tftp/undionly.kpxe to 127.0.0.99", "undionly.kpxe could not be sent whole"),
        ("unsupported request from 127.0.0.99", "it asked for what this server does not do"),
    ],
)
def test_trouble_of_an_address_that_is_not_in_the_profile_is_shown(service: Bench, line: str, reason: str) -> None:
    service.log(f"x dnsmasq-tftp[1]: {line}")
    refusal = service.service.state.refusals[-1]
    assert (refusal.what, refusal.source, refusal.reason) == ("TFTP request", "127.0.0.99", reason)


def test_beside_another_dhcp_server_a_node_is_known_by_its_mac(service: Bench) -> None:
    """In proxy mode the other server gives the address: it is none of the profile's."""
    service.log(
        "x dnsmasq-dhcp[1]: 7 vendor class: PXEClient:Arch:00007:UNDI:003001",
        f"x dnsmasq-dhcp[1]: 7 PXE(lo) 127.0.0.98 {MACS['node0']} snponly.efi",
        "x dnsmasq-tftp[1]: file /srv/tftp/snponly.efi not found for 127.0.0.98",
    )
    assert service.stuck(after=70) == ("script", "TFTP: snponly.efi is not there")


def test_firmware_that_boots_over_http(service: Bench) -> None:
    service.asks(vendor="HTTPClient:Arch:00016:UNDI:003001")
    stage, cause = service.stuck(after=70)
    assert stage == "script" and "UEFI x86-64 over HTTP" in cause and "set it to PXE boot" in cause


def test_unknown_mac(service: Bench) -> None:
    service.log(
        "x dnsmasq-dhcp[1]: 9 vendor class: PXEClient:Arch:00007:UNDI:003001",
        "x dnsmasq-dhcp[1]: 9 DHCPDISCOVER(lo) 02:66:00:00:00:66 ignored",
    )
    found = service.service.state.unknown["02:66:00:00:00:66"]
    assert found.detail == "UEFI x86-64"
    text = asyncio.run(service.node("node0").script(source="127.0.0.66", mac="02:66:00:00:00:66"))
    assert text.startswith("#!ipxe") and "nonce" not in text and "sleep" in text


def test_no_image_is_active(tmp_path: Path) -> None:
    with bench(tmp_path, images=False) as service:
        service.asks()
        text = asyncio.run(service.node("node0").script())
        assert "There is no image to boot" in text and "sleep" in text
        stage, cause = service.stuck(after=70)
        assert stage == "script" and "no image is active for profile bench" in cause
        fake_image.publish(service.images, "bench")
        begin(service)


def test_image_without_its_kernel(service: Bench) -> None:
    assert service.image
    folder = service.images / "images" / service.image.digest
    folder.chmod(0o755)
    (folder / "vmlinuz").unlink()
    service.asks()
    asyncio.run(service.node("node0").script())
    assert service.stuck(after=70) == ("script", f"image {service.image.digest} has no vmlinuz")


def test_master_down(service: Bench) -> None:
    service.connections["node0"] = 50000
    service.master_down = True
    service.asks()
    text = asyncio.run(service.node("node0").script())
    assert "not expected to boot now" in text
    stage, cause = service.stuck(after=70)
    assert stage == "script" and "the master cannot be asked" in cause
    service.master_down = False
    service.connections.clear()
    begin(service)


def test_duplicate_of_a_node_that_is_up(service: Bench) -> None:
    """Also of one that has come up a moment after it was asked for."""
    begin(service)
    service.connections["node0"] = 50000
    assert begin(service)
    service.connections["node0"] = 50001
    service.alive.add("node0")
    text = asyncio.run(service.node("node0").script())
    assert "nonce" not in text
    refusal = service.service.state.refusals[-1]
    assert (refusal.what, refusal.node, refusal.reason) == ("script", "node0", "the node is alive")
    assert ("cluster/boot/duplicate", {"node": "node0", "source": ADDRESSES["node0"]}) in service.announced


def test_after_a_restart_of_the_master_no_node_that_was_up_is_taken_for_down(service: Bench) -> None:
    """Its minion has no connection yet; whoever asks in its name first would be given its script."""
    from netboot.boot import command_queue

    asyncio.run(service.node("node0").enrol(hostile.public_key()))
    service.kill()
    service.now += 10.0
    service.grace_seconds = 45.0
    service.start()
    assert "not expected to boot now" in asyncio.run(service.node("node0").script())
    assert "may be on its way back" in service.service.state.refusals[-1].reason
    assert begin(service, "node1"), "one that was not up is waited for as ever"
    service.now += 40.0
    assert "not expected to boot now" in asyncio.run(service.node("node0").script())
    # Nor is one held up that is to boot, or that did not come back.
    command_queue.give(service.folder / "boot", command_queue.Command("arm", "node0", powered_on=True))
    service.call(service.service.obey)
    assert begin(service)
    service.kill()
    service.now += 10.0
    service.start()
    service.now += 46.0
    assert begin(service)


def test_a_node_that_is_blocked(service: Bench) -> None:
    from netboot.boot import command_queue

    boot = begin(service)
    command_queue.give(service.folder / "boot", command_queue.Command("block", "node0"))
    service.call(service.service.obey)
    claim = json.dumps(boot.claim(hostile.public_key())).encode()
    assert asyncio.run(hostile.post(service.url, claim, ADDRESSES["node0"]))[0] == 403
    assert "nonce" not in asyncio.run(service.node("node0").script())


def test_http_killed_before_the_script(service: Bench) -> None:
    """The first script came by TFTP and asks until it is answered; a restart keeps what was recorded."""
    service.asks()
    service.call(service.service.save)
    service.kill()
    with pytest.raises(OSError):
        asyncio.run(service.node("node0").script())
    service.start()
    boot = asyncio.run(service.node("node0").begin())
    recorded = service.service.state.nodes["node0"].boot
    assert recorded is not None and recorded.id == boot.boot and service.reached()[0] == "dhcp"


# -- kernel and image


def test_kernel_vanishes_after_the_script(service: Bench) -> None:
    boot = begin(service)
    folder = service.images / "images" / boot.image
    folder.chmod(0o755)
    (folder / "vmlinuz").unlink()
    assert get(f"{service.url}/images/{boot.image}/vmlinuz?boot={boot.boot}")[0] == 404
    stage, cause = service.stuck(after=70)
    assert stage == "kernel" and "vmlinuz: 404" in cause


def test_kernel_that_ipxe_cannot_start(service: Bench) -> None:
    boot = begin(service)
    assert get(f"{service.url}/failed?boot={boot.boot}&error=0x2e008081")[0] == 200
    stage, cause = service.stuck(after=70)
    assert stage == "kernel" and "0x2e008081" in cause


def test_kernel_that_does_not_come_up(service: Bench) -> None:
    boot = begin(service)
    fetch_kernel(service, boot)
    stage, cause = service.stuck(after=70)
    assert stage == "initramfs" and "driver" in cause


@pytest.mark.parametrize(
    ("detail", "words"),
    [
        ("sha256 of root.squashfs is 1234, expected abcd, try 3", "sha256 of root.squashfs"),
        ("cannot fetch root.squashfs, try 12", "cannot fetch"),
        ("memory is full: root.squashfs does not fit in 480 MiB", "memory is full"),
        ("root.squashfs cannot be mounted", "cannot be mounted"),
    ],
)
def test_image_faults_that_the_node_reports(service: Bench, detail: str, words: str) -> None:
    boot = begin(service)
    up_to(service, boot, "initramfs")
    assert report(service, boot, "image", detail, failed=True) == 204
    stage, cause = service.stuck(after=181)
    assert stage == "image" and words in cause


def test_http_killed_during_the_image_and_the_transfer_goes_on(service: Bench) -> None:
    boot = begin(service)
    up_to(service, boot, "initramfs")
    url = f"{service.url}/images/{boot.image}/root.squashfs?boot={boot.boot}"
    whole = get(url)[1]
    service.kill()
    service.start()
    # What wget -c does: ask for the rest.
    request = urllib.request.Request(url, headers={"Range": "bytes=1000-"})
    with urllib.request.urlopen(request, timeout=20) as response:
        assert response.status == 206 and whole[:1000] + response.read() == whole
    assert report(service, boot, "image") == 204
    assert service.reached()[-1] == "image"


def test_image_removed_while_a_node_boots_it(service: Bench) -> None:
    boot = begin(service)
    up_to(service, boot, "initramfs")
    shutil.rmtree(service.images / "images" / boot.image)
    assert get(f"{service.url}/images/{boot.image}/root.squashfs?boot={boot.boot}")[0] == 404
    stage, cause = service.stuck(after=181)
    assert stage == "image" and "root.squashfs: 404" in cause


def test_broken_image_after_activate(service: Bench) -> None:
    """The newest image brings no node up; the one before is made active again, and the node boots that."""
    good = begin(service).image
    broken = fake_image.publish(service.images, "bench", b"broken" * 1000)
    boot = begin(service)
    assert boot.image == broken.digest != good
    up_to(service, boot, "image")
    stage, _ = service.stuck(after=61)
    assert stage == "systemd"
    assert ("cluster/boot/stuck", "systemd") in [(tag, data.get("stage")) for tag, data in service.announced]
    Store(service.images).rollback("bench")
    assert begin(service).image == good


def test_reports_of_a_boot_that_nobody_began(service: Bench) -> None:
    boot = dataclasses.replace(begin(service), boot="0" * 32)
    assert report(service, boot, "systemd") == 403
    assert report(service, begin(service), "enrolled") == 403


def test_what_a_node_says_is_shown_without_control_characters(service: Bench) -> None:
    boot = begin(service)
    up_to(service, boot, "initramfs")
    assert report(service, boot, "image", "\x1b[2Jx\r\n" + "y" * 500, failed=True) == 204
    _, cause = service.stuck(after=181)
    assert re.fullmatch(r"[ -~]{1,200}", cause)


# -- after enrolment


def test_slow_link_is_named_only_past_its_deadline(tmp_path: Path) -> None:
    with bench(tmp_path, deadlines={"image": "10 min"}) as service:
        boot = begin(service)
        up_to(service, boot, "initramfs")
        assert service.stuck(after=500) == ("", "")
        assert service.stuck(after=101)[0] == "image"


def test_stuck_is_reported_once_and_metrics_show_it(service: Bench) -> None:
    boot = begin(service)
    up_to(service, boot, "initramfs")
    for _ in range(5):
        service.stuck(after=181)
    reported = [data for tag, data in service.announced if tag == "cluster/boot/stuck"]
    assert len(reported) == 1 and reported[0]["stage"] == "image"
    text = get(f"{service.url}/metrics")[1].decode()
    assert 'cluster_boot_stuck{node="node0",stage="image"} 1.0' in text
    assert 'cluster_boot_stage_seconds{node="node0",stage="dhcp"}' in text
    assert 'cluster_boot_attributed_ratio{node="node0"} 1.0' in text
