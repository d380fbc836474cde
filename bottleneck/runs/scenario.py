"""A scenario file: recorded engine metrics before, during and after a load, as anyone with a server can take them.

The form is in doc/reference/scenario-file.md. Only the metrics after are needed; whatever else is missing is named in
the verdict and lowers its confidence.
"""

from __future__ import annotations

import json
import lzma
import math
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bottleneck.json_numbers import number
from bottleneck.load.client import ClientRequest, ClientResult, count, seconds
from bottleneck.load.workload import Load, WorkloadError, load_of
from bottleneck.plan.server_arguments import format_of_config, read_arguments
from bottleneck.plan.workers import WEIGHT_FORMATS, ServerSettings, Worker
from bottleneck.runs.ceilings import Ceilings, NodeCeilings
from bottleneck.runs.reading import lenient, open_text
from bottleneck.runs.run import Run, as_the_engine_says
from bottleneck.telemetry.batches import Batch
from bottleneck.telemetry.engine_names import is_engine_sample
from bottleneck.telemetry.exposition import parse_line
from bottleneck.telemetry.prometheus_text import MetricsText

NODE = "server"
"""The name of a scenario's one node."""

# Ceilings in the short form that goes with a scenario, and what they are in a node's ceilings.
_MATMUL, _READ = "gemm_", "read_Bps"
_SHORT = {
    "memory_read_bytes_per_second": _READ,
    "kernel_dispatch_seconds": "launch_s",
    "host_to_device_bytes_per_second": "h2d_Bps",
}
_LOAD = {
    "input_tokens": "L",
    "output_tokens": "O",
    "requests": "n",
    "concurrency": "conc",
    "rate_per_second": "rate",
}


