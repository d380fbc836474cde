"""Find what is missing or doubtful in the measurements of a run, each with how much it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.observations.issues import Issue, Scope
from bottleneck.diagnosis.observations.observed import Observations
from bottleneck.runs.run import Run
from bottleneck.telemetry.clocks import LEAST_SECONDS, clock_difference
from bottleneck.telemetry.samples import NodeSamples


def data_issues(seen: Observations, run: Run, samples: Mapping[str, NodeSamples]) -> Iterator[Issue]:
    """Yield every doubt about a run's measurements.

    Parameters
    ----------
    seen
        All that was observed of the run.
    run
        A recorded run or a window.
    samples
        Node to its samples.
    """
    yield from (Issue(1.0, problem) for problem in run.problems)
    if run.foreign_ceilings:
        words = f"{run.foreign_ceilings}: shares of ceilings are not to be trusted"
        yield Issue(thresholds.NOTABLE, words, Scope.STEPS)
    if run.status != "complete":
        words = f"the run is marked {run.status}: it was cut short, and stands for what it got to"
        yield Issue(thresholds.SLIGHT, words)
    if run.start:
        yield from _of_a_start(seen)
        return
    yield from _of_the_client(seen, run)
    if run.scenario:
        yield from _of_a_scenario(seen)
    elif seen.topology.profile is None:
        lack = "no profile with this deployment: the model's arithmetic, the link and the limits are not known"
        yield Issue(thresholds.SLIGHT, lack, Scope.STEPS)
    yield from _of_engines(seen, run)
    if not run.scenario:
        yield from _of_nodes(seen)
        yield from _of_clocks(seen, run, samples)


def _of_a_start(seen: Observations) -> Iterator[Issue]:
    """Yield what is doubtful of a start, which has neither client nor engine metrics: the samples are all there is."""
    for node, facts in seen.nodes.items():
        if facts.covered_share < thresholds.COVERED:
            words = f"samples of {node} cover {facts.covered_share:.0%} of the start"
            yield Issue((1.0 + facts.covered_share) / 2, words)
        if facts.storage_wait_seconds is None:
            lack = f"the workers of {node} do not tell what they read from storage: its disks and its stalls stand in"
            yield Issue(thresholds.NOTABLE, lack)


def _of_engines(seen: Observations, run: Run) -> Iterator[Issue]:
    if not any(engine.has_times or engine.readings for engine in seen.engines):
        yield Issue(thresholds.GRAVE, "no engine metrics: queueing and cache cannot be told from slow steps")
    elif any(engine.prefill_seconds and not engine.requests for engine in seen.engines):
        lack = "the engine counts no requests and no waiting: phases are estimated from the client's times"
        yield Issue(thresholds.NOTABLE, lack)
    elif not any(engine.has_times for engine in seen.engines):
        yield Issue(thresholds.NOTABLE, "no request finished between the engine's readings: phases are estimated")
    elif not run.live and not any(engine.readings for engine in seen.engines):
        yield Issue(thresholds.NOTABLE, "no engine readings during the run: why requests waited was not seen")
    for engine in seen.engines:
        head = engine.head or "the head"
        yield from _of_the_queue(seen, engine.head)
        if not run.live and engine.readings and (engine.watched_share or 0.0) < 1 / 2:
            share = engine.watched_share or 0.0
            words = f"the readings during the load reach over {share:.0%} of it: the rest was not seen"
            yield Issue(thresholds.SLIGHT, words)
        whole, parts = engine.latency_seconds, engine.phases_seconds
        if engine.has_times and whole and not whole / 2 < parts < thresholds.BEYOND * whole:
            words = "the engine's queue, prefill and decode do not add up to its whole latency: counts are lost"
            yield Issue(thresholds.GRAVE, words)
        if engine.reset:
            yield Issue(thresholds.GRAVE, f"a counter of the engine on {head} went backwards: it restarted")
        if engine.unusable:
            yield Issue(thresholds.NOTABLE, f"{engine.unusable} engine metrics of {head} are not numbers")


def _of_the_queue(seen: Observations, head: str) -> Iterator[Issue]:
    """Yield that requests waited when no reading shows why."""
    engine = next(each for each in seen.engines if each.head == head)
    unseen = 1.0 - (engine.watched_share or 0.0) if engine.waiting is None else 0.0
    if not engine.queue_seconds or engine.phases_seconds <= 0:
        return
    waited = engine.queue_seconds / engine.phases_seconds
    if unseen * waited > thresholds.LEAST_SHOWN:
        words = f"requests waited {waited:.0%} of their time, and no reading shows for what"
        yield Issue(1.0 - unseen * waited, words)


def _of_nodes(seen: Observations) -> Iterator[Issue]:
    if not any(facts.covered_share > 0 for facts in seen.nodes.values()):
        yield Issue(thresholds.NOTABLE, "no samples of the nodes: a slow link or node cannot be seen", Scope.STEPS)
        return
    for node, facts in seen.nodes.items():
        if facts.covered_share < thresholds.COVERED:
            words = f"samples of {node} cover {facts.covered_share:.0%} of the interval"
            yield Issue(thresholds.NOTABLE, words, Scope.STEPS)
        if facts.missing_batches or facts.dropped:
            lost = f"{facts.missing_batches} batches of {node} never came, its sampler dropped {facts.dropped} samples"
            yield Issue(thresholds.SLIGHT, lost, Scope.STEPS)
        if facts.resets:
            yield Issue(thresholds.SLIGHT, f"link counters of {node} went backwards {facts.resets} times", Scope.STEPS)
    link = seen.link
    if link is not None:
        if not link.sent_bytes:
            yield Issue(thresholds.NOTABLE, f"no samples of link {link.name}: its bytes are not known", Scope.STEPS)
        if link.capacity_bytes_per_second is None:
            words = f"link {link.name} has no ceiling: measure it with cluster probe"
            yield Issue(thresholds.NOTABLE, words, Scope.STEPS)


def _of_clocks(seen: Observations, run: Run, samples: Mapping[str, NodeSamples]) -> Iterator[Issue]:
    """Yield what the nodes' clocks make doubtful: samples of another time than the run, clocks that differ."""
    start, end = run.interval
    for node, facts in seen.nodes.items():
        series = samples.get(node)
        if series is None or series.times.size == 0 or facts.covered_share >= thresholds.COVERED:
            continue
        outside = max(start - series.times.min(), series.times.max() - end)
        if outside > (1.0 - thresholds.COVERED) * (end - start):
            words = f"samples of {node} lie up to {outside:.0f} s outside: its clock may be off"
            yield Issue(thresholds.SLIGHT, words, Scope.STEPS)
    for group in seen.topology.groups:
        for node in group.nodes[1:]:
            if seen.link is None or node not in samples or group.head not in samples:
                continue
            apart = clock_difference(samples[group.head], samples[node], seen.link.name, start, end)
            if apart is not None and abs(apart) >= LEAST_SECONDS:
                yield Issue(
                    thresholds.NOTABLE,
                    f"the clock of {node} is about {apart:+.1f} s off that of {group.head}, by the bytes between them: "
                    "what the two did at one moment cannot be compared; let them follow one time server",
                    Scope.STEPS,
                )


