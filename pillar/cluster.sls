#!py
"""Hand each minion its slice of the profile the master was started with, and the control node its own."""

import sys
from pathlib import Path

from bottleneck.plan.nodes import node_pillar
from bottleneck.profile import load_profile
from control import engine_key, node_keys


def run():
    profile = load_profile(__opts__["cluster_profile"])
    if __opts__.get("cluster_control"):
        from netboot.control_node import control_pillar

        return control_pillar(profile, Path(__opts__["cluster_control"]), f"{sys.prefix}/bin")
    names = {node.hostname: name for name, node in profile.nodes.items()}
    name = names.get(__grains__["id"])
    if name is None:
        return {}
    # The master puts the id of the minion that asks, which it has checked, in the place of what the minion says.
    return {
        **node_pillar(profile, name),
        "engine_api_key": engine_key.key(__opts__),
        "node_key": node_keys.key_of(__opts__, __grains__["id"]).hex(),
    }
