"""Resources of a deployment, and what slows them on every node."""

from typing import Any

import pytest

from bottleneck.experiment.resources import (
    Resource,
    allowed_sequences,
    candidates,
    exchanging_pairs,
    requests_in_cache,
)
from bottleneck.plan.nodes import deployment_record
from bottleneck.plan.workers import DeploymentRecord
from bottleneck.profile import find_profile, load_profile
from bottleneck.profile.engine_types import Actuator
from bottleneck.runs.ceilings import Ceilings
from bottleneck.telemetry.prometheus_text import MetricsText

PROFILE = load_profile(find_profile("embedded"))
GIGABYTE = 1e9


def deployed(name: str, overrides: dict[str, Any] | None = None) -> DeploymentRecord:
    return DeploymentRecord.model_validate(deployment_record(PROFILE, name, overrides))


def found(deployment: str = "tp2", **changes: Any) -> dict[str, Resource]:
    seen = {"cores": 1, "quota_cores": None, "rate_bytes_per_second": GIGABYTE, "delay_seconds": None}
    record = deployed(deployment)
    looked = {"node0": dict(seen), "node1": {**seen, **changes.pop("node1", {})}}
    ceilings = Ceilings.model_validate(changes.pop("ceilings", {}))
    listed = candidates(PROFILE, record, looked, ceilings, changes.pop("concurrency", 4), changes.pop("rate", None))
    assert not changes
    return {resource.name: resource for resource in listed}


def test_two_nodes_that_share_every_layer() -> None:
    resources = found()
    assert list(resources) == [
        *("link_rate:direct", "link_latency:direct", "cpu", "cpu:node0", "cpu:node1", "sequences")
    ]
    slowed = resources["link_rate:direct"].changes_at(4)
    assert slowed["node0"] == {"actuator": "link_rate", "interface": "usb4", "bytes_per_second": GIGABYTE / 4}
    assert slowed["node1"] == slowed["node0"]
    faster = resources["link_rate:direct"].changes_at(0.5)
    assert faster["node0"]["bytes_per_second"] == 2 * GIGABYTE, "an upgrade that is really made"
    assert resources["cpu:node1"].changes_at(2) == {"node1": {"actuator": "cpu_speed", "slowdown": 2}}
    assert set(resources["cpu"].changes_at(2)) == {"node0", "node1"}
    assert resources["sequences"].changes_at(2) == {}, "the load generator does it"


@pytest.mark.parametrize(
    ("blocks", "size", "tokens", "holds"),
    [
        ("40", "16", 288, 2),
        ("40", "16", 289, 2),
        ("40", "16", 4000, 1),
        ("None", "16", 288, None),
        ("0", "16", 1, None),
    ],
)
def test_requests_in_a_cache_are_counted_in_whole_blocks(
    blocks: str, size: str, tokens: int, holds: int | None
) -> None:
    text = f'vllm:cache_config_info{{block_size="{size}",num_gpu_blocks="{blocks}"}} 1.0\n'
    assert requests_in_cache([MetricsText.parse(text)], tokens) == holds
    assert requests_in_cache([MetricsText.parse(text)] * 2, tokens) == (holds and 2 * holds), "two replicas"
    assert requests_in_cache([MetricsText()], tokens) is None and requests_in_cache([], tokens) is None


def test_fewer_fit_into_the_cache_than_are_under_way() -> None:
    record = deployed("tp2")
    looked = {node: {"cores": 1, "quota_cores": None} for node in ("node0", "node1")}
    for cached, amount in ((None, 8.0), (3, 3.0), (20, 8.0)):
        slots = [
            each
            for each in candidates(PROFILE, record, looked, Ceilings(), 8, None, cached)
            if each.kind == "sequences"
        ]
        assert [each.amount for each in slots] == [amount]


