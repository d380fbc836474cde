"""Wires of a lab: the lines that make them, without making any."""

from pathlib import Path

import pytest

from bottleneck.profile import Profile, load_profile
from lab.layout import CONTROL, LabError
from lab.network import (
    Port,
    address_lines,
    hosts_text,
    link_lines,
    plan_wiring,
    shape_line,
    shape_lines,
)

EMBEDDED = Path(__file__).resolve().parents[2] / "profiles" / "embedded.yaml"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(EMBEDDED)


def test_switch_is_in_the_control_namespace_and_cables_are_between_nodes(profile: Profile) -> None:
    lines = link_lines(plan_wiring(profile), {CONTROL: 11, "node0": 22, "node1": 33})

    assert lines[CONTROL][1] == "link add name ethernet mtu 1500 type bridge forward_delay 0"
    assert lines[CONTROL][2] == (
        "link add name node0.0 mtu 1500 type veth peer name eth0 mtu 1500 address 02:77:00:00:00:10 netns 22"
    )
    assert lines["node0"] == [
        "link set lo up",
        "link add name usb4 mtu 1500 address 02:77:00:00:01:10 type veth "
        "peer name usb4 mtu 1500 address 02:77:00:00:01:11 netns 33",
    ]
    assert lines["node1"] == ["link set lo up"]


def test_addresses_follow_the_profile(profile: Profile) -> None:
    lines = address_lines(plan_wiring(profile))

    assert "addr add 10.77.0.1/24 brd + dev ethernet" in lines[CONTROL]
    assert "link set node1.0 master ethernet up" in lines[CONTROL]
    assert lines["node1"] == [
        "addr add 10.77.0.11/24 brd + dev eth0",
        "link set eth0 up",
    ], "the direct link is the network state's to bring up"


def test_both_ends_of_every_wire_are_shaped(profile: Profile) -> None:
    lines = shape_lines(plan_wiring(profile).ports())

    assert {place: len(batch) for place, batch in lines.items()} == {CONTROL: 2, "node0": 2, "node1": 2}
    assert all("tbf rate 125000000bps" in line for line in lines[CONTROL])


def test_bucket_holds_a_packet_and_what_a_timer_needs() -> None:
    fast = shape_line("usb4", 1e9, 9000)
    slow = shape_line("usb4", 2.5e6, 9000)

    assert "burst 109018 " in fast
    assert "burst 9268 " in slow


def test_queue_does_not_drop_whatever_the_rate() -> None:
    assert shape_line("eth0", 2.5e6, 1500).endswith(f"limit {1_768 + 8 * 2**20}")
    assert shape_line("eth0", 1e9, 1500).endswith(f"limit {101_518 + 8 * 2**20}")


def test_no_rate_means_no_shaping() -> None:
    assert shape_line("eth0", None, 1500) == "qdisc replace dev eth0 root noqueue"


def test_hosts_name_each_machine_once(profile: Profile) -> None:
    assert hosts_text(profile).splitlines() == [
        "127.0.0.1 localhost",
        "10.77.0.1 control",
        "10.77.0.10 node0",
        "10.77.0.11 node1",
    ]


def test_cable_with_one_end_is_refused(profile: Profile) -> None:
    node = profile.nodes["node1"]
    only_switched = node.model_copy(update={"links": {"ethernet": node.links["ethernet"]}})
    broken = profile.model_copy(update={"nodes": {**profile.nodes, "node1": only_switched}})

    with pytest.raises(LabError, match="direct is point-to-point and has 1 nodes; expected 2"):
        plan_wiring(broken)


def test_interface_names_fit_the_kernel(profile: Profile) -> None:
    long_name = "a-very-long-node-name"
    renamed = profile.model_copy(update={"nodes": {long_name: profile.nodes["node0"], "b": profile.nodes["node1"]}})

    ports: list[Port] = plan_wiring(renamed).ports()

    assert all(len(port.interface) <= 15 for port in ports)