class ScenarioError(ValueError):
    """The file is no scenario, or no ceilings; it says file, key, what was seen and what was expected."""


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, compressed by gzip or xz or not at all.

    Parameters
    ----------
    path : Path
        File whose ending says how it is compressed: .gz, .xz, or anything else for not at all.

    Raises
    ------
    ScenarioError
        When the file cannot be read or is no JSON object.
    """
    try:
        with open_text(path) as stream:
            document = json.load(stream)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise ScenarioError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise ScenarioError(f"{path}: a {type(document).__name__}; expected an object with metrics_after")
    return document


def load_scenario(path: Path | str, ceilings: Path | str | None = None) -> Run:
    """Return a scenario, and its ceilings, as a run of one node.

    Parameters
    ----------
    path : Path
        The scenario.
    ceilings : Path or None
        Its machine's ceilings: the short form beside the scenarios, or a `ceilings.json` of `cluster probe`.

    Raises
    ------
    ScenarioError
        When a file is no such thing at all. Parts that are missing or broken are `problems` of the run instead.
    """
    return judgeable(read_document(Path(path)), str(path), ceilings)


def judgeable(document: dict[str, Any], name: str, ceilings: Path | str | None = None) -> Run:
    """Return the run that a scenario's document, and its ceilings, make.

    Parameters
    ----------
    document, name, ceilings : dict, str, Path or str or None
        Content of the scenario's file, its name for messages, and the file of ceilings.
    """
    run = scenario_run(document, name)
    if ceilings is not None:
        return add_ceilings(run, read_document(Path(ceilings)), str(ceilings))
    lack = "no ceilings were given (--ceilings): how near the steps come to the hardware is not known"
    return replace(run, problems=(*run.problems, lack))


def scenario_run(document: dict[str, Any], name: str = "scenario") -> Run:
    """Return the run that a scenario's document makes.

    Parameters
    ----------
    document : dict[str, Any]
        Scenario as its file has it (doc/reference/scenario-file.md).
    name : str
        File or address that problems and errors begin with.

    Raises
    ------
    ScenarioError
        When there is no reading of the metrics after the load, or none in it is vLLM's.
    """
    problems: list[str] = []
    after = _metrics(document, "metrics_after", name, problems)
    if after is None:
        raise ScenarioError(f"{name}: metrics_after: missing or without a vLLM metric; expected the text of /metrics")
    before = _metrics(document, "metrics_before", name, problems)
    duration = seconds(document.get("seconds"))
    rows = _rows(document.get("metrics_during"), name, problems)
    if not duration > 0:
        duration = rows[-1]["engine"]["t"] if rows else math.nan
        problems.append(f"{name}: seconds: {document.get('seconds')!r}; expected how long the load lasted")
    worker, settings = _server(document, name, problems)
    load = found if isinstance(found := document.get("load"), dict) else {}
    client = _client(document.get("requests"), load, after, before, duration, name, problems)
    return Run(
        id=str(document.get("scenario") or Path(name).name),
        kind="scenario",
        interval=(0.0, duration if math.isfinite(duration) else 0.0),
        workload=_load(load, name, problems),
        note=" ".join(str(document[key]) for key in ("engine", "hardware", "model", "weights") if document.get(key)),
        workers=(worker,),
        settings=as_the_engine_says(settings, after),
        batches=tuple(rows),
        engine_before={NODE: before} if before is not None else {},
        engine_after={NODE: after},
        client=client,
        problems=tuple(problems),
        accelerator=accelerator if isinstance(accelerator := document.get("accelerator"), str) else "",
    )


def _server(document: dict[str, Any], name: str, problems: list[str]) -> tuple[Worker, ServerSettings]:
    """Return the server and its settings; where all its arguments are known it captures graphs unless they say no."""
    words = document.get("server_args")
    if isinstance(words, list):
        read = read_arguments(words, ServerSettings(captured_graphs=True))
    else:
        read = read_arguments(())
        if words is not None:
            problems.append(f"{name}: server_args: a {type(words).__name__}; expected a list of words")
    problems += (f"{name}: server_args: {problem}" for problem in read.problems)
    settings = read.settings
    quantization = format_of_config(document.get("quantization_config")) or settings.quantization
    stated = document.get("quantization")
    if stated is not None and stated not in WEIGHT_FORMATS:
        problems.append(f"{name}: quantization: {stated!r}; expected one of {', '.join(WEIGHT_FORMATS)}")
    elif stated is not None:
        quantization = stated
    worker = Worker(node=NODE, name=NODE, rank=read.node_rank, world=settings.nodes, head=True)
    return worker, settings.model_copy(update={"quantization": quantization})


def _metrics(document: dict[str, Any], key: str, name: str, problems: list[str]) -> MetricsText | None:
    value = document.get(key)
    found: MetricsText | None = None
    samples_seen = 0
    if isinstance(value, str):
        found = MetricsText.parse(value)
        samples_seen = sum(is_engine_sample(line) for line in value.splitlines())
    elif isinstance(value, dict):
        found = MetricsText.from_flat(value)
        samples_seen = sum(is_engine_sample(str(metric)) for metric in value)
    if found is None or not samples_seen:
        problems.append(f"{name}: {key}: no vLLM metric in it; nothing can be counted from before to after the load")
        return None
    usable = sum(point.name.startswith("vllm:") for point in found.points) + found.repeated
    if usable < samples_seen:
        problems.append(f"{name}: {key}: {samples_seen - usable} of {samples_seen} vLLM metrics are not numbers")
    return found


def _rows(value: object, name: str, problems: list[str]) -> list[Batch]:
    """Return the readings during the load as batches, in order of time."""
    found: list[Batch] = []
    broken = 0
    for row in value if isinstance(value, list) else []:
        moment, flat = math.nan, {}
        if isinstance(row, list) and row:
            moment = seconds(row[0])
            flat = dict(_lines(part for item in row[1:] if isinstance(item, str) for part in item.splitlines()))
        elif isinstance(row, dict):
            moment = seconds(row.get("t"))
            metrics = row.get("metrics")
            flat = metrics if isinstance(metrics, dict) else dict(_lines(str(metrics or "").splitlines()))
        if not math.isfinite(moment) or not flat:
            broken += 1
            continue
        engine = {"t": moment, "metrics": flat}
        found.append({"node": NODE, "boot": NODE, "sequence": len(found) + 1, "samples": [], "engine": engine})
    if broken:
        problems.append(f"{name}: metrics_during: {broken} rows are not [seconds, line, ...]")
    if not found:
        problems.append(f"{name}: metrics_during: no reading; why requests waited was not seen")
    times = [batch["engine"]["t"] for batch in found]
    if times != sorted(times):
        problems.append(f"{name}: metrics_during: its times go backwards; the readings are put in order")
        found.sort(key=lambda batch: float(batch["engine"]["t"]))
    return found


def _lines(lines: Iterable[str]) -> Iterable[tuple[str, float]]:
    for line in lines:
        point = parse_line(line)
        if point is not None:
            yield point.key(), point.value


def _client(
    value: object,
    load: dict[str, Any],
    after: MetricsText,
    before: MetricsText | None,
    duration: float,
    name: str,
    problems: list[str],
) -> ClientResult | None:
    """Return the requests that the client timed; tokens are the load's, else the engine's mean."""
    if not isinstance(value, list) or not value:
        problems.append(f"{name}: requests: missing; the ledger is the engine's own account")
        return None
    output, prompt = (
        count(load.get(key)) if load.get(key) is not None else _mean_tokens(family, len(value), before, after)
        for key, family in (("O", "generation_tokens"), ("L", "prompt_tokens"))
    )
    requests = []
    for item in value:
        item = item if isinstance(item, dict) else {}
        tokens = count(item.get("output_tokens"))
        requests.append(
            ClientRequest(
                input_tokens=prompt or 0,
                output_tokens=(output or 0) if tokens is None else tokens,
                ttft_seconds=seconds(item.get("ttft")),
                # Its mean gap is no list of gaps: stalls cannot be seen in it.
                latency_seconds=seconds(item.get("e2e")),
                error=str(item.get("error") or ""),
            )
        )
    rate = number(load.get("rate"))
    return ClientResult(tuple(requests), duration, count(load.get("conc")), rate if rate > 0 else math.inf)


def _mean_tokens(family: str, requests: int, before: MetricsText | None, after: MetricsText) -> int | None:
    """Return the engine's mean number of tokens of a request."""
    ends = (reading.value(f"vllm:{family}_total") or 0.0 if reading else 0.0 for reading in (after, before))
    last, first = ends
    return count(round((last - first) / requests)) if math.isfinite(last - first) else None


