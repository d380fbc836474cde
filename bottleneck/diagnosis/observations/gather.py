"""Gather every fact of a run, once, in the order in which one needs another."""

from __future__ import annotations

import math

import numpy as np

from bottleneck.diagnosis.observations.doubts import clock_weaknesses, weaknesses
from bottleneck.diagnosis.observations.engine_signals import EngineFacts, engine_facts
from bottleneck.diagnosis.observations.link_signals import crossing_seconds, doubt_ceiling, link_facts
from bottleneck.diagnosis.observations.node_signals import node_facts
from bottleneck.diagnosis.observations.settings import engine_settings
from bottleneck.diagnosis.observations.signals import BEYOND, Signals, busy_time, client_facts
from bottleneck.diagnosis.observations.speeds import doubt_speeds
from bottleneck.diagnosis.observations.weakness import STEP_CLASSES, Weakness
from bottleneck.runs.run import Run
from bottleneck.runs.topology import find_topology
from bottleneck.telemetry.batches import engine_readings
from bottleneck.telemetry.samples import NodeSamples, node_samples


def gather(run: Run) -> Signals:
    """Gather every fact of a run or window.

    Parameters
    ----------
    run : Run
        Loaded run or live window.

    Returns
    -------
    Signals
        With a `Weakness` for everything that is missing or doubtful.
    """
    topology = find_topology(run)
    # What an engine answers while it starts is no load.
    readings = {} if run.start else engine_readings(run.batches, *run.interval)
    only = next(iter(readings.values())) if len(readings) == 1 and len(topology.groups) == 1 else []
    signals = Signals(topology, start=run.start)
    signals.engines = [engine_facts(group, readings.get(group.head, only), topology) for group in topology.groups]
    if run.live:
        for engine in signals.engines:
            taken = [moment for moment, _ in readings.get(engine.head, only)]
            engine.counted_seconds = max(taken) - min(taken) if taken else None
    if run.client is not None:
        signals.client = client_facts(run.client)
    for engine in signals.engines:
        moments = [moment for moment, _ in readings.get(engine.head, only)]
        if len(moments) > 1 and run.seconds > 0:
            # The last reading stands for the time until the next one would have come.
            reach = (max(moments) - min(moments)) * len(moments) / (len(moments) - 1)
            engine.watched_share = min(1.0, reach / run.seconds)
    samples = node_samples(run.batches)
    _busy(signals, run)
    if run.live and not run.start:
        _busy_by_samples(signals, run, samples)
    for engine in signals.engines:
        seconds = engine.counted_seconds or signals.span_seconds
        if engine.front_cpu_seconds is not None and seconds > 0 and not engine.reset:
            engine.front_cpu_share = engine.front_cpu_seconds / seconds
    signals.nodes = node_facts(run, topology, samples, signals.busy_seconds)
    for engine in signals.engines:
        _front_wait(engine, signals)
    signals.settings = engine_settings(run.settings)
    if run.scenario:
        _check_ceilings(signals)
    doubt_speeds(signals)
    signals.link = link_facts(run, topology, samples, signals.busy_seconds)
    if signals.link is not None:
        doubt_ceiling(signals.link, signals.nodes, signals.busy_seconds, _prompt_share(signals))
    signals.weaknesses += weaknesses(signals, run)
    signals.weaknesses += clock_weaknesses(signals, run, samples)
    return signals


# An engine without requests uses hardly any CPU; its workers with some use more than this of a core in any second.
AT_WORK_CORES = 0.08


def _busy_by_samples(signals: Signals, run: Run, samples: dict[str, NodeSamples]) -> None:
    """Lengthen a live window's busy time to what its workers were at work for, or their link carried their bytes.

    The engine counts a request as running from the end of its first step on: of a long one (a long prompt, a slow link)
    its gauge knows nothing while it lasts.
    """
    start, end = run.interval
    edges = np.arange(start, end, 1.0)
    lengths = np.minimum(1.0, end - edges)
    crossing = crossing_seconds(run, signals.topology, samples, edges)
    seconds, source = 0.0, "samples: CPU time of the workers"
    for node in signals.topology.nodes:
        if (series := samples.get(node)) is None:
            continue
        used = [
            sum(series.workers(kind, edge, edge + 1.0) or 0.0 for kind in ("cpu_user_s", "cpu_system_s"))
            for edge in edges
        ]
        at_work = np.array(used) > AT_WORK_CORES * lengths
        seconds = max(seconds, float(lengths[at_work | np.isin(edges, list(crossing))].sum()))
    if crossing:
        source += f", bytes on {signals.topology.link}"
    if seconds > signals.busy_seconds:
        signals.busy_seconds, signals.busy_source = min(seconds, signals.span_seconds), source


