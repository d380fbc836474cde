"""Scenario files: recorded ones come out as labelled, and what is no scenario is said to be none."""

from __future__ import annotations

import copy
import gzip
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run import Run
from bottleneck.runs.scenario import ScenarioError, add_ceilings, load_scenario, read_document, scenario_run
from cli.main import app
from tests.unit.server_simulator import Server, Simulation, ceilings

DATA = Path(__file__).parents[1] / "data" / "h200"
CEILINGS = DATA / "ceilings.json"
LABELLED = [
    ("decode_bw", "decode_memory_bandwidth"),
    ("kv_preempt", "kv_cache_capacity"),
    ("queue_seqs", "sequence_limit"),
]


def recorded(name: str) -> dict[str, Any]:
    return read_document(DATA / f"scenario_{name}.json.xz")


def judged(document: dict[str, Any], known: bool = True) -> Any:
    run = scenario_run(document)
    if known:
        run = add_ceilings(run, read_document(CEILINGS))
    return analyse(run)


@pytest.mark.parametrize(("name", "expected"), LABELLED)
@pytest.mark.parametrize("known", [True, False], ids=["ceilings", "no ceilings"])
def test_recorded_scenarios_come_out_as_labelled(name: str, expected: str, known: bool) -> None:
    verdict = judged(recorded(name), known)
    assert verdict.name == expected, verdict.to_json()
    assert verdict.confidence > (0.7 if known else 0.3)
    assert math.fsum(entry.seconds for entry in verdict.ledger.entries) == pytest.approx(verdict.ledger.total)
    if known:
        assert verdict.ledger.attributed > 0.9
    else:
        assert verdict.notes


@pytest.mark.parametrize(("name", "expected"), LABELLED)
def test_the_label_is_not_what_is_read(name: str, expected: str) -> None:
    document = recorded(name)
    for key in ("scenario", "what", "cause"):
        document[key] = "queue decode kv prefill max_num_seqs"
    assert judged(document).name == expected


@pytest.mark.parametrize(("name", "expected"), LABELLED)
def test_without_what_the_client_says_the_engine_is_enough(name: str, expected: str) -> None:
    document = recorded(name)
    for key in ("requests", "load", "server_args"):
        document.pop(key)
    assert judged(document).name == expected


def test_the_engines_reason_capacity_is_not_taken_at_its_word() -> None:
    document = recorded("queue_seqs")
    reasons = [line for row in document["metrics_during"] for line in row[1:] if 'reason="capacity"' in line]
    assert any(float(line.rpartition(" ")[2]) > 50 for line in reasons)
    assert not any(item["class"] == "kv_cache_capacity" for item in judged(document).runners_up)


def test_the_command_gives_the_head_of_the_verdict_at_the_top(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        ["bottleneck", "--from", str(DATA / "scenario_queue_seqs.json.xz"), "--ceilings", str(CEILINGS), "--json"],
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["class"] == document["verdict"]["class"] == "sequence_limit"
    assert 0.7 < document["confidence"] <= 1 and document["evidence"] and document["runners_up"]
    plain = tmp_path / "plain.json.gz"
    plain.write_bytes(gzip.compress(json.dumps(recorded("queue_seqs")).encode()))
    result = CliRunner().invoke(app, ["bottleneck", "--from", str(plain)])
    assert result.exit_code == 0 and "max_num_seqs" in result.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "expected an object with metrics_after"),
        ("{}", "metrics_after: missing or without a vLLM metric"),
        ('{"metrics_after": "up 1\\n"}', "metrics_after: missing or without a vLLM metric"),
    ],
)
def test_what_is_no_scenario_is_reported(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    result = CliRunner().invoke(app, ["bottleneck", "--from", str(path)])
    assert result.exit_code == 2
    with pytest.raises(ScenarioError, match=r"x\.json") as caught:
        load_scenario(path)
    assert words in str(caught.value)


def test_ceilings_that_are_none_and_options_that_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"name": "x"}')
    scenario = str(DATA / "scenario_decode_bw.json.xz")
    assert CliRunner().invoke(app, ["bottleneck", "--from", scenario, "--ceilings", str(path)]).exit_code == 2
    assert CliRunner().invoke(app, ["bottleneck", "--ceilings", str(path)]).exit_code == 2
    assert CliRunner().invoke(app, ["bottleneck", "some-run", "--from", scenario]).exit_code == 2
    two: dict[str, Any] = {"nodes": {"a": {}, "b": {}}}
    with pytest.raises(ScenarioError, match="expected one node"):
        add_ceilings(scenario_run(recorded("decode_bw")), two)


