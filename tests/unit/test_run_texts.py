"""No text that a person wrote moves a verdict: of a recorded run, of scenarios, of simulated servers."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck.diagnosis.verdict import Verdict, analyse
from bottleneck.runs.run_folder import load_run
from bottleneck.runs.scenario import add_ceilings, read_document, scenario_run
from tests.unit.server_simulator import Server, Simulation, ceilings

DATA = Path(__file__).parents[1] / "data"
RUNS = DATA / "runs"
MODEL = "mistral-tiny-w4a16"
# Words that have steered a verdict, or could.
TRAPS = (
    *("before trying fp8", "int4", "w8a8", "w4a16 awq gptq", "bnb 4bit", "bf16", "nvfp4", "8-bit"),
    *("--enforce-eager", "-O0", "cudagraph_mode NONE", "--max-num-seqs 1", "--tensor-parallel-size 8 --nnodes 4"),
    *("NVIDIA T4", "AMD MI300X", "throttled link", "straggler node1", "kv_cache_capacity", "inconclusive", ""),
)
TEXTS = st.lists(st.sampled_from(TRAPS) | st.text(max_size=30), max_size=3).map(" ".join)
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}(-(fp8|int4|awq|w8a8|bf16|eager|h200))?", fullmatch=True)


def outcome(verdict: Verdict) -> tuple[Any, ...]:
    """The parts of a verdict that must not move: class, place, score, confidence; of the answer and those behind it."""
    behind = [(each["class"], each["node"], each["link"], each["score"]) for each in verdict.runners_up]
    return (verdict.name, verdict.where, verdict.kind, verdict.undecided, verdict.score, verdict.confidence, behind)


# -- recorded runs


def reworded(name: str, folder: Path, words: dict[str, str], model: str) -> Path:
    """Copy a run with every text in it changed: notes, names of people's, the model's name, the folder's."""
    shutil.copytree(RUNS / name, folder)
    for path in folder.glob("*.prom"):
        path.write_text(path.read_text().replace(MODEL, model))
    profile = (folder / "profile.yaml").read_text()
    assert "description:" in profile and f"name: {MODEL}" in profile
    lines = [
        f"description: {json.dumps(words['description'])}" if line.startswith("description:") else line
        for line in profile.replace(MODEL, model).splitlines()
    ]
    (folder / "profile.yaml").write_text("\n".join(lines) + "\n")
    run = json.loads((folder / "run.json").read_text())
    run |= {"id": words["id"], "note": words["note"], "remark": words["note"], "problems": [words["note"]]}
    (folder / "run.json").write_text(json.dumps(run))
    plan = json.loads((folder / "plan.json").read_text())
    for worker in plan["workers"]:
        worker |= {"argv": words["argv"].split(), "environment": {"NOTE": words["note"]}, "log_name": words["id"]}
    (folder / "plan.json").write_text(json.dumps(plan))
    known = json.loads((folder / "ceilings.json").read_text())
    for node in known["nodes"].values():
        node["machine"] = {"cpu_model": words["hardware"], "kernel": words["id"]}
        node["notes"] = {"probe": words["note"]}
    (folder / "ceilings.json").write_text(json.dumps(known))
    client = json.loads(gzip.decompress((folder / "client.json.gz").read_bytes()))
    client |= {"label": words["note"], "model_id": model, "tokenizer_id": words["argv"], "date": words["id"]}
    (folder / "client.json.gz").write_bytes(gzip.compress(json.dumps(client).encode()))
    (folder / "versions.json").write_text(json.dumps({"commit": words["id"], "note": words["note"]}))
    return folder


@cache
def of_recorded(name: str) -> tuple[Any, ...]:
    return outcome(analyse(load_run(RUNS / name)))


@pytest.mark.parametrize("name", ["healthy", "delayed-link", "one-slot-each"])
@settings(max_examples=25, deadline=None)
@given(
    words=st.fixed_dictionaries(dict.fromkeys(("id", "note", "description", "argv", "hardware"), TEXTS)),
    model=NAMES,
    folder=NAMES,
)
def test_no_text_of_a_recorded_run_moves_its_verdict(name: str, words: dict[str, str], model: str, folder: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        run = load_run(reworded(name, Path(place, folder), words, model))
    assert run.note == words["note"] and run.profile is not None and run.profile.model.name == model
    assert outcome(analyse(run)) == of_recorded(name)


# -- scenarios, recorded and simulated

SIMULATED = {
    # Three servers near a border, where a word alone once made a limit of the sequences of prompts.
    "prompts": Server(prompt=2000, output=60, requests=24, concurrency=8),
    "eager": Server(eager=True, parameters=7e9, layers=32),
    "slots": Server(max_num_seqs=4, concurrency=12),
}


@cache
def scenarios() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    found = {
        path.name: (read_document(path), read_document(DATA / "h200" / "ceilings.json"))
        for path in sorted([*DATA.glob("h200/scenario_*.xz"), *DATA.glob("h200_pair/*.xz")])
    }
    return found | {name: (Simulation(server).document(), ceilings(server)) for name, server in SIMULATED.items()}


def judged(document: dict[str, Any], known: dict[str, Any], name: str = "scenario") -> tuple[Any, ...]:
    return outcome(analyse(add_ceilings(scenario_run(document, name), known)))


@cache
def of_scenario(name: str) -> tuple[Any, ...]:
    return judged(*copy.deepcopy(scenarios()[name]))


@pytest.mark.parametrize("name", sorted(scenarios()))
@settings(max_examples=15, deadline=None)
@given(
    words=st.fixed_dictionaries(
        dict.fromkeys(("scenario", "what", "cause", "engine", "hardware", "model", "weights", "note"), TEXTS)
    ),
    model=NAMES,
    file=NAMES,
)
def test_no_text_of_a_scenario_moves_its_verdict(name: str, words: dict[str, str], model: str, file: str) -> None:
    document, known = copy.deepcopy(scenarios()[name])
    document |= words
    for key in ("metrics_before", "metrics_after"):
        document[key] = document[key].replace('model_name="', f'model_name="{model}')
    assert judged(document, known, file) == of_scenario(name)


@pytest.mark.parametrize("stated", ["bf16", "w4a16"])
def test_the_width_of_a_weight_is_a_field(stated: str) -> None:
    document, _ = copy.deepcopy(scenarios()["scenario_decode_bw.json.xz"])
    document["quantization"] = stated
    weights = scenario_run(document).settings.weights
    assert weights is not None and weights.bits == {"bf16": 16, "w4a16": 4}[stated]
