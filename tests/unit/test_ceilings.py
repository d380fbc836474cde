"""Ceilings: their statistics, what is kept of older ones, and the file."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bottleneck.profile import find_profile, load_profile
from bottleneck.runs import ceilings

MACHINE = {"cpu_model": "x", "cores": 1, "memory_bytes": 2**30, "kernel": "6.1", "machine_id_digest": "aa"}


def node(flops: float, **machine: Any) -> ceilings.NodeCeilings:
    measured = {"values": {"gemm_bf16_flops_per_second": [flops] * 3}, "notes": {"disk_read": "direct"}}
    return ceilings.node_ceilings({**MACHINE, **machine}, measured, 5.0)


def test_a_ceiling_is_of_the_device_it_was_measured_on_or_is_none() -> None:
    values = {
        "gemm_bf16_flops_per_second": [1e12] * 3,
        "kernel_dispatch_seconds": [2e-6],
        "disk_read_bytes_per_second": [1e9],
    }
    card = {"kind": "xpu", "name": "Intel(R) Arc(TM) A770 Graphics", "by": "torch 2.14.0+xpu"}
    for device, kind, well in ((card, "xpu", True), (card, "cuda", False), (None, "xpu", False), (None, "cpu", True)):
        found = ceilings.node_ceilings(MACHINE, {"values": values, "device": device}, 5.0, kind)
        assert (found.gemm_bf16_flops_per_second is not None) == well
        assert (found.kernel_dispatch_seconds is not None) == well
        assert found.disk_read_bytes_per_second is not None, "the machine's own"
        assert ("accelerator" in found.notes) != well


def test_a_file_of_before_has_no_ceilings_of_a_card(tmp_path: Path) -> None:
    profile = load_profile(find_profile("arc-a770/v0.1"))
    before = ceilings.Ceilings(profile=profile.name, nodes={"node0": node(1e12), "stranger": node(1e12)})
    ceilings.store(tmp_path / "ceilings.json", before)
    found = ceilings.load(tmp_path / "ceilings.json", profile)
    assert found is not None and found.nodes["node0"].gemm_bf16_flops_per_second is None
    assert "measured on cpu and not on xpu" in found.nodes["node0"].notes["accelerator"]
    assert found.nodes["stranger"].gemm_bf16_flops_per_second, "it is not known what it has"
    assert ceilings.load(tmp_path / "ceilings.json") == before


@pytest.mark.parametrize(
    ("name", "kind"), [("embedded", "cpu"), ("arc-a770/v0.1", "xpu"), ("ryzen-ai-max/v0.2", "cuda")]
)
def test_the_engine_map_says_what_is_measured(name: str, kind: str) -> None:
    profile = load_profile(find_profile(name))
    assert ceilings.device_kind(profile, next(iter(profile.nodes))) == kind


def test_every_measure_of_an_accelerator_is_a_field() -> None:
    assert set(ceilings.ACCELERATOR_MEASURES) < set(ceilings.NodeCeilings.model_fields)


def link(bandwidth: float) -> dict[str, ceilings.LinkCeilings]:
    measured = {
        "latency_seconds": [2e-5, 3e-5, 1e-5],
        "to_peer_bytes_per_second": [bandwidth],
        "from_peer_bytes_per_second": [2 * bandwidth],
    }
    return ceilings.link_ceilings("node0", "node1", measured, 6.0)


def reduction(seconds: float) -> ceilings.CollectiveCeilings:
    sizes = {2048: ceilings.Spread(median=seconds, low=seconds, high=seconds, samples=3)}
    return ceilings.CollectiveCeilings(deployment="tp2", backend="gloo", link="direct", ranks=2, sizes=sizes)


def whole(measured: float = 1.0, **parts: Any) -> ceilings.Ceilings:
    return ceilings.Ceilings(measured=measured, profile="embedded", **parts)


def test_spread_has_the_median_its_interval_and_the_count() -> None:
    found = ceilings.spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found == ceilings.Spread(median=3.0, low=1.0, high=5.0, samples=5)


def test_one_disturbed_repeat_of_nine_does_not_move_the_interval_to_it() -> None:
    found = ceilings.spread([1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 90.0])
    assert found is not None
    assert found.median == 1.04 and found.high < 2


def test_what_is_no_measurement_is_left_out() -> None:
    found = ceilings.spread([0.0, -1.0, float("nan"), float("inf"), 2.0])
    assert found == ceilings.Spread(median=2.0, low=2.0, high=2.0, samples=1)
    assert ceilings.spread([0.0]) is None
    assert ceilings.spread([]) is None


def test_both_directions_of_a_link_have_their_own_bandwidth() -> None:
    found = link(100.0)
    assert set(found) == {"node0->node1", "node1->node0"}
    forth, back = found["node0->node1"], found["node1->node0"]
    assert forth.bandwidth_bytes_per_second and forth.bandwidth_bytes_per_second.median == 100.0
    assert back.bandwidth_bytes_per_second and back.bandwidth_bytes_per_second.median == 200.0
    assert forth.latency_seconds and forth.latency_seconds.median == 2e-5
    assert forth.latency_seconds == back.latency_seconds


def test_the_file_has_the_form_that_the_analysis_reads() -> None:
    document = whole(nodes={"node0": node(1e9)}, links={"direct": link(1e8)}, allreduce=reduction(1e-3)).to_json()
    assert document["schema"] == 1
    assert document["nodes"]["node0"]["gemm_bf16_flops_per_second"]["median"] == 1e9
    assert document["nodes"]["node0"]["machine"]["kernel"] == "6.1"
    assert "disk_read_bytes_per_second" not in document["nodes"]["node0"], "what was not measured is not there"
    assert document["links"]["direct"]["node0->node1"]["bandwidth_bytes_per_second"]["median"] == 1e8
    assert document["allreduce"]["sizes"]["2048"]["median"] == 1e-3
    assert document["allreduce"]["ranks"] == 2
    assert ceilings.parse(json.loads(json.dumps(document))).to_json() == document


def test_measuring_a_part_keeps_the_rest() -> None:
    old = whole(nodes={"node0": node(1.0), "node1": node(2.0)}, links={"direct": link(3.0)}, allreduce=reduction(4.0))
    new = whole(2.0, links={"direct": link(30.0), "ethernet": link(31.0)})
    merged = ceilings.merge(old, new)
    assert merged.measured == 2.0
    assert set(merged.nodes) == {"node0", "node1"}
    assert merged.allreduce == old.allreduce
    assert merged.links == new.links
    nodes_only = ceilings.merge(old, whole(3.0, nodes={"node0": node(9.0)}))
    assert nodes_only.links == old.links
    assert nodes_only.nodes["node0"].gemm_bf16_flops_per_second == node(9.0).gemm_bf16_flops_per_second
    assert nodes_only.nodes["node1"] == old.nodes["node1"]


def test_another_machine_under_the_same_name_takes_its_links_and_messages_with_it() -> None:
    old = whole(nodes={"node0": node(1.0)}, links={"direct": link(3.0)}, allreduce=reduction(4.0))
    replaced = ceilings.merge(old, whole(nodes={"node0": node(1.0, machine_id_digest="bb")}))
    assert replaced.links == {} and replaced.allreduce is None
    upgraded = ceilings.merge(old, whole(nodes={"node0": node(1.0, kernel="6.12")}))
    assert upgraded.links == old.links and upgraded.allreduce == old.allreduce


def test_nothing_is_taken_from_another_profile() -> None:
    old = whole(links={"direct": link(3.0)}).model_copy(update={"profile": "other"})
    assert ceilings.merge(old, whole()).links == {}
    assert ceilings.merge(None, whole()) == whole()


def test_older_files_are_kept_the_last_ten(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ceilings.json"
    for count in range(14):
        ceilings.store(path, whole(float(count)))
        os.utime(path, (1_700_000_000 + count, 1_700_000_000 + count))
    loaded = ceilings.load(path)
    assert loaded is not None and loaded.measured == 13.0
    older = sorted(path.parent.glob("ceilings-*.json"))
    assert len(older) == 10
    assert [json.loads(each.read_text())["measured"] for each in older] == [float(count) for count in range(3, 13)]
    assert older[0].name == "ceilings-20231114T221323Z.json"
    assert not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "ceilings.json"),
        ("[]", "a list; expected a JSON object"),
        ('{"schema": 2}', "schema 2, expected 1: run cluster probe"),
        (
            '{"schema": 1, "nodes": {"a": {"cores": 1, "disk_read_bytes_per_second": -1}}}',
            "median: -1; input should be",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "ceilings.json"
    path.write_text(text)
    with pytest.raises(ceilings.CeilingsError) as caught:
        ceilings.load(path)
    assert says in str(caught.value)
    assert ceilings.load(tmp_path / "missing.json") is None