def test_ceilings_of_a_probe_are_as_good() -> None:
    run = scenario_run(recorded("decode_bw"))
    node = {
        "gemm_bf16_flops_per_second": {"median": 8.1e14, "low": 8e14, "high": 8.2e14, "samples": 9},
        "memory_read_bytes_per_second": {"median": 4.2e12, "low": 4.1e12, "high": 4.3e12, "samples": 9},
    }
    run = add_ceilings(run, {"schema": 1, "nodes": {"gpu0": node}})
    assert analyse(run).name == "decode_memory_bandwidth"


# -- bad input: said, and never a confident wrong answer


def without_metric(document: dict[str, Any], word: str) -> dict[str, Any]:
    for key in ("metrics_before", "metrics_after"):
        document[key] = "".join(line + "\n" for line in document[key].splitlines() if word not in line)
    document["metrics_during"] = [
        [row[0], *(line for line in row[1:] if word not in line)] for row in document["metrics_during"]
    ]
    return document


def corrupt(document: dict[str, Any], how: str) -> Run:
    given = read_document(CEILINGS)
    if how == "restart":
        document["metrics_before"], document["metrics_after"] = document["metrics_after"], document["metrics_before"]
    elif how == "no before":
        del document["metrics_before"]
    elif how == "NaN":
        lines = document["metrics_after"].splitlines()
        document["metrics_after"] = "\n".join(
            line if line.startswith("#") else f"{line.rpartition(' ')[0]} NaN" for line in lines
        )
    elif how == "cut short":
        document["metrics_after"] = document["metrics_before"]
        document["metrics_during"] = document["metrics_during"][:2]
        document["requests"] = []
    elif how == "one request":
        document = Simulation(Server(requests=1, concurrency=1)).document()
    elif how == "no output token":
        document = without_metric(document, "generation_tokens")
        document["load"]["O"], document["requests"] = 0, [{"ttft": None, "e2e": None, "itl": None}]
    elif how == "no rows":
        document["metrics_during"] = []
    elif how == "rows are no rows":
        document["metrics_during"] = [3, None, [], ["x"], {"t": "y"}]
    elif how == "rows backwards":
        document["metrics_during"].reverse()
    elif how == "no seconds":
        document["seconds"] = float("nan")
    elif how == "no mfu":
        document = without_metric(document, "estimated_")
    elif how == "no histograms":
        document = without_metric(document, "_seconds")
    elif how == "ceilings elsewhere":
        given["name"] = "NVIDIA T4"
    elif how == "ceilings too low":
        given = {"read_Bps": 3e11, "gemm_bf16_4096_flops": 6e13}
    run = scenario_run(document)
    return add_ceilings(run, given)


# (what is broken, a word of what is said about it, how sure a verdict may still be)
CORRUPTIONS = [
    ("restart", "went backwards", 0.5),
    ("no before", "metrics_before", 0.8),
    ("NaN", "not numbers", 0.7),
    ("cut short", "requests: missing", 0.6),
    ("one request", "one request", 0.5),
    ("no output token", "no output token", 0.5),
    ("no rows", "no reading", 0.8),
    ("rows are no rows", "rows are not", 0.8),
    ("rows backwards", "go backwards", 0.97),
    ("no seconds", "seconds", 0.97),
    ("no mfu", "estimated_flops_per_gpu", 0.97),
    ("no histograms", "did not tell its phases", 0.8),
    ("ceilings elsewhere", "the ceilings are of NVIDIA T4", 0.97),
    ("ceilings too low", "another machine's", 0.97),
]


