"""Gather every fact of a run, once, in the order in which one needs another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.observations.busy import busy_seconds
from bottleneck.diagnosis.observations.client import ClientFacts, client_facts
from bottleneck.diagnosis.observations.data_issues import data_issues
from bottleneck.diagnosis.observations.engine import EngineFacts, engine_facts
from bottleneck.diagnosis.observations.issues import Issue, Scope
from bottleneck.diagnosis.observations.link import link_facts
from bottleneck.diagnosis.observations.node import NodeFacts, node_facts
from bottleneck.diagnosis.observations.observed import BusyTime, Observations
from bottleneck.diagnosis.observations.peers import levelled
from bottleneck.diagnosis.observations.settings import EngineSettings, engine_settings
from bottleneck.runs.run import Run
from bottleneck.runs.topology import Topology, find_topology
from bottleneck.telemetry.samples import node_samples


def gather(run: Run) -> Observations:
    """Gather every fact of a run or window.

    Parameters
    ----------
    run : Run
        Loaded run or live window.

    Returns
    -------
    Observations
        With an `Issue` for everything that is missing or doubtful.
    """
    topology = find_topology(run)
    readings = run.readings
    only = next(iter(readings.values())) if len(readings) == 1 and len(topology.groups) == 1 else []
    engines = [
        engine_facts(group, readings.get(group.head, only), topology, run.interval, run.live)
        for group in topology.groups
    ]
    client = client_facts(run.client) if run.client is not None else None
    samples = node_samples(run.batches)
    time = busy_seconds(run, topology, engines, client, samples)
    nodes = node_facts(run, topology, samples, time.busy_seconds)
    engines = [_with_api_server(engine, nodes, time) for engine in engines]
    settings = engine_settings(run.settings)
    issues: list[Issue] = []
    if run.scenario:
        nodes, foreign = _plausible(nodes, engines, topology, settings, time)
        issues += foreign
    if not run.start:  # while an engine starts nobody waits for anybody
        nodes, disturbed = levelled(nodes, engines, topology)
        issues += disturbed
    link, of_link = link_facts(run, topology, samples, nodes, time.busy_seconds, _prompt_share(engines, client))
    found = Observations(topology, tuple(engines), nodes, link, client, time, settings, start=run.start, live=run.live)
    return replace(found, issues=(*issues, *data_issues(found, run, samples), *of_link))


def _with_api_server(engine: EngineFacts, nodes: Mapping[str, NodeFacts], time: BusyTime) -> EngineFacts:
    """Return the facts with what the process in front of the engine used, and how long it was not let run."""
    seconds = engine.counted_seconds or time.span_seconds
    used = None
    if engine.api_server_cpu_seconds is not None and seconds > 0 and not engine.reset:
        used = engine.api_server_cpu_seconds / seconds
    facts, waited = nodes.get(engine.head), None
    if facts is not None and facts.api_server_wait_seconds is not None and time.span_seconds > 0:
        # A quota of the whole node, or other programs on its cores, delay the API server too: then it is the node's.
        # What of its wait is so, the engine's other processes tell: how long they waited for each second that they ran.
        throttled, ran = facts.throttled_seconds or 0.0, facts.api_server_cpu_seconds or 0.0
        others_ran = (facts.worker_cpu_seconds or 0.0) - ran
        others_waited = (facts.run_delay_seconds or 0.0) - facts.api_server_wait_seconds - throttled
        shared = throttled + (ran * max(0.0, others_waited) / others_ran if others_ran > 0 else 0.0)
        waited = min(1.0, max(0.0, facts.api_server_wait_seconds - shared) / time.span_seconds)
    return replace(engine, api_server_cpu_share=used, api_server_wait_share=waited)


def _plausible(
    nodes: Mapping[str, NodeFacts],
    engines: Sequence[EngineFacts],
    topology: Topology,
    settings: EngineSettings,
    time: BusyTime,
) -> tuple[dict[str, NodeFacts], list[Issue]]:
    """Return the nodes without ceilings that their accelerator exceeded: they are another one's, or wrong."""
    found, issues = dict(nodes), []
    for engine, group in zip(engines, topology.groups, strict=True):
        facts = found.get(group.head)
        if facts is None or time.busy_seconds <= 0:
            continue
        for what, done, ceiling in (
            ("operations", engine.flops, (facts.gemm_flops_per_second or math.inf) * settings.arithmetic_gain),
            ("bytes read", engine.read_bytes, facts.memory_read_bytes_per_second or math.inf),
        ):
            times = (done or 0.0) / time.busy_seconds / ceiling
            if times > thresholds.BEYOND:
                issues.append(
                    Issue(
                        thresholds.NOTABLE,
                        f"the engine counted {times:.3g} times the {what} that the ceilings allow: the ceilings are "
                        "another machine's, or wrong, and are not used",
                        Scope.STEPS,
                    )
                )
                found[group.head] = replace(
                    facts,
                    gemm_flops_per_second=None,
                    memory_read_bytes_per_second=None,
                    gemm_interval=None,
                    memory_read_interval=None,
                )
                break
    return found, issues


def _prompt_share(engines: Sequence[EngineFacts], client: ClientFacts | None) -> float:
    """Return the share of all computed tokens that were prompts, 0 to 1."""
    prompts = math.fsum(engine.prompt_tokens or 0.0 for engine in engines)
    outputs = math.fsum(engine.generation_tokens or 0.0 for engine in engines)
    if prompts + outputs <= 0 and client is not None:
        prompts, outputs = float(client.input_tokens), float(client.output_tokens)
    return prompts / (prompts + outputs) if prompts + outputs > 0 else 0.0
