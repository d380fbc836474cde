#!py
"""Hand each minion its slice of the profile the master was started with."""

from bottleneck.plan import node_pillar
from bottleneck.profile import load_profile


def run():
    profile = load_profile(__opts__["cluster_profile"])
    names = {node.hostname: name for name, node in profile.nodes.items()}
    name = names.get(__grains__["id"])
    return node_pillar(profile, name) if name else {}
