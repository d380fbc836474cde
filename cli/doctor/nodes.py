"""The nodes: judges what their `hardware` module read against the profile."""

from collections.abc import Iterator, Mapping
from typing import Any

from bottleneck.profile.types import Node, Profile
from cli.doctor.accelerators import HOT_CELSIUS, judge_accelerators
from cli.doctor.check import Check, judged
from cli.doctor.links import judge_links


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
    if not profile.engine_of(name).host_processor:
        yield from judge_accelerators(name, node, seen)
    yield from judge_links(profile, name, seen)
    if seen["numa_nodes"] is not None:
        yield Check(name, "NUMA", "ok", f"{seen['numa_nodes']} nodes, CPUs {seen['cpus_online']}")
    for chip, value in seen["temperatures_celsius"].items():
        if value >= HOT_CELSIUS:
            yield Check(name, "temperature", "warning", f"{chip}: {value:.0f} degrees Celsius", "look at fans and dust")
    if seen["temperatures_celsius"] and max(seen["temperatures_celsius"].values()) < HOT_CELSIUS:
        chip, value = max(seen["temperatures_celsius"].items(), key=lambda item: item[1])
        yield Check(name, "temperature", "ok", f"hottest: {chip}, {value:.0f} degrees Celsius")


def judge_engines(name: str, seen: list[dict[str, Any]]) -> Iterator[Check]:
    """Return a check for each thing that `engine.checks` looked at on a node."""
    for each in seen:
        yield judged(
            name,
            f"{each['kind']}: {each['what']}",
            each["is_well"],
            each["evidence"],
            each["next"].replace("NODE", name),
        )


def _firmware(name: str, node: Node, seen: Mapping[str, Any]) -> Iterator[Check]:
    booted = "uefi" if seen["uefi"] else "bios"
    shown = " ".join(str(seen[key]) for key in ("board", "vendor", "version", "date") if seen[key]) or "no DMI"
    fits = node.firmware is None or node.firmware == booted
    evidence = f"{shown}, booted by {booted}{'' if fits else f'; expected {node.firmware}'}"
    yield judged(name, "firmware", fits, evidence, "change the boot mode in the firmware's setup", "warning")
