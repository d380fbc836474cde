"""Two machines from switched off to configured: BIOS and UEFI, real DHCP, TFTP, iPXE, HTTP and Salt.

The tests are one story, in this order; each needs the one before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from netboot.boot import progress_report
from netboot.boot.state import Boot
from tests.netboot.conftest import ADDRESSES, MACS
from tests.netboot.machines import ControlNode, Machine
from tests.waiting import wait_for

pytestmark = [pytest.mark.netboot, pytest.mark.timeout(900)]

NODES = ("node0", "node1")
STATES = "base,network,probe,sampler"
# Four times what a boot takes on two cores without hardware virtualisation.
BOOT_SECONDS = 300


@pytest.fixture(scope="module")
def machines(control: ControlNode) -> Iterator[dict[str, Machine]]:
    found = {
        "node0": Machine(control.network, control.folder, "node0", MACS["node0"]),
        "node1": Machine(control.network, control.folder, "node1", MACS["node1"], uefi=True),
    }
    yield found
    for machine in found.values():
        machine.power_off()


def boot_of(control: ControlNode, node: str) -> Boot | None:
    state = control.record().nodes.get(node)
    return state.boot if state else None


def reached(control: ControlNode, node: str, stage: str) -> bool:
    boot = boot_of(control, node)
    return boot is not None and any(entry.stage == stage for entry in boot.reached)


def enrolled(control: ControlNode, machine: Machine) -> bool:
    """Return whether a machine has enrolled; one whose firmware has given up is switched off and on."""
    if machine.gave_up():
        # Under emulation the firmware's TFTP times out now and then; nothing of ours runs by then.
        print(f"\n{machine.name}: the firmware gave up: {machine.output_text()[-400:]!r}; switched off and on")
        machine.power_cycle()
    return reached(control, machine.name, "enrolled")


def explain(control: ControlNode, machines: dict[str, Machine]) -> str:
    view = progress_report.view(control.record(), time.time(), control.settings.deadlines_seconds)
    consoles = {name: machine.output_text()[-1500:] for name, machine in machines.items()}
    return json.dumps({"record": view, "consoles": consoles}, indent=1)


def answering(control: ControlNode, *nodes: str) -> bool:
    answers = control.salt(",".join(nodes), "test.ping", "-L", timeout=5)
    return all(answers.get(node) is True for node in nodes)


def apply(control: ControlNode) -> dict[str, dict[str, Any]]:
    answers = control.salt("node[01]", "state.apply", STATES, "sync_mods=all", "queue=True", timeout=240)
    assert set(answers) == set(NODES), f"state.apply was answered by {sorted(answers)}"
    for node, states in answers.items():
        assert isinstance(states, dict), f"{node}: {states}"
        failed = {name: state["comment"] for name, state in states.items() if not state["result"]}
        assert not failed, f"{node}: {failed}"
    return answers


def show_trace(control: ControlNode, node: str) -> float:
    """Print a boot's time line; return which share of it is attributed."""
    boot = boot_of(control, node)
    assert boot is not None
    spans = progress_report.trace(boot)
    line = "  ".join(f"{span.stage} {span.end - boot.began:.1f}" for span in spans)
    print(f"\n{node}: seconds from the first DHCP packet: {line}")
    return progress_report.attributed_ratio(spans)


def test_two_machines_enrol_although_http_dies_under_them(control: ControlNode, machines: dict[str, Machine]) -> None:
    for machine in machines.values():
        machine.power_on()
    try:
        wait_for(lambda: reached(control, "node0", "initramfs"), BOOT_SECONDS, "node0's first program runs", 0.2)
        # It is fetching its image now, or just about to.
        control.kill_boot_service()
        wait_for(lambda: all(enrolled(control, machine) for machine in machines.values()), BOOT_SECONDS, "both enrol")
        wait_for(lambda: answering(control, *NODES), 120, "both answer")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{explain(control, machines)}") from error
    assert set(control.accepted()) == set(NODES)


def test_states_apply_and_a_second_time_change_nothing(control: ControlNode, machines: dict[str, Machine]) -> None:
    first = apply(control)
    assert all(any(state["changes"] for state in states.values()) for states in first.values())
    second = apply(control)
    changed = {node: [name for name, state in states.items() if state["changes"]] for node, states in second.items()}
    assert not any(changed.values()), f"the second apply changed {changed}"
    for node in NODES:
        wait_for(partial(reached, control, node, "applied"), 30, f"{node} is applied")
        assert show_trace(control, node) >= 0.95


def test_a_reboot_comes_back_with_another_key(control: ControlNode, machines: dict[str, Machine]) -> None:
    before, boot = control.accepted()["node0"], boot_of(control, "node0")
    assert boot is not None
    control.salt("node0", "cmd.run_bg", "systemctl reboot", timeout=20)

    def again() -> bool:
        now = boot_of(control, "node0")
        return now is not None and now.id != boot.id and bool(now.enrolled_key)

    try:
        wait_for(again, BOOT_SECONDS, "node0 enrols again")
        wait_for(lambda: answering(control, "node0"), 120, "node0 answers again")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{explain(control, machines)}") from error
    assert control.accepted()["node0"] != before
    # The key was the node's before its minion asked for the first time: it was never turned away.
    assert not [
        name for name in ("minions_pre", "minions_denied") if (control.folder / "pki" / name / "node0").exists()
    ]
    assert "node0 failed" not in (control.folder / "master.log").read_text()
    show_trace(control, "node0")


def test_a_stranger_stays_out(control: ControlNode) -> None:
    """One machine with a MAC address nobody knows; one with a node's, which says it has a boot script."""
    digest = next(path.name for path in (control.images / "images").iterdir())
    image = control.images / "images" / digest
    kernel_line = " ".join(
        [
            f"console=ttyS0 net.ifnames=0 panic=5 cluster.url={control.settings.url} cluster.boot={'0' * 32}",
            f"cluster.node=node2 cluster.id=node2 cluster.image={digest} cluster.nonce={'ab' * 32}",
            f"cluster.sha256={json.loads((image / 'manifest.json').read_text())['files']['root.squashfs']['sha256']}",
        ]
    )
    booted = ("-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img"), "-append", kernel_line)
    unknown = Machine(control.network, control.folder, "unknown", "02:66:07:00:00:66")
    pretender = Machine(control.network, control.folder, "pretender", MACS["node2"], extra=booted)
    before = control.accepted()
    try:
        unknown.power_on()
        pretender.power_on()

        def refused() -> bool:
            claims = [refusal for refusal in control.record().refusals if refusal.what == "claim"]
            return any(refusal.source == ADDRESSES["node2"] for refusal in claims)

        wait_for(lambda: unknown.mac in control.record().unknown, BOOT_SECONDS, "the unknown machine is listed")
        wait_for(refused, BOOT_SECONDS, "the pretender's claim is refused")
    finally:
        unknown.power_off()
        pretender.power_off()
    assert control.accepted() == before
    found = control.runner("boot.discover")
    assert [entry["mac"] for entry in found] == [unknown.mac]
