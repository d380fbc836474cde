"""The experiment finds the shares that a simulated cluster was given, and says how sure it is."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import bottleneck.experiment.predict as predict_module
from bottleneck.diagnosis.causes import CAUSES
from bottleneck.experiment.blocks import Block, BlockError, Measurement, measurement
from bottleneck.experiment.model import fit
from bottleneck.experiment.predict import DECODE_CLASSES, Circumstances, conclude, measured_gain, predict, report
from bottleneck.experiment.resources import CPU, LINK_LATENCY, LINK_RATE, SEQUENCES, Resource
from bottleneck.experiment.session import Session

LINK = Resource("link_rate:direct", LINK_RATE, 5e6, "B/s", 40.0, ("node0", "node1"), {"node": None, "link": "direct"})
DELAY = Resource(
    "link_latency:direct",
    LINK_LATENCY,
    1e-4,
    "s",
    1000.0,
    ("node0", "node1"),
    {"node": None, "link": "direct"},
    has_placebo=True,
)
ALL = Resource(CPU, CPU, 2.0, "cores", 8.0, ("node0", "node1"))


def core(node: str, cores: float = 1.0) -> Resource:
    return Resource(f"cpu:{node}", CPU, cores, "cores", 8.0, (node,), {"node": node, "link": None})


class World:
    """A cluster whose burst is a sum of parts, with noise and drift: what the driver would measure."""

    def __init__(
        self,
        seed: int,
        *,
        link: float,
        delay: float,
        loads: dict[str, float],
        noise: float = 0.03,
        drift: float = 0.0,
        placebo: float = 0.0,
        seconds: float = 5.0,
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.link, self.delay, self.loads = link, delay, loads
        self.noise, self.drift, self.placebo, self.seconds = noise, drift, placebo, seconds
        self.now = 0.0

    def relative(self, resource: Resource | None, slowdown: float) -> float:
        name = resource.name if resource else ""
        stretch = {node: slowdown if name in (CPU, f"cpu:{node}") else 1.0 for node in self.loads}
        work = max(load * stretch[node] for node, load in self.loads.items())
        link = self.link * (slowdown if name == LINK.name else 1.0)
        delay = self.delay * (slowdown if name == DELAY.name else 1.0)
        rest = 1.0 - self.link - self.delay - max(self.loads.values())
        return rest + work + link + delay + (self.placebo if name == DELAY.name else 0.0)

    def measure(self, block: Block) -> Measurement:
        burst = self.seconds * self.relative(block.resource, block.slowdown)
        burst *= math.exp(self.random.normal(0, self.noise) + self.drift * self.now / 180)
        started, self.now = self.now, self.now + burst
        return Measurement(block, started, burst, burst / 128, burst / 4, burst / 100, 4)


def experiment(
    world: World, resources: Sequence[Resource], groups: list[list[str]], seed: int = 1, budget: float = 180.0
) -> Session:
    session = Session(resources, groups, seed=seed, budget_seconds=budget)
    while (block := session.next_block(world.now)) is not None:
        session.add(world.measure(block))
    return session


EVERYTHING = [LINK, DELAY, ALL, core("node0"), core("node1")]
PARALLEL = [["node0", "node1"]]


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    inside = trials = 0
    for seed in range(24):
        world = World(seed, link=0.4, delay=0.1, loads={"node0": 0.3, "node1": 0.3}, drift=0.3, placebo=0.05)
        session = experiment(world, EVERYTHING, PARALLEL, seed)
        estimates = session.fit()
        assert estimates is not None
        for resource, truth in ((LINK, 0.4), (DELAY, 0.1), (ALL, 0.3)):
            found = estimates.share(resource)
            inside += found.low <= truth <= found.high
            trials += 1
    # 95 % of 72: 68; three standard deviations of a binomial below it are 63.
    assert inside >= 63, f"{inside} of {trials}"


def test_random_order_keeps_drift_out() -> None:
    errors = []
    for seed in range(10):
        world = World(seed, link=0.5, delay=0.0, loads={"node0": 0.2}, drift=0.8, noise=0.01)
        estimates = experiment(world, [LINK, core("node0")], [], seed, budget=120).fit()
        assert estimates is not None
        errors.append(abs(estimates.share(LINK).value - 0.5))
    assert float(np.median(errors)) < 0.03


def test_a_throttled_link_is_confirmed_and_its_upgrade_predicted() -> None:
    world = World(3, link=0.7, delay=0.02, loads={"node0": 0.2, "node1": 0.2})
    session = experiment(world, EVERYTHING, PARALLEL)
    conclusion = conclude(session, Circumstances())
    assert (conclusion.name, conclusion.link, conclusion.confirmed) == ("link_bandwidth", "direct", True)
    estimates = session.fit()
    assert estimates is not None
    gain = predict(estimates, LINK, 10.0).saved
    assert gain.low <= 0.7 * 0.9 <= gain.high and abs(gain.value - 0.63) < 0.05
    assert predict(estimates, LINK, math.inf).saved.value == pytest.approx(0.7, abs=0.06)


def test_no_upgrade_saves_more_than_all_of_the_time() -> None:
    estimates = experiment(World(3, link=0.97, delay=0, loads={"node0": 0.02}), [LINK], []).fit()
    assert estimates is not None
    place = estimates.layout.index[f"share {LINK.name}"]
    for estimated, most in ((1.25, 1.0), (-0.2, 0.0)):
        parameters = estimates.parameters.copy()
        parameters[place] = estimated
        changed = replace(estimates, parameters=parameters, covariance=0 * estimates.covariance)
        assert predict(changed, LINK, 4.0).saved.value == pytest.approx(0.75 * most)
        assert changed.share(LINK).value == estimated, "what was measured is shown as it is"


@pytest.mark.parametrize(("seconds", "slowdown"), [(50e-6, 21.0), (0.5e-3, 3.0), (20e-3, 2.0)])
def test_a_latency_is_first_made_a_millisecond_longer_and_at_least_doubled(seconds: float, slowdown: float) -> None:
    delay = replace(DELAY, amount=seconds, largest=0.1 / seconds, has_placebo=False)
    session = Session([delay], [])
    tried = [block.slowdown for _ in range(2) if (block := session.next_block(0.0)) is not None and block.resource]
    assert tried == [pytest.approx(slowdown)]


def test_one_slow_node_is_distinguished_from_slow_nodes() -> None:
    resources = [LINK, ALL, core("node0"), core("node1", 0.35)]
    slow = experiment(World(4, link=0.1, delay=0.0, loads={"node0": 0.3, "node1": 0.8}), resources, PARALLEL)
    found = conclude(slow, Circumstances())
    assert (found.name, found.node, found.confirmed) == ("straggler", "node1", True), found.statement
    estimates = slow.fit()
    assert estimates is not None
    # A faster node1 gains only until node0 is the slower one: 0.8 falls to 0.3.
    assert predict(estimates, resources[3], 100.0).saved.value == pytest.approx(0.5, abs=0.08)
    assert predict(estimates, resources[2], 100.0).saved.value == pytest.approx(0.0, abs=0.03)

    alike = experiment(World(5, link=0.1, delay=0.0, loads={"node0": 0.8, "node1": 0.8}), EVERYTHING, PARALLEL)
    found = conclude(alike, Circumstances())
    assert found.confirmed and found.candidates == ("prefill_compute",), found.statement


def test_stages_that_take_turns_add_up() -> None:
    class Turns(World):
        def relative(self, resource: Resource | None, slowdown: float) -> float:
            name = resource.name if resource else ""
            work = sum(load * (slowdown if name in (CPU, f"cpu:{node}") else 1) for node, load in self.loads.items())
            return 1.0 - sum(self.loads.values()) + work

    session = experiment(Turns(6, link=0, delay=0, loads={"node0": 0.5, "node1": 0.3}), EVERYTHING[2:], [])
    estimates = session.fit()
    assert estimates is not None
    assert estimates.share(core("node0")).value == pytest.approx(0.5, abs=0.06)
    assert estimates.share(core("node1")).value == pytest.approx(0.3, abs=0.06)
    assert conclude(session, Circumstances()).name == "prefill_compute"
    assert conclude(session, Circumstances(output_tokens=100)).candidates == DECODE_CLASSES


def test_the_actuators_own_cost_is_not_taken_for_the_resource() -> None:
    world = World(7, link=0.0, delay=0.01, loads={"node0": 0.9}, placebo=0.3)
    estimates = experiment(world, [DELAY, core("node0")], []).fit()
    assert estimates is not None
    found = estimates.share(DELAY)
    assert found.value < 0.03 and found.half_width < 0.03
    assert predict(estimates, DELAY, math.inf).saved.value < 0.03


def test_it_stops_when_the_intervals_are_narrow_enough() -> None:
    session = experiment(World(8, link=0.5, delay=0, loads={"node0": 0.3}, noise=0.005), [LINK, core("node0")], [])
    assert session.stopped == "every interval is narrow enough"
    assert session.measurements[-1].started_seconds < 120
    noisy = World(8, link=0.5, delay=0, loads={"node0": 0.3}, noise=0.3)
    session = experiment(noisy, [LINK, core("node0")], [])
    assert session.stopped == "the time is up" and noisy.now < 230


def test_a_disturbed_block_does_not_carry_the_estimate_away() -> None:
    class Disturbed(World):
        def measure(self, block: Block) -> Measurement:
            found = super().measure(block)
            if block.index in (5, 11):
                return Measurement(
                    block,
                    found.started_seconds,
                    found.burst_seconds,
                    found.time_seconds * 4,
                    found.ttft_seconds,
                    found.itl_seconds,
                    4,
                )
            return found

    estimates = experiment(Disturbed(9, link=0.5, delay=0, loads={"node0": 0.3}), [LINK, core("node0")], []).fit()
    assert estimates is not None
    assert estimates.share(LINK).value == pytest.approx(0.5, abs=0.1)


def test_the_same_seed_lays_out_the_same_experiment() -> None:
    def order(seed: int) -> list[str]:
        world = World(1, link=0.5, delay=0, loads={"node0": 0.3}, noise=0.0)
        return [each.block.label for each in experiment(world, [LINK, core("node0")], [], seed).measurements]

    assert order(1) == order(1) != order(2)


def test_nothing_tried_nothing_reported() -> None:
    session = Session([], [])
    assert session.next_block(0.0) is None
    assert conclude(session, Circumstances()).name == "inconclusive"
    few = Session([LINK], [])
    few.add(World(1, link=0.5, delay=0, loads={"node0": 0.3}).measure(Block(0)))
    assert few.fit() is None and report(few, Circumstances())["conclusion"]["confirmed"] is False


def test_a_resource_that_holds_nothing_back_is_no_bottleneck() -> None:
    session = experiment(World(2, link=0.01, delay=0, loads={"node0": 0.02}), [LINK, core("node0")], [])
    found = conclude(session, Circumstances())
    assert (found.name, found.confirmed) == ("inconclusive", True) and "no resource" in found.statement


def test_two_like_causes_are_not_distinguished() -> None:
    session = experiment(World(2, link=0.45, delay=0, loads={"node0": 0.45}), [LINK, core("node0")], [])
    found = conclude(session, Circumstances())
    assert not found.confirmed and set(found.candidates) == {"link_bandwidth", "prefill_compute"}
    assert found.settle(["link_bandwidth", "straggler"]) is None


def test_an_upgrade_that_was_made_is_measured() -> None:
    gain = measured_gain([2.0, 2.02, 1.98], [1.0, 1.01, 0.99]).saved
    assert gain.value == pytest.approx(0.5, abs=0.01) and gain.low < 0.5 < gain.high
    with pytest.raises(ValueError, match="at least two of each"):
        measured_gain([1.0], [1.0, 2.0])
    fit = experiment(World(1, link=0.5, delay=0, loads={"node0": 0.3}), [LINK], []).fit()
    assert fit is not None
    with pytest.raises(ValueError, match="above zero"):
        predict(fit, LINK, 0.0)


SLOTS = Resource(SEQUENCES, SEQUENCES, 4.0, "sequences", 4.0)


class Slots(World):
    """Four fifths of the time wait for a slot."""

    def relative(self, resource: Resource | None, slowdown: float) -> float:
        return 0.2 + 0.8 * slowdown if resource is SLOTS else 1.0


def test_the_same_effect_points_to_the_cache_when_it_holds_no_more() -> None:
    session = experiment(Slots(1, link=0, delay=0, loads={"node0": 0.1}), [SLOTS, LINK], [])
    found = conclude(session, Circumstances(waits_for_slots=True, waits_for_cache=True))
    assert (found.name, found.confirmed) == ("kv_cache_capacity", True)
    assert "a larger cache would save" in found.statement


def test_a_burst_is_summed_up() -> None:
    burst = [
        {"sent": 10.0, "token_times": [11.0, 11.5, 12.0]},
        {"sent": 10.0, "token_times": [12.0, 12.5, 14.0]},
    ]
    found = measurement(Block(0), 3.0, burst)
    assert found.burst_seconds == 4.0 and found.time_seconds == pytest.approx(4 / 6)
    assert found.ttft_seconds == 1.5 and found.itl_seconds == pytest.approx(3 / 4)
    single = measurement(Block(0), 0.0, [{"sent": 0.0, "token_times": [1.0]}])
    assert math.isnan(single.itl_seconds) and single.to_json()["itl_seconds"] is None
    for broken in ([], [{"sent": 0.0, "token_times": []}], [{"sent": 0.0, "token_times": [1.0], "error": "refused"}]):
        with pytest.raises(BlockError, match="failed"):
            measurement(Block(4), 0.0, broken)


def test_fewer_sequences_point_to_the_limit_only_when_requests_wait() -> None:
    session = experiment(Slots(1, link=0, delay=0, loads={"node0": 0.1}), [SLOTS, LINK], [])
    slowed = [each.block for each in session.measurements if each.block.resource is SLOTS]
    assert slowed and all((4.0 / block.slowdown).is_integer() for block in slowed), "whole sequences only"
    found = conclude(session, Circumstances(waits_for_slots=True))
    assert (found.name, found.confirmed) == ("sequence_limit", True)
    assert found.settle(["prefill_compute", "sequence_limit"]) == "sequence_limit"
    assert conclude(session, Circumstances(has_stages=True)).name == "pipeline_bubble"
    assert conclude(session, Circumstances()).name == "inconclusive"


def test_every_class_it_may_confirm_is_in_the_taxonomy() -> None:
    named = {
        *predict_module._CLASSES.values(),
        *DECODE_CLASSES,
        "prefill_compute",
        "straggler",
        "sequence_limit",
        "pipeline_bubble",
        "inconclusive",
    }
    assert named <= set(CAUSES)


def test_a_fit_leaves_out_what_it_was_not_asked_for() -> None:
    session = experiment(World(1, link=0.5, delay=0, loads={"node0": 0.3}), [LINK, core("node0")], [])
    alone = fit(session.measurements, [LINK], [])
    assert alone is not None and alone.blocks < len(session.measurements)
    assert alone.share(LINK).value == pytest.approx(0.5, abs=0.1)
