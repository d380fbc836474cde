"""The nodes: judges what their `hardware` module read against the profile."""

from collections.abc import Iterator, Mapping
from typing import Any

from bottleneck.profile.types import Accelerator, Node, Profile
from cli.doctor.check import Check, judged

# Transfers per second of each generation of PCI Express.
_GENERATIONS = {2.5e9: 1, 5.0e9: 2, 8.0e9: 3, 16.0e9: 4, 32.0e9: 5, 64.0e9: 6}
HOT_CELSIUS = 90.0
# A window this size shows a card's memory in pieces: what there was before Resizable BAR.
SMALL_WINDOW_BYTES = 256 * 2**20
# What belongs to a driver that computes; a display controller of a server board does not count.
_VENDORS = {"xpu": "0x8086", "rocm": "0x1002", "cuda": "0x10de"}


def judge_node(profile: Profile, name: str, seen: Mapping[str, Any] | None) -> Iterator[Check]:
    """Return a check for each thing of one node.

    Parameters
    ----------
    seen
        What `hardware.facts` returned there; None when it did not answer.
    """
    node = profile.nodes[name]
    if seen is None:
        yield Check(name, "Salt", "failed", "does not answer", f"cluster boot watch; is {name} switched on?")
        return
    yield Check(name, "Salt", "ok", f"answers, kernel {seen['kernel']}")
    yield from _firmware(name, node, seen["firmware"])
    if node.accelerator.kind != "cpu":
        yield from _accelerators(name, node, seen["accelerators"])
    yield from _usb4(profile, name, seen["usb4"])
    if seen["numa_nodes"] is not None:
        yield Check(name, "NUMA", "ok", f"{seen['numa_nodes']} nodes, CPUs {seen['cpus_online']}")
    for chip, value in seen["temperatures_celsius"].items():
        if value >= HOT_CELSIUS:
            yield Check(name, "temperature", "warning", f"{chip}: {value:.0f} degrees Celsius", "look at fans and dust")
    if seen["temperatures_celsius"] and max(seen["temperatures_celsius"].values()) < HOT_CELSIUS:
        chip, value = max(seen["temperatures_celsius"].items(), key=lambda item: item[1])
        yield Check(name, "temperature", "ok", f"hottest: {chip}, {value:.0f} degrees Celsius")


def _firmware(name: str, node: Node, seen: Mapping[str, Any]) -> Iterator[Check]:
    booted = "uefi" if seen["uefi"] else "bios"
    told = " ".join(str(seen[key]) for key in ("board", "vendor", "version", "date") if seen[key]) or "no DMI"
    fits = node.firmware is None or node.firmware == booted
    evidence = f"{told}, booted by {booted}{'' if fits else f'; expected {node.firmware}'}"
    yield judged(name, "firmware", fits, evidence, "change the boot mode in the firmware's setup", "warning")


def _accelerators(name: str, node: Node, seen: list[dict[str, Any]]) -> Iterator[Check]:
    wanted = node.accelerator
    vendor = _VENDORS.get(wanted.kind.partition("-")[0])
    found = [each for each in seen if vendor is None or each["vendor"] == vendor]
    if wanted.driver and any(each["driver"] == wanted.driver for each in found):
        # Beside the one that computes there may be another of the same vendor, on the processor's chip.
        found = [each for each in found if each["driver"] == wanted.driver]
    groups = (wanted, *node.further_accelerators)
    label = " and ".join(f"{each.count} {each.model or each.kind}" for each in groups)
    if len(found) < len(node.cards):
        text = f"{len(found)} found; expected {label}"
        yield Check(name, "accelerator", "failed", text, "reseat the card; look at its power and the firmware's setup")
    for each in found:
        yield from _accelerator(name, wanted, each)


def _accelerator(name: str, wanted: Accelerator, seen: dict[str, Any]) -> Iterator[Check]:
    address = seen["address"]
    fits = seen["driver"] is not None and wanted.driver in (None, seen["driver"])
    evidence = f"{address} {seen['vendor']}:{seen['device']} bound to {seen['driver'] or 'no driver'}"
    evidence += "" if fits else f"; expected {wanted.driver or 'one'}"
    yield judged(name, "driver", fits, evidence, "boot.kernel_line of the profile decides which driver takes it")
    window = seen["largest_window_bytes"]
    if wanted.pcie is not None and window is not None:
        large = window > SMALL_WINDOW_BYTES
        text = f"{address} shows {window / 2**20:.0f} MiB of its memory at a time"
        mend = "switch on Above 4G Decoding and Resizable BAR in the firmware's setup"
        yield judged(name, "Resizable BAR", large, text, mend)
    link = seen["link"]
    if wanted.pcie is not None and link is None:
        yield Check(name, "PCIe", "unknown", f"the kernel tells no link of {address}", "lspci -vv on the node")
    elif wanted.pcie is not None and link is not None:
        generation = _GENERATIONS.get(link["transfers_per_second"] or 0.0)
        most = _GENERATIONS.get(link["most_transfers_per_second"] or 0.0)
        text = f"{link['device']}: {link['lanes']} lanes of generation {generation or 'unknown'}"
        text += f"; expected {wanted.pcie.lanes} of generation {wanted.pcie.generation}"
        # An idle link slows down to save power; what it can do at most is what counts.
        fits = link["lanes"] >= wanted.pcie.lanes and (most or 0) >= wanted.pcie.generation
        yield judged(
            name, "PCIe", fits, text, "reseat the card in the slot that has the lanes; look at riser and bifurcation"
        )
    if seen["temperature_celsius"] is not None:
        cool = seen["temperature_celsius"] < HOT_CELSIUS
        text = f"{address}: {seen['temperature_celsius']:.0f} degrees Celsius"
        yield judged(name, "accelerator's temperature", cool, text, "look at fans and dust", "warning")


def _usb4(profile: Profile, name: str, seen: list[dict[str, Any]]) -> Iterator[Check]:
    node = profile.nodes[name]
    cables = 0
    rates = []
    for network_name, link in node.links.items():
        network = profile.networks[network_name]
        if "USB4" in network.medium or link.interface.startswith("thunderbolt"):
            cables += len(link.peers) or 1
            rates.append(network.rate_bytes_per_second)
    if not cables:
        return
    if len(seen) < cables:
        text = f"{len(seen)} hosts at the other end of a cable; expected {cables}"
        yield Check(name, "USB4", "failed", text, "plug the cable in; boltctl on the node; modprobe thunderbolt_net")
    for each in seen:
        speeds = [each[key] for key in ("receive_bits_per_second", "transmit_bits_per_second") if each[key]]
        told = ", ".join(f"{speed / 1e9:g} Gbit/s" for speed in speeds) or "no speed"
        text = f"{each['name']} to {each['host']}: {told}"
        enough = bool(speeds) and min(speeds) >= 8 * min(rates)
        mend = "use a certified 40 Gbit/s cable of at most 0.8 m"
        yield judged(name, "USB4", enough, f"{text}; the profile counts on {8 * min(rates) / 1e9:g}", mend)
