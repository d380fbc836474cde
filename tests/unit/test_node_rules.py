"""Rules whose signals this machine cannot make: what they say of made-up samples, at several strengths.

The samples of a simulated run get counters as the sampler writes them on hardware that has them. What is tested is that
a strong signal is named and placed, that the place is right, and that without the signal the class is never named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bottleneck.diagnosis.causes.straggler import CROWDED, QUOTA, SLOW_CPU, SLOW_MEMORY
from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run import Run
from tests.unit.simulator import EPOCH, measured_anew, simulate

Put = Callable[[dict[str, Any], float], None]


def injected(put: Put, node: str = "node1", **world: Any) -> Run:
    """Return a simulated run whose samples of one node hold something more; `put` gets a sample and its time."""
    run = simulate(**world).run()
    for batch in run.batches:
        for sample in batch["samples"]:
            if batch["node"] == node:
                put(sample, sample["t"] - EPOCH)
    return run


def heat(share: float) -> Put:
    return lambda sample, moment: sample.update(thermal={"throttled_s": share * moment})


def hot_card(low: float, celsius: float, power: float) -> Put:
    def put(sample: dict[str, Any], moment: float) -> None:
        clock = 2.1e9 if moment < 1 else 2.1e9 * low
        card = {"frequency_hertz": clock, "temperature_celsius": celsius}
        sample["accelerator"] = {"card0": card | {"power_watts": power * 225, "power_limit_watts": 225.0}}

    return put


def far_memory(share: float) -> Put:
    pages = 1e6
    return lambda sample, moment: sample.update(
        numa={"remote_pages": share * pages * moment, "local_pages": (1 - share) * pages * moment}
    )


def no_memory(share: float) -> Put:
    return lambda sample, moment: sample.update(
        psi={"memory": [share * moment, 0.3 * share * moment]}, mem={"total": 16e9, "available": 0.02 * 16e9}
    )


@pytest.mark.parametrize(
    ("name", "put"),
    [
        *(("thermal_throttling", heat(share)) for share in (0.5, 0.65, 0.8)),
        ("thermal_throttling", hot_card(0.4, 91.0, 0.8)),
        ("thermal_throttling", hot_card(0.5, 70.0, 1.0)),
        *(("numa_pcie", far_memory(share)) for share in (0.95, 1.0)),
        *(("memory_capacity", no_memory(share)) for share in (0.5, 0.7, 0.9)),
    ],
)
@pytest.mark.parametrize("node", ["node0", "node1"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_signal_is_named_and_placed(name: str, put: Put, node: str, seed: int) -> None:
    verdict = analyse(injected(put, node, seed=seed))
    named = {verdict.name, *verdict.undecided, *(item["class"] for item in verdict.runners_up)}
    assert name in named, (verdict.name, verdict.runners_up)
    if name != "numa_pcie":  # a remote memory costs half of what it holds at the most: never more than the work itself
        assert verdict.name == name and verdict.where["node"] == node
        assert verdict.confidence > 0.3


@pytest.mark.parametrize(
    "put",
    [heat(0.0), heat(0.05), hot_card(0.97, 60.0, 0.6), hot_card(0.5, 60.0, 0.5), far_memory(0.05), no_memory(0.03)],
)
def test_a_weak_signal_is_no_bottleneck(put: Put) -> None:
    verdict = analyse(injected(put))
    assert verdict.name not in ("thermal_throttling", "numa_pcie", "memory_capacity")


def test_storage_that_is_read_while_nothing_is_served_is_the_start() -> None:
    run = simulate(concurrency=None, arrival_seconds=12.0, requests=3).run()
    for batch in run.batches:
        for sample in batch["samples"]:
            sample["disk"] = {"read_bytes": 4e8 * (sample["t"] - EPOCH), "write_bytes": 0.0}
    run = measured_anew(
        run, lambda known: [facts.update(disk_read_bytes_per_second=4.1e8) for facts in known["nodes"].values()]
    )
    verdict = analyse(run)
    assert verdict.name == "weight_loading", verdict.to_json()
    for batch in run.batches:
        for sample in batch["samples"]:
            del sample["disk"]
    assert analyse(run).name == "client_limited"


# -- messages and stages


@pytest.mark.parametrize("seconds", [0.004, 0.006, 0.01])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_slow_messages_are_latency_and_not_bandwidth(seconds: float, seed: int) -> None:
    run = simulate(message_seconds=seconds, input_tokens=32, output_tokens=64, seed=seed).run()
    verdict = analyse(run)
    assert (verdict.name, verdict.where["link"]) == ("link_latency", "direct"), verdict.to_json()["evidence"]
    assert any("fewer messages" in line for line in verdict.advice)
    assert not any(item["class"] == "link_bandwidth" and item["confidence"] > 0.1 for item in verdict.runners_up)


def test_a_healthy_link_has_no_latency_to_speak_of() -> None:
    assert analyse(simulate().run()).name != "link_latency"


# -- the kind of a straggler


@pytest.mark.parametrize("node", ["node0", "node1"])
@pytest.mark.parametrize(
    ("kind", "world"),
    [(QUOTA, {"quota": 0.35}), (QUOTA, {"quota": 0.5}), (CROWDED, {"stolen": 0.6}), (SLOW_CPU, {"speed": 0.4})],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_slow_node_is_named_with_what_it_lacks(kind: str, world: dict[str, float], node: str, seed: int) -> None:
    verdict = analyse(simulate(seed=seed, **{name: {node: value} for name, value in world.items()}).run())
    assert (verdict.name, verdict.where["node"], verdict.kind) == ("straggler", node, kind)
    assert kind in verdict.title


@pytest.mark.parametrize("seed", [1, 2])
def test_a_second_slow_node_is_seen_behind_the_first(seed: int) -> None:
    """Two nodes that are held back in two ways hide each other: neither is slower than the slowest of its peers."""
    verdict = analyse(simulate(seed=seed, quota={"node0": 0.45}, stolen={"node1": 0.45}).run())
    places = [(verdict.name, verdict.where["node"])]
    places += [(each["class"], each["node"]) for each in verdict.runners_up]
    assert {("straggler", "node0"), ("straggler", "node1")} <= set(places), places
    assert len(places) == len(set(places))


def test_nodes_that_are_held_back_alike_have_no_second_straggler() -> None:
    verdict = analyse(simulate(quota={"node0": 0.5, "node1": 0.3}).run())
    assert (verdict.name, verdict.where["node"]) == ("straggler", "node1")
    assert "straggler" not in [each["class"] for each in verdict.runners_up]


def test_slow_memory_is_distinguished_from_a_slow_cpu() -> None:
    run = simulate(speed={"node1": 0.4}).run()
    name = "gemm_bf16_flops_per_second"
    run = measured_anew(run, lambda known: known["nodes"]["node1"].update({name: known["nodes"]["node0"][name]}))
    verdict = analyse(run)
    assert (verdict.name, verdict.where["node"], verdict.kind) == ("straggler", "node1", SLOW_MEMORY)


def test_a_collective_alone_names_no_straggler() -> None:
    """Both nodes wait for each other; without a node's own counters and ceilings no one of them is to blame."""
    run = simulate(quota={"node1": 0.3}).run()
    for batch in run.batches:
        for sample in batch["samples"]:
            sample["cgroup"], sample["workers"] = {}, {}
    assert analyse(run).name != "straggler"