def test_what_a_link_carries_is_the_least_that_is_known() -> None:
    way = {"bandwidth_bytes_per_second": {"median": 4e8}, "latency_seconds": {"median": 3e-5}}
    ceilings = {"links": {"direct": {"node0->node1": way, "node1->node0": way}}}
    assert found()["link_rate:direct"].amount == GIGABYTE
    # Frames of 1514 bytes carry 1448 of a probe's.
    assert found(ceilings=ceilings)["link_rate:direct"].amount == pytest.approx(4e8 * 1514 / 1448)
    assert found(node1={"rate_bytes_per_second": 5e6}, ceilings=ceilings)["link_rate:direct"].amount == 5e6
    way["bandwidth_bytes_per_second"]["median"] = 0.99 * 5e6 * 1448 / 1514
    seen = found(node1={"rate_bytes_per_second": 5e6}, ceilings=ceilings)["link_rate:direct"]
    assert seen.amount == pytest.approx(0.99 * 5e6), "slowed to a third it has a third of what it had"
    delay = found(ceilings=ceilings)["link_latency:direct"]
    assert delay.amount == 3e-5 and delay.has_placebo
    assert delay.changes_at(11)["node0"] == {
        "actuator": "link_latency",
        "interface": "usb4",
        "peers": {"10.77.1.11": "02:77:00:00:01:11"},
        "seconds": pytest.approx(3e-4),
    }
    assert delay.changes_at(1)["node0"]["seconds"] == 0.0, "its placebo: the relay without a delay"


def test_a_delay_that_is_there_is_made_longer_or_shorter() -> None:
    delay = found(node1={"delay_seconds": 0.01})["link_latency:direct"]
    assert not delay.has_placebo
    assert delay.changes_at(2)["node1"]["seconds"] == pytest.approx(0.01 + delay.amount)
    assert delay.changes_at(0.5)["node1"]["seconds"] == pytest.approx(0.01 - delay.amount / 2)
    assert delay.changes_at(1e-9)["node0"]["seconds"] == 0.0, "never below nothing"


def test_a_node_under_a_quota_is_slowed_by_its_quota() -> None:
    resources = found(node1={"quota_cores": 0.4})
    assert resources["cpu:node1"].amount == 0.4
    assert resources["cpu:node1"].changes_at(2) == {"node1": {"actuator": "cpu_quota", "cores": 0.2}}
    assert resources["cpu:node1"].changes_at(0.4)["node1"]["cores"] == pytest.approx(1.0), "lifted"
    assert resources["cpu"].changes_at(2) == {
        "node0": {"actuator": "cpu_speed", "slowdown": 2},
        "node1": {"actuator": "cpu_quota", "cores": 0.2},
    }
    assert found(node1={"quota_cores": 2.0})["cpu:node1"].changes_at(2)["node1"]["actuator"] == "cpu_speed"


def test_replicas_exchange_nothing_and_a_single_node_is_the_only_one() -> None:
    assert list(found("replicas")) == ["cpu", "cpu:node0", "cpu:node1", "sequences"]
    assert list(found("single")) == ["cpu:node0", "sequences"]
    assert "sequences" not in found(concurrency=1)
    assert found(concurrency=None, rate=0.5)["arrivals"].at(2) == 0.25


def test_pairs_and_slots_are_read_off_the_workers() -> None:
    record = deployed("replicas", {"max_num_seqs": 3})
    assert exchanging_pairs(record) == [] and allowed_sequences(record) == 6
    record = deployed("tp2")
    assert exchanging_pairs(record) == [("node0", "node1")] and allowed_sequences(record) == 16


def test_a_limit_that_the_engine_map_names_is_a_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Actuator(unit="W", read=["show"], write=["set", "{value}"])
    monkeypatch.setitem(PROFILE.engines["cpu"].actuators, "power", limit)
    seen = {"cores": 1, "quota_cores": None, "settings": {"power": "300.00"}}
    record = deployed("single")
    (power,) = [
        each for each in candidates(PROFILE, record, {"node0": seen}, Ceilings(), None) if each.kind == "setting"
    ]
    assert power.amount == 300.0 and power.largest == 2.0
    assert power.changes_at(1.5) == {
        "node0": {"actuator": "setting", "name": "power", "read": ["show"], "write": ["set", "{value}"], "value": 200}
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"path": "/sys/x", "read": ["a"], "write": ["b", "{value}"]},
        {"read": ["a"]},
        {"read": ["a"], "write": ["b"]},
    ],
)
def test_a_limit_has_exactly_one_way(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Actuator(unit="W", **wrong)
