"""The links of a node: judges USB4 cables and their host interface, and the packets of every link."""

from collections.abc import Iterator, Mapping
from typing import Any

from bottleneck.profile.types import Node, Profile
from cli.doctor.check import Check, Status, judged, on_node

# What USB4 gives over both lanes of a cable; half of it is what a link gets that came up in a bad moment.
FULL_BITS_PER_SECOND = 40e9
# The kernel's driver sets 128 us; 8 are what small messages want.
MOST_INTERRUPT_SECONDS, WANTED_INTERRUPT_SECONDS = 16e-6, 8e-6


def judge_links(profile: Profile, name: str, seen: Mapping[str, Any]) -> Iterator[Check]:
    """Return a check for each thing of a node's links.

    Parameters
    ----------
    seen
        What `hardware.facts` returned there.
    """
    node = profile.nodes[name]
    rates = _cable_rates(profile, node)
    if rates:
        yield from _cables(name, node, rates, seen["usb4"])
        yield from _hosts(name, node, seen.get("usb4_hosts"))
    # A lab's node has the files of the machine that it is on, with other interfaces in them.
    if profile.kind != "lab" and seen.get("links") is not None:
        yield from _packets(profile, name, node, seen["links"])


def _cable_rates(profile: Profile, node: Node) -> list[float]:
    """Return what each USB4 cable of the node is to carry, in bits per second."""
    rates: list[float] = []
    for network_name, link in node.links.items():
        network = profile.networks[network_name]
        if "USB4" in network.medium or link.interface.startswith("thunderbolt"):
            rates += [8 * network.rate_bytes_per_second] * (len(link.peers) or 1)
    return rates


def _cables(name: str, node: Node, rates: list[float], seen: list[dict[str, Any]]) -> Iterator[Check]:
    if len(seen) < len(rates):
        text = f"{len(seen)} hosts at the other end of a cable; expected {len(rates)}"
        mend = f"plug the cable in; {on_node(node.hostname, 'modprobe thunderbolt_net; boltctl')}"
        yield Check(name, "USB4", "failed", text, mend)
    for each in seen:
        rates_seen = [each[key] for key in ("receive_bits_per_second", "transmit_bits_per_second") if each[key]]
        lanes = each.get("lanes")
        shown = ", ".join(f"{speed / 1e9:g} Gbit/s" for speed in rates_seen) or "no speed"
        text = f"{each['name']} to {each['host']}: {shown}" + (f" over {lanes} lanes" if lanes else "")
        text += f"; the profile counts on {min(rates) / 1e9:g}, a cable can carry {FULL_BITS_PER_SECOND / 1e9:g}"
        least = min(rates_seen, default=0.0)
        # Seen when Ethernet was plugged while the link came up: github.com/Geramy/OdinLink-Five/issues/31.
        again = on_node(node.hostname, "modprobe -r thunderbolt_net thunderbolt; modprobe thunderbolt_net")
        mend = (
            "unplug Ethernet at both ends, plug the USB4 cable in again, then Ethernet: the rate is settled when the"
            f" cable comes up (or: {again}); at one lane, a certified 40 Gbit/s cable of at most 0.8 m"
        )
        otherwise: Status = "failed" if least < min(rates) else "warning"
        yield judged(name, "USB4", least >= FULL_BITS_PER_SECOND, text, mend, otherwise)


def _hosts(name: str, node: Node, seen: list[dict[str, Any]] | None) -> Iterator[Check]:
    if seen is None:
        return
    what = "USB4 interrupts"
    if not seen:
        mend = f"{on_node(node.hostname, 'modprobe thunderbolt')}; switch USB4 on in the firmware's setup"
        yield Check(name, what, "failed", "no USB4 host interface (PCI class 0c0340)", mend)
    for each in seen:
        interval = each["interrupt_interval_seconds"]
        if interval is None:
            look = f"salt {node.hostname} hardware.usb4_hosts"
            text = f"{each['address']}: its registers cannot be read (asleep, or kept to its driver)"
            yield Check(name, what, "unknown", text, f"look again under load: cluster control cmd -- {look}")
            continue
        text = f"{each['address']} holds them back for up to {interval * 1e6:.0f} us"
        text += f"; {WANTED_INTERRUPT_SECONDS * 1e6:.0f} halve the latency of small messages"
        mend = f"cluster control cmd -- salt {node.hostname} hardware.set_usb4_interrupt_interval"
        mend += f" {WANTED_INTERRUPT_SECONDS:g}"
        yield judged(name, what, interval <= MOST_INTERRUPT_SECONDS, text, mend, "warning")


def _packets(profile: Profile, name: str, node: Node, seen: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    for network_name, link in node.links.items():
        wanted = profile.networks[network_name].mtu_bytes
        for interface in sorted(link.peers.values()) or [link.interface]:
            what = f"link {network_name}"
            facts = seen.get(interface)
            if facts is None:
                text = f"no {interface}; there are {', '.join(sorted(seen)) or 'none'}"
                mend = "plug it in and load its driver, or name another interface in the profile"
                yield Check(name, what, "failed", text, mend)
                continue
            text = f"{interface} is {facts['state'] or 'in an unknown state'}, packets of {facts['mtu_bytes']} bytes"
            if facts["mtu_bytes"] != wanted:
                # What is larger than the other end takes is lost without a word.
                text += f"; the profile says {wanted}"
                mend = on_node(node.hostname, f"ip link set {interface} mtu {wanted}") + ", or state.apply network"
                yield Check(name, what, "failed", text, mend)
                continue
            mend = "look at its cable and the other end"
            yield judged(name, what, facts["state"] in ("up", "unknown"), text, mend)
