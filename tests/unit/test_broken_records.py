"""Broken documents and samples: what does not fit is left out and named, and no other error than the loaders' own."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck.diagnosis.verdict import analyse
from bottleneck.plan.server_arguments import format_of_config, read_arguments
from bottleneck.runs.ceilings import Ceilings
from bottleneck.runs.reading import lenient
from bottleneck.runs.run import Run
from bottleneck.runs.run_folder import RunError, load_run
from bottleneck.runs.scenario import ScenarioError, add_ceilings, read_document, scenario_run

DATA = Path(__file__).parents[1] / "data"
RUNS = DATA / "runs"
SEEDS = st.integers(0, 2**32)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=8), part, max_size=3),
    max_leaves=8,
)
BAD: tuple[Any, ...] = (
    *(None, True, "x", "", -1, 0, 1e308, float("nan"), float("inf"), -0.0, 2**70, 10**400, "1e400", "nan"),
    *([], {}, [[]], {"a": {}}),
)


def broken(document: Any, random: Random) -> Any:
    """A document with one place of it, at any depth, replaced by something that does not belong there."""
    if isinstance(document, dict) and document and random.random() < 0.92:
        key = random.choice(list(document))
        whole = random.random() < 0.15
        return document | {key: copy.deepcopy(random.choice(BAD)) if whole else broken(document[key], random)}
    if isinstance(document, list) and document and random.random() < 0.92:
        index = random.randrange(len(document))
        return [*document[:index], broken(document[index], random), *document[index + 1 :]]
    if isinstance(document, str) and "\n" in document and random.random() < 0.8:
        lines = document.split("\n")
        for index in random.sample(range(len(lines)), min(len(lines), random.choice((1, 5, 50)))):
            word = random.choice(("NaN", "-5", "1e308", "+Inf", "x", "", "0"))
            lines[index] = f"{lines[index].rpartition(' ')[0]} {word}"
        return "\n".join(lines)
    return copy.deepcopy(random.choice(BAD))


def assert_judged(run: Run) -> None:
    """A verdict comes of it, as JSON that any program reads; of a while of it too."""
    first = run.interval[0]
    for each in (run, run.window(first, min(first + 5.0, run.interval[1]))):
        json.dumps(analyse(each).to_json(), allow_nan=False)


# -- run folders


def packed(name: str, text: str) -> bytes:
    return gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()


@cache
def documents(name: str) -> dict[str, Any]:
    files = ("run.json", "plan.json", "ceilings.json", "client.json.gz")
    found = {file: (RUNS / name / file).read_bytes() for file in files}
    return {file: json.loads(gzip.decompress(data) if file.endswith(".gz") else data) for file, data in found.items()}


@pytest.mark.parametrize("name", ["healthy", "one-slot-each"])
@pytest.mark.parametrize("file", ["run.json", "plan.json", "ceilings.json", "client.json.gz"])
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_a_broken_document_of_a_run_is_reported_and_the_rest_is_judged(name: str, file: str, seed: int) -> None:
    random = Random(seed)
    document = documents(name)[file]
    for _ in range(random.choice((1, 3, 10))):
        document = broken(document, random)
    with tempfile.TemporaryDirectory() as place:
        folder = shutil.copytree(RUNS / name, Path(place, "run"))
        (folder / file).write_bytes(packed(file, json.dumps(document)))
        try:
            run = load_run(folder)
        except RunError as error:
            assert "schema" in str(error) and "cluster bench" in str(error)
            return
    assert_judged(run)


@pytest.mark.parametrize("file", ["run.json", "plan.json", "ceilings.json", "client.json.gz", "samples.jsonl.gz"])
@settings(max_examples=25, deadline=None)
@given(content=st.binary(max_size=40) | JSON.map(lambda found: json.dumps(found).encode()))
def test_any_content_of_a_file_is_survived(file: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = shutil.copytree(RUNS / "healthy", Path(place, "run"))
        (folder / file).write_bytes(gzip.compress(content) if file.endswith(".gz") and b"\x00" in content else content)
        try:
            run = load_run(folder)
        except RunError:
            return
    assert run.problems
    assert_judged(run)


@cache
def whole(name: str) -> tuple[Run, str]:
    run = load_run(RUNS / name)
    return run, json.dumps(run.batches)


@pytest.mark.parametrize("name", ["healthy", "one-slot-each"])
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_broken_samples_are_survived(name: str, seed: int) -> None:
    random = Random(seed)
    run, text = whole(name)
    batches = json.loads(text)
    for _ in range(random.choice((1, 3, 10))):
        index = random.randrange(len(batches))
        changed = broken(batches[index], random)
        batches[index] = changed if isinstance(changed, dict) else batches[index]
    assert_judged(replace(run, batches=tuple(batches)))


# -- scenarios


@cache
def scenarios() -> list[dict[str, Any]]:
    return [read_document(path) for path in sorted([*DATA.glob("h200/scenario_*.xz"), *DATA.glob("h200_pair/*.xz")])]


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS)
def test_a_broken_scenario_is_refused_or_judged(seed: int) -> None:
    random = Random(seed)
    document: Any = copy.deepcopy(random.choice(scenarios()))
    known: Any = read_document(DATA / "h200" / "ceilings.json")
    for _ in range(random.choice((1, 2, 5))):
        document = broken(document, random)
    if random.random() < 0.4:
        known = broken(known, random)
    if not isinstance(document, dict) or not isinstance(known, dict):
        return
    try:
        run = add_ceilings(scenario_run(document), known)
    except ScenarioError:
        return
    json.dumps(analyse(run).to_json(), allow_nan=False)


@settings(max_examples=100, deadline=None)
@given(words=st.lists(JSON | st.sampled_from(("-O", "-cc", "--max-num-seqs", "--max-num-seqs=", "-O{", "=1", "--"))))
def test_any_arguments_of_a_server_are_survived(words: list[Any]) -> None:
    found = read_arguments(words)
    assert found.settings.max_num_seqs is None or found.settings.max_num_seqs >= 1


@settings(max_examples=100, deadline=None)
@given(config=JSON | st.dictionaries(st.sampled_from(("quant_method", "bits", "config_groups")), JSON))
def test_any_configuration_of_a_model_is_survived(config: Any) -> None:
    format_of_config(config)


# -- one part of a document


def test_what_does_not_fit_is_left_out_and_named_and_the_rest_kept() -> None:
    rate = {"median": 5.0, "low": 4.0, "high": 6.0, "samples": 3}
    document = {
        "schema": 1,
        "measured": "yesterday",
        "nodes": {
            "a": {"memory_read_bytes_per_second": rate, "gemm_bf16_flops_per_second": {**rate, "low": 9.0}},
            "b": 3,
        },
        "links": {"direct": {"a->b": {"bandwidth_bytes_per_second": rate, "latency_seconds": {"low": 1.0}}}},
    }
    found, problems = lenient(Ceilings, document, "ceilings.json")
    assert found is not None and list(found.nodes) == ["a"] and found.measured is None
    assert found.nodes["a"].memory_read_bytes_per_second is not None
    assert found.nodes["a"].gemm_bf16_flops_per_second is None
    way = found.links["direct"]["a->b"]
    assert way.bandwidth_bytes_per_second is not None and way.latency_seconds is None
    assert len(problems) == 4 and all(problem.startswith("ceilings.json: ") for problem in problems)
    assert "ceilings.json: measured: 'yesterday': " in problems[0]
    nothing, reported = lenient(Ceilings, [1], "x")
    assert nothing is None and reported == [f"x: all of it: [1]: {_NO_OBJECT}; left out"]


_NO_OBJECT = "Input should be a valid dictionary or instance of Ceilings"
