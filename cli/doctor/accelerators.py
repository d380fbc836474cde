"""The accelerators of a node: judges driver, kernel, firmware and the way to the card against profile and chip."""

from collections.abc import Iterator, Mapping
from typing import Any

from bottleneck.profile.types import Accelerator, Node
from cli.doctor.check import Check, judged, on_node
from cli.doctor.chips import Chip, find_chip, table, version_of

# Transfers per second of each generation of PCI Express.
_GENERATIONS = {2.5e9: 1, 5.0e9: 2, 8.0e9: 3, 16.0e9: 4, 32.0e9: 5, 64.0e9: 6}
HOT_CELSIUS = 90.0
# A window this size shows a card's memory in pieces: what there was before Resizable BAR.
SMALL_WINDOW_BYTES = 256 * 2**20


def judge_accelerators(name: str, node: Node, seen: Mapping[str, Any]) -> Iterator[Check]:
    """Return a check for each thing of a node's accelerators.

    Parameters
    ----------
    seen
        What `hardware.facts` returned there.
    """
    groups = (node.accelerator, *node.further_accelerators)
    by_vendor = {_vendor(group): group for group in reversed(groups)}
    found = [each for each in seen["accelerators"] if each["vendor"] in by_vendor or None in by_vendor]
    drivers = {group.driver for group in groups}
    if any(each["driver"] in drivers for each in found):
        # Beside the one that computes there may be another of the same vendor, on the processor's chip.
        found = [each for each in found if each["driver"] in drivers or None in drivers]
    if len(found) < len(node.cards):
        label = " and ".join(f"{each.count} {each.model or each.kind}" for each in groups)
        text = f"{len(found)} found; expected {label}"
        yield Check(name, "accelerator", "failed", text, "reseat the card; look at its power and the firmware's setup")
    for each in found:
        yield from _accelerator(name, node, by_vendor.get(each["vendor"], node.accelerator), each, str(seen["kernel"]))
    yield from _kernel_log(name, node, seen)


def _vendor(group: Accelerator) -> str | None:
    return table().vendors.get(group.kind.partition("-")[0])


def _accelerator(name: str, node: Node, wanted: Accelerator, seen: dict[str, Any], kernel: str) -> Iterator[Check]:
    address = seen["address"]
    chip = find_chip(seen["vendor"], seen["device"])
    yield _driver(name, node, wanted.driver, seen, chip)
    if chip is not None:
        recent = version_of(kernel) >= version_of(chip.kernel)
        text = f"{kernel}; {chip.name} needs {chip.kernel} or later ({chip.source})"
        mend = "boot.image.suite and kernel of the profile name one that is later (forky has 7.2): cluster image build"
        yield judged(name, "kernel for the chip", recent, text, mend)
    yield from _window(name, wanted, seen)
    yield from _slot(name, node, wanted, seen)
    if seen["temperature_celsius"] is not None:
        cool = seen["temperature_celsius"] < HOT_CELSIUS
        text = f"{address}: {seen['temperature_celsius']:.0f} degrees Celsius"
        yield judged(name, "accelerator's temperature", cool, text, "look at fans and dust", "warning")


def _driver(name: str, node: Node, wanted: str | None, seen: dict[str, Any], chip: Chip | None) -> Check:
    address, driver = seen["address"], seen["driver"]
    fits = driver is not None and wanted in (None, driver)
    text = f"{address} {seen['vendor']}:{seen['device']} bound to {driver or 'no driver'}"
    if fits:
        return Check(name, "driver", "ok", text)
    text += f"; expected {wanted or 'one'}"
    line = chip.kernel_line.get(wanted or "") if chip else None
    lasting = f"; to last: boot.kernel_line of the profile with {line}" if line else ""
    if driver is None:
        now = on_node(node.hostname, f"modprobe {wanted}; dmesg | grep -i {wanted} | tail") if wanted else "lspci -k"
        lasting = lasting or "; to last: boot.image.modules of the profile with its driver"
        return Check(name, "driver", "failed", text, now + lasting)
    drivers = "/sys/bus/pci/drivers"
    steps = f"echo {address} > {drivers}/{driver}/unbind; echo {address} > {drivers}/{wanted}/bind"
    if driver == "vfio-pci":
        # What gave the card to virtual machines would give it to them again.
        steps = f"echo > /sys/bus/pci/devices/{address}/driver_override; {steps}"
        lasting = "; to last: no vfio-pci.ids in boot.kernel_line of the profile" + lasting.replace(
            "; to last:", " and"
        )
    return Check(name, "driver", "failed", text, on_node(node.hostname, steps) + lasting)


def _window(name: str, wanted: Accelerator, seen: dict[str, Any]) -> Iterator[Check]:
    window = seen["largest_window_bytes"]
    if wanted.pcie is None or window is None:
        return
    text = f"{seen['address']} shows {window / 2**20:.0f} MiB of its memory at a time"
    mend = "switch on Above 4G Decoding and Resizable BAR in the firmware's setup"
    yield judged(name, "Resizable BAR", window > SMALL_WINDOW_BYTES, text, mend)


def _slot(name: str, node: Node, group: Accelerator, seen: dict[str, Any]) -> Iterator[Check]:
    wanted, link = group.pcie, seen["link"]
    if wanted is None:
        return
    look = on_node(node.hostname, f"lspci -vv -s {seen['address']} | grep -E LnkCap:\\|LnkSta:")
    if link is None:
        yield Check(name, "PCIe", "unknown", f"the kernel tells no link of {seen['address']}", look)
        return
    generation = _GENERATIONS.get(link["transfers_per_second"] or 0.0)
    most = _GENERATIONS.get(link["most_transfers_per_second"] or 0.0)
    text = f"{link['device']}: {link['lanes']} lanes of generation {generation or 'unknown'}"
    text += f" (at most {link['most_lanes']} of generation {most or 'unknown'})"
    text += f"; expected {wanted.lanes} of generation {wanted.generation}"
    # An idle link slows down to save power; what it can do at most is what counts.
    fits = link["lanes"] >= wanted.lanes and (most or 0) >= wanted.generation
    mend = f"reseat the card in the slot that has the lanes; look at riser and bifurcation: {look}"
    yield judged(name, "PCIe", fits, text, mend)


def _kernel_log(name: str, node: Node, seen: Mapping[str, Any]) -> Iterator[Check]:
    """Judge what drivers logged of firmware that is not there, and of devices that they gave up."""
    log = seen.get("kernel_log")
    if log is None:
        return
    folders = {chip.firmware: chip.firmware_package for chip in table().chips}
    missing = [file for file in log["firmware_missing"] if file.startswith(tuple(folders))]
    if missing or log["given_up"]:
        packages = sorted(
            {package for folder, package in folders.items() for file in missing if file.startswith(folder)}
        )
        text = f"not found: {', '.join(missing)}" if missing else "no file is missing"
        text += f"; given up: {log['given_up'][0]}" if log["given_up"] else ""
        mend = "boot.image.packages of the profile with " + ", ".join(packages) + " (component non-free-firmware), then"
        mend = f"{mend} cluster image build" if missing else on_node(node.hostname, "dmesg --level=err,warn | tail -40")
        yield Check(name, "driver's firmware", "failed" if log["given_up"] else "warning", text, mend)
    elif not log["complete"]:
        look = on_node(node.hostname, "journalctl -k -b | grep -i firmware")
        yield Check(name, "driver's firmware", "unknown", "the kernel's log no longer begins at the boot", look)
    else:
        yield Check(name, "driver's firmware", "ok", "no driver missed a file")
