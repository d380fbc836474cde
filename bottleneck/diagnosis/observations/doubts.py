"""What is missing or doubtful in the measurements of a run, each with how much it costs."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bottleneck.diagnosis.observations.signals import Signals
from bottleneck.diagnosis.observations.weakness import STEP_CLASSES, Weakness
from bottleneck.runs.run import Run
from bottleneck.telemetry.clocks import LEAST_SECONDS, clock_difference
from bottleneck.telemetry.samples import NodeSamples


def weaknesses(signals: Signals, run: Run) -> Iterable[Weakness]:
    """Yield every weakness of a run's measurements."""
    yield from (Weakness(1.0, problem) for problem in run.problems)
    if run.foreign_ceilings:
        yield Weakness(0.6, f"{run.foreign_ceilings}: shares of ceilings are not to be trusted", STEP_CLASSES)
    if run.status != "complete":
        yield Weakness(0.85, f"the run is marked {run.status}: it was cut short, and stands for what it got to")
    if run.start:
        yield from _start_weaknesses(signals)
        return
    yield from _client_weaknesses(signals, run)
    if run.scenario:
        yield from _scenario_weaknesses(signals)
    elif signals.topology.profile is None:
        lack = "no profile with this deployment: the model's arithmetic, the link and the limits are not known"
        yield Weakness(0.9, lack, STEP_CLASSES)
    if not any(engine.has_times or engine.readings for engine in signals.engines):
        yield Weakness(0.5, "no engine metrics: queueing and cache cannot be told from slow steps")
    elif not any(engine.has_times for engine in signals.engines):
        yield Weakness(0.8, "no request finished between the engine's readings: phases are estimated")
    elif not run.live and not any(engine.readings for engine in signals.engines):
        yield Weakness(0.8, "no engine readings during the run: why requests waited was not seen")
    yield from _unseen_queue(signals)
    if not run.live:
        for engine in signals.engines:
            if engine.readings and (engine.watched_share or 0.0) < 0.5:
                share = engine.watched_share or 0.0
                yield Weakness(
                    0.5 + share, f"the readings during the load reach over {share:.0%} of it: the rest was not seen"
                )
    for engine in signals.engines:
        if engine.has_times and not engine.adds_up:
            yield Weakness(
                0.5, "the engine's queue, prefill and decode do not add up to its whole latency: counts are lost"
            )
    for engine in signals.engines:
        if engine.reset:
            yield Weakness(0.5, f"a counter of the engine on {engine.head or 'the head'} went backwards: it restarted")
        if engine.unusable:
            yield Weakness(
                0.9 if engine.unusable < 10 else 0.6,
                f"{engine.unusable} engine metrics of {engine.head or 'the head'} are not numbers",
            )
    if run.scenario:
        return
    if not any(facts.covered_share > 0 for facts in signals.nodes.values()):
        yield Weakness(0.7, "no samples of the nodes: a slow link or node cannot be seen", STEP_CLASSES)
        return
    for node, facts in signals.nodes.items():
        if facts.covered_share < 0.8:
            yield Weakness(0.7, f"samples of {node} cover {facts.covered_share:.0%} of the interval", STEP_CLASSES)
        if facts.missing_batches or facts.dropped:
            lost = f"{facts.missing_batches} batches of {node} never came, its sampler dropped {facts.dropped} samples"
            yield Weakness(0.95, lost, STEP_CLASSES)
        if facts.resets:
            yield Weakness(0.9, f"link counters of {node} went backwards {facts.resets} times", STEP_CLASSES)
    if signals.link is not None:
        yield from (Weakness(0.85, note, STEP_CLASSES) for note in signals.link.notes)
        if not signals.link.sent_bytes:
            yield Weakness(0.7, f"no samples of link {signals.link.name}: its bytes are not known", STEP_CLASSES)
        if signals.link.capacity_bytes_per_second is None:
            yield Weakness(0.6, f"link {signals.link.name} has no ceiling: measure it with cluster probe", STEP_CLASSES)