def _load(load: dict[str, Any], name: str, problems: list[str]) -> Load | None:
    """Return the load where a scenario says all of it."""
    asked = {key: load.get(short) for key, short in _LOAD.items()}
    if any(asked[key] is None for key in ("input_tokens", "output_tokens", "requests")):
        return None
    try:
        return load_of({**asked, "seed": 0})
    except WorkloadError as error:
        problems.append(f"{name}: load: {error}")
        return None


def add_ceilings(run: Run, document: dict[str, Any], name: str = "ceilings") -> Run:
    """Return a scenario's run with its ceilings.

    Parameters
    ----------
    run
        A scenario's.
    document
        Our own `ceilings.json`, or what a GPU bench wrote.
    name
        Its name, for the sentences.

    Raises
    ------
    ScenarioError
        When the document holds no ceiling of either form.
    """
    if isinstance(document.get("nodes"), dict):
        nodes = document["nodes"]
        own = nodes.get(NODE) or (next(iter(nodes.values())) if len(nodes) == 1 else None)
        if own is None:
            raise ScenarioError(f"{name}: nodes: {', '.join(sorted(nodes))}; expected one node, the scenario's")
        return _with_node(run, own, name)
    matmul = [number(value) for key, value in document.items() if key.startswith(_MATMUL) and key.endswith("_flops")]
    matmul = [value for value in matmul if math.isfinite(value) and value > 0]
    if not matmul and not number(document.get(_READ)) > 0:
        raise ScenarioError(
            f"{name}: no ceiling in it; expected {_READ} and gemm_bf16_*_flops, or a ceilings.json of a run"
        )
    node = {key: document[short] for key, short in _SHORT.items() if document.get(short) is not None}
    if matmul:
        node["gemm_bf16_flops_per_second"] = max(matmul)
    measured, foreign = document.get("name"), ""
    if run.accelerator and isinstance(measured, str) and not _same_name(measured, run.accelerator):
        foreign = f"the ceilings are of {measured}, the scenario's accelerator is {run.accelerator}"
    return _with_node(replace(run, foreign_ceilings=foreign), node, name)


def _with_node(run: Run, node: object, name: str) -> Run:
    found, problems = lenient(NodeCeilings, node, name)
    ceilings = Ceilings(nodes={NODE: found or NodeCeilings()})
    return replace(run, ceilings=ceilings, problems=(*run.problems, *problems))


def _same_name(one: str, two: str) -> bool:
    return one.casefold().split() == two.casefold().split()