def _of_a_scenario(seen: Observations) -> Iterator[Issue]:
    """Yield what a scenario lacks to compare its steps with the hardware."""
    if not any(engine.flops for engine in seen.engines):
        lack = "no estimated_flops_per_gpu in the metrics (--enable-mfu-metrics): what steps are made of is not known"
        yield Issue(thresholds.NOTABLE, lack, Scope.STEPS)
    if not any(facts.gemm_flops_per_second or facts.memory_read_bytes_per_second for facts in seen.nodes.values()):
        lack = "no ceilings: prompts and decoding are told apart by their time alone, the host not at all"
        yield Issue(thresholds.NOTABLE, lack, Scope.STEPS)


def _of_the_client(seen: Observations, run: Run) -> Iterator[Issue]:
    client = seen.client
    if client is None or client.requests == 0:
        if not run.live:
            yield Issue(thresholds.SLIGHT, "no client timings: the ledger is the engine's own account")
        return
    if run.client is not None and len(run.client.points) > 1:
        yield Issue(thresholds.SLIGHT, f"a sweep of {len(run.client.points)} points is judged as one")
    if client.output_tokens == 0:
        yield Issue(thresholds.GRAVE, "no output token was counted")
    if client.requests == 1:
        yield Issue(thresholds.GRAVE, "one request: its times may be chance")
    elif client.requests < thresholds.FEW_REQUESTS:
        yield Issue(thresholds.NOTABLE, f"only {client.requests} requests")
    if client.failed:
        share = client.failed / (client.failed + client.requests)
        yield Issue(1.0 - share / 2, f"{client.failed} requests failed and are left out")
