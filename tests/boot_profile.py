"""A profile whose nodes boot over the network, made from the embedded one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

EMBEDDED = Path(__file__).parents[1] / "profiles" / "embedded.yaml"
CHOSEN = {"basis": "chosen", "says": "a machine of the tests"}


def described(
    name: str, control: Mapping[str, Any], subnet: str, nodes: Mapping[str, Mapping[str, Any]], boot: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the profile; `nodes` gives each node's link to the control node's network."""
    profile: dict[str, Any] = yaml.safe_load(EMBEDDED.read_text())
    node = {key: value for key, value in profile["nodes"]["node0"].items() if key != "links"}
    members = list(nodes)
    profile |= {
        "name": name,
        "kind": "hardware",
        "control": {"hostname": "control", "network": "ethernet", **control},
        "networks": {"ethernet": {"kind": "switch", "subnet": subnet, "rate": "1 Gbit/s", "mtu": 1500}},
        "nodes": {
            member: {**node, "hostname": member, "links": {"ethernet": dict(nodes[member])}} for member in members
        },
        "deployments": {"all": {"nodes": members[:2], "tensor_parallel": 2, "link": "ethernet"}},
        "default_deployment": "all",
        "boot": dict(boot),
        "sources": {"networks": CHOSEN, "nodes": CHOSEN, "model": CHOSEN},
    }
    return profile


def write(path: Path, profile: Mapping[str, Any]) -> Path:
    """Write a profile's file."""
    path.write_text(yaml.safe_dump(dict(profile)))
    return path