@pytest.mark.parametrize(("how", "words", "bound"), CORRUPTIONS, ids=[how for how, _, _ in CORRUPTIONS])
@pytest.mark.parametrize(("name", "expected"), LABELLED)
def test_bad_input_is_named_and_never_confidently_wrong(
    how: str, words: str, bound: float, name: str, expected: str
) -> None:
    whole = judged(recorded(name))
    verdict = analyse(corrupt(copy.deepcopy(recorded(name)), how))
    statements = [*verdict.notes, *(item.statement for item in verdict.evidence)]
    assert verdict.notes and any(words in line for line in statements), statements
    assert not any("could not be analysed" in line for line in statements)
    assert verdict.confidence <= bound
    if verdict.name != expected and how != "one request":
        assert verdict.name == "inconclusive" or verdict.confidence < 0.5, (
            verdict.name,
            verdict.confidence,
            statements,
        )
    else:
        # What is not known of the steps does not count against a limit: a little more is no contradiction.
        assert verdict.confidence <= whole.confidence + 0.1
    json.dumps(verdict.to_json(), allow_nan=False)


def test_one_request_says_so() -> None:
    server = Server(requests=1, concurrency=1)
    run = scenario_run(Simulation(server).document())
    run = add_ceilings(run, ceilings(server))
    assert analyse(run).confidence <= 0.5


def damaged(document: dict[str, Any], random: Random) -> dict[str, Any]:
    """Damage a scenario in one to four ways that nobody thought of one by one."""
    for _ in range(random.randint(1, 4)):
        key = random.choice(["metrics_before", "metrics_after"])
        lines = str(document.get(key) or "").splitlines()
        metrics = [index for index, line in enumerate(lines) if line.startswith("vllm:")]
        how = random.choice(["key", "type", "rows", "lines", "NaN", "negative", "family"])
        if how == "key":
            document.pop(random.choice([name for name in document if name != "metrics_after"]), None)
        elif how == "type":
            document[random.choice(list(document))] = random.choice([None, 3, "x", [], {}, [{}], [[1]]])
        elif how == "rows":
            rows = document.get("metrics_during")
            document["metrics_during"] = rows[: random.randint(0, 5)] if isinstance(rows, list) else rows
        elif metrics and how == "family":
            family = lines[random.choice(metrics)].split("{")[0].rpartition("_")[0]
            document[key] = "\n".join(line for line in lines if not line.startswith(family))
        elif metrics:
            value = {"lines": None, "NaN": "NaN", "negative": "-5"}[how]
            for index in random.sample(metrics, min(len(metrics), random.randint(1, 60))):
                lines[index] = "#" if value is None else f"{lines[index].rpartition(' ')[0]} {value}"
            document[key] = "\n".join(lines)
    return document


@pytest.mark.slow
def test_damage_of_every_kind_is_survived_and_hardly_ever_confidently_wrong() -> None:
    expected, wrong, judged_ones = dict(LABELLED), [], 0
    whole = {name: recorded(name) for name in expected}
    for seed in range(150):
        random = Random(seed)
        name = random.choice(sorted(expected))
        try:
            run = scenario_run(damaged(copy.deepcopy(whole[name]), random))
        except ScenarioError:
            continue
        verdict = analyse(add_ceilings(run, read_document(CEILINGS)))
        json.dumps(verdict.to_json(), allow_nan=False)
        assert not any("could not be analysed" in note for note in verdict.notes), (seed, verdict.notes)
        judged_ones += 1
        if verdict.name not in (expected[name], "inconclusive") and verdict.confidence >= 0.6:
            wrong.append((seed, name, verdict.name, verdict.confidence, verdict.notes))
    assert judged_ones > 120 and len(wrong) <= 0.02 * judged_ones, wrong