def _start_weaknesses(signals: Signals) -> Iterable[Weakness]:
    """Yield what is doubtful of a start, which has neither client nor engine metrics: the samples are all there is."""
    for node, facts in signals.nodes.items():
        if facts.covered_share < 0.8:
            factor = 0.4 + 0.6 * facts.covered_share
            yield Weakness(factor, f"samples of {node} cover {facts.covered_share:.0%} of the start")
        if facts.storage_wait_seconds is None:
            lack = f"the workers of {node} do not tell what they read from storage: its disks and its stalls stand in"
            yield Weakness(0.8, lack)


def clock_weaknesses(signals: Signals, run: Run, samples: dict[str, NodeSamples]) -> Iterable[Weakness]:
    """Yield what the nodes' clocks make doubtful: samples of another time than the run, clocks that differ."""
    start, end = run.interval
    for node, facts in signals.nodes.items():
        series = samples.get(node)
        if series is None or series.times.size == 0 or facts.covered_share >= 0.8:
            continue
        outside = max(start - series.times.min(), series.times.max() - end)
        if outside > 0.2 * (end - start):
            yield Weakness(
                0.9, f"samples of {node} lie up to {outside:.0f} s outside: its clock may be off", STEP_CLASSES
            )
    link = signals.link
    for group in signals.topology.groups:
        for node in group.nodes[1:]:
            if link is None or node not in samples or group.head not in samples:
                continue
            apart = clock_difference(samples[group.head], samples[node], link.name, start, end)
            if apart is not None and abs(apart) >= LEAST_SECONDS:
                yield Weakness(
                    0.7,
                    f"the clock of {node} is about {apart:+.1f} s off that of {group.head}, by the bytes between them: "
                    "what the two did at one moment cannot be compared; let them follow one time server",
                    STEP_CLASSES,
                )


def _unseen_queue(signals: Signals) -> Iterable[Weakness]:
    """Say that requests waited when no reading shows why."""
    for engine in signals.engines:
        times = (engine.queue_seconds, engine.prefill_seconds, engine.decode_seconds)
        whole = math.fsum(part or 0.0 for part in times)
        unseen = 1.0 - (engine.watched_share or 0.0) if engine.waiting is None else 0.0
        if unseen < 0.3 or not engine.queue_seconds or whole <= 0:
            continue
        share = unseen * engine.queue_seconds / whole
        if share > 0.05:
            waited = engine.queue_seconds / whole
            yield Weakness(1.0 - share, f"requests waited {waited:.0%} of their time, and no reading shows for what")


def _scenario_weaknesses(signals: Signals) -> Iterable[Weakness]:
    """Say what a scenario lacks to compare its steps with the hardware."""
    if not any(engine.flops for engine in signals.engines):
        lack = "no estimated_flops_per_gpu in the metrics (--enable-mfu-metrics): what steps are made of is not known"
        yield Weakness(0.75, lack, STEP_CLASSES)
    if not any(facts.gemm_flops_per_second or facts.memory_read_bytes_per_second for facts in signals.nodes.values()):
        lack = "no ceilings: prompts and decoding are told apart by their time alone, the host not at all"
        yield Weakness(0.75, lack, STEP_CLASSES)


def _client_weaknesses(signals: Signals, run: Run) -> Iterable[Weakness]:
    client = signals.client
    if client is None or client.requests == 0:
        if not run.live:
            yield Weakness(0.85, "no client timings: the ledger is the engine's own account")
        return
    if run.client is not None and len(run.client.points) > 1:
        yield Weakness(0.9, f"a sweep of {len(run.client.points)} points is judged as one")
    if client.output_tokens == 0:
        yield Weakness(0.5, "no output token was counted")
    if client.requests == 1:
        yield Weakness(0.5, "one request: its times may be chance")
    elif client.requests < 4:
        yield Weakness(0.75, f"only {client.requests} requests")
    if client.failed:
        share = client.failed / (client.failed + client.requests)
        yield Weakness(1.0 - 0.5 * share, f"{client.failed} requests failed and are left out")