def _front_wait(engine: EngineFacts, signals: Signals) -> None:
    """Note how long the process in front of an engine was ready to run and was not let, beyond what its node was."""
    facts = signals.nodes.get(engine.head)
    if facts is None or facts.front_wait_seconds is None or signals.span_seconds <= 0:
        return
    # A quota of the whole node, or other programs on its cores, hold the front back too: then it is the node's. What of
    # its wait is so, the engine's other processes tell: how long they waited for each second that they ran.
    throttled = facts.throttled_seconds or 0.0
    ran = facts.front_cpu_seconds or 0.0
    others_ran = (facts.worker_cpu_seconds or 0.0) - ran
    others_waited = (facts.run_delay_seconds or 0.0) - facts.front_wait_seconds - throttled
    shared = throttled + (ran * max(0.0, others_waited) / others_ran if others_ran > 0 else 0.0)
    engine.front_wait_share = min(1.0, max(0.0, facts.front_wait_seconds - shared) / signals.span_seconds)


def _check_ceilings(signals: Signals) -> None:
    """Drop the ceilings of an accelerator that did more than they allow: they are another one's, or wrong."""
    for engine, group in zip(signals.engines, signals.topology.groups, strict=True):
        facts = signals.nodes.get(group.head)
        if facts is None or signals.busy_seconds <= 0:
            continue
        allowed = signals.settings.arithmetic_gain
        for what, done, ceiling in (
            ("operations", engine.flops, (facts.gemm_flops_per_second or math.inf) * allowed),
            ("bytes read", engine.read_bytes, facts.memory_read_bytes_per_second or math.inf),
        ):
            if done and done / signals.busy_seconds > BEYOND * ceiling:
                times = done / signals.busy_seconds / ceiling
                signals.weaknesses.append(
                    Weakness(
                        0.7,
                        f"the engine counted {times:.3g} times the {what} that the ceilings allow: the ceilings are "
                        "another machine's, or wrong, and are not used",
                        STEP_CLASSES,
                    )
                )
                facts.gemm_flops_per_second = facts.memory_read_bytes_per_second = None
                facts.gemm_interval = facts.memory_read_interval = None
                break


def _prompt_share(signals: Signals) -> float:
    """Return the share of all computed tokens that were prompts, 0 to 1."""
    prompts = math.fsum(engine.prompt_tokens or 0.0 for engine in signals.engines)
    outputs = math.fsum(engine.generation_tokens or 0.0 for engine in signals.engines)
    if prompts + outputs <= 0 and signals.client is not None:
        prompts, outputs = float(signals.client.input_tokens), float(signals.client.output_tokens)
    return prompts / (prompts + outputs) if prompts + outputs > 0 else 0.0


def _busy(signals: Signals, run: Run) -> None:
    signals.span_seconds = run.seconds if math.isfinite(run.seconds) else 0.0
    shares = [engine.busy_share for engine in signals.engines if engine.busy_share is not None]
    timed = [
        (request.start_seconds, request.start_seconds + request.latency_seconds)
        for request in (run.client.good if run.client else [])
        if request.start_seconds is not None
    ]
    if timed:
        first, last = min(start for start, _ in timed), max(end for _, end in timed)
        duration = run.client.duration_seconds if run.client else math.nan
        signals.busy_seconds, signals.busy_source = busy_time(timed), "client timings"
        # Between the points of a sweep the load generator starts again: that is not the load's idleness.
        signals.span_seconds = max(duration if duration > 0 else last - first, signals.busy_seconds)
    elif shares:
        if run.client is not None and run.client.duration_seconds > 0:
            signals.span_seconds = run.client.duration_seconds
        signals.busy_seconds = signals.span_seconds * max(shares)
        signals.busy_source = "engine metrics, num_requests_running"
    else:
        if run.client is not None and run.client.duration_seconds > 0:
            signals.span_seconds = run.client.duration_seconds
        signals.busy_seconds = signals.span_seconds
    if not timed and signals.client is not None:
        # Nor can requests overlap more than the client lets them, or than there are.
        most = signals.client.concurrency or signals.client.requests
        least = signals.client.latency_seconds / max(most, 1)
        if signals.span_seconds >= least > signals.busy_seconds:
            signals.busy_seconds, signals.busy_source = least, "client timings: the sum of all requests / concurrency"
    # However they overlap, requests cannot keep the engine busy for longer than they last together.
    if signals.client is not None and not timed and 0 < signals.client.latency_seconds < signals.busy_seconds:
        signals.busy_seconds = signals.client.latency_seconds
        signals.busy_source = "client timings: the sum of all requests is less than the time watched"
