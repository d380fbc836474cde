"""Ceilings beside what a run used of them: links, cores, arithmetic, memory, cache, sequences."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bottleneck.runs.run import Run
from bottleneck.runs.topology import find_topology
from bottleneck.telemetry.batches import engine_readings
from bottleneck.telemetry.prometheus_text import delta
from bottleneck.telemetry.samples import NodeSamples
from cli.report.series import Edges, link_ceilings, link_names, profile_rate, rates


@dataclass(frozen=True)
class Use:
    """One resource: the most it can do and what the run took of it; None is unknown.

    `mean` is over the whole run, `peak` the highest over about half a second.
    """

    resource: str
    where: str
    unit: str
    mean: float | None
    peak: float | None
    ceiling: float | None
    source: str

    @property
    def mean_share(self) -> float | None:
        """Mean over ceiling."""
        return _share(self.mean, self.ceiling)

    @property
    def peak_share(self) -> float | None:
        """Peak over ceiling."""
        return _share(self.peak, self.ceiling)

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-able data, in base units."""
        return {**asdict(self), "mean_share": self.mean_share, "peak_share": self.peak_share}


def _share(used: float | None, ceiling: float | None) -> float | None:
    return used / ceiling if used is not None and ceiling else None


def _peak(values: list[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def usage(run: Run, samples: dict[str, NodeSamples], edges: Edges) -> list[Use]:
    """Return every resource with its ceiling or its use known, links first."""
    found = _links(run, samples, edges) + _cores(run, samples, edges) + _engines(run) + _accelerators(run)
    return [use for use in found if use.ceiling is not None or use.mean is not None or use.peak is not None]


def _links(run: Run, samples: dict[str, NodeSamples], edges: Edges) -> list[Use]:
    found = []
    for link in link_names(samples):
        ceilings = link_ceilings(run, link)
        for node, series in samples.items():
            if link not in series.keys("links"):
                continue
            towards = {pair.split("->")[-1]: value for pair, value in ceilings.items() if pair.startswith(f"{node}->")}
            ceiling, source = min(towards.values(), default=None), "probe"
            if ceiling is None and (ceiling := profile_rate(run, link)) is not None:
                source = "profile, not measured"
            sent = series.link(link, "transmit_bytes").within(*run.interval)
            seconds = float(sent.seconds.sum())
            mean = float(sent.growth.sum()) / seconds if seconds > 0 else None
            peak = _peak(rates(sent, edges))
            there = f"{link}: {node} sends"
            found.append(Use("link", there, "bytes/s", mean, peak, ceiling, source if ceiling else "no ceiling"))
    return found


def _cores(run: Run, samples: dict[str, NodeSamples], edges: Edges) -> list[Use]:
    found = []
    for node, series in samples.items():
        cores = series.keys("cpu")
        each = [series.steps("cpu", core, 0).within(*run.interval) for core in cores]
        seconds = sum(float(steps.seconds.sum()) for steps in each)
        if seconds <= 0:
            continue
        mean = sum(float(steps.growth.sum()) for steps in each) / seconds * len(cores)
        columns = zip(*(rates(steps, edges) for steps in each), strict=True)
        peaks = [sum(value for value in row if value is not None) for row in columns]
        ceiling = float(len(cores))
        found.append(
            Use("CPU", node, "cores", mean, min(max(peaks, default=mean), ceiling), ceiling, "cores it may use")
        )
    return found


def _engines(run: Run) -> list[Use]:
    found = []
    limit = find_topology(run).max_num_seqs
    for head, readings in engine_readings(run.batches, *run.interval).items():
        texts = [text for _, text in readings]
        cache = [value for text in texts if (value := text.value("vllm:kv_cache_usage_perc")) is not None]
        running = [value for text in texts if (value := text.value("vllm:num_requests_running")) is not None]
        if cache:
            found.append(Use("KV cache", head, "share", sum(cache) / len(cache), max(cache), 1.0, "engine metrics"))
        if running:
            mean = sum(running) / len(running)
            most = limit and limit * max(text.engines for text in texts)
            found.append(Use("sequences", head, "", mean, max(running), most, "max_num_seqs" if most else ""))
    return found


def _accelerators(run: Run) -> list[Use]:
    """The engine's own estimate of arithmetic and memory traffic, where it gives one, beside the probes."""
    found = []
    kinds = (
        ("arithmetic", "gemm_bf16_flops_per_second", "FLOP/s", ("estimated_flops",)),
        ("memory reads", "memory_read_bytes_per_second", "memory bytes/s", ("estimated_read_bytes",)),
    )
    for node, measured in run.ceilings.nodes.items():
        for resource, key, unit, counters in kinds:
            ceiling = getattr(measured, key)
            grown = [
                change.value
                for counter in counters
                if (
                    change := delta(
                        run.engine_before.get(node), run.engine_after.get(node), f"vllm:{counter}_per_gpu_total"
                    )
                )
            ]
            mean = sum(grown) / run.seconds if grown and run.seconds > 0 else None
            if ceiling:
                source = "probe; use: the engine's estimate" if mean is not None else "probe; use not measured"
                found.append(Use(resource, node, unit, mean, None, ceiling.median, source))
    return found
