"""`cluster plan-deployment`: its figures are the step model's, its refusals the profile's checks."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from bottleneck.performance.calibration import prior
from bottleneck.performance.efficiencies import EfficiencyName
from bottleneck.performance.model import WHOLE, Split
from bottleneck.performance.served import Served
from bottleneck.performance.step import PARAMETERS
from bottleneck.performance.workpoints import WorkPoints
from bottleneck.prediction.choice import Choice, Weighed, choose
from bottleneck.prediction.deployment import Scenario, compare
from bottleneck.prediction.machine import NoCeiling, machine_of, measured_accelerator
from bottleneck.prediction.recorded import calibrations, recorded
from bottleneck.prediction.sweep import SweepError
from bottleneck.profile import Profile, find_profile, load_profile
from bottleneck.profile.deployment_checks import node_fits
from bottleneck.runs import ceilings as ceilings_file
from bottleneck.runs.run_folder import load_run
from cli import plan_deployment
from cli.main import app
from remote.control_interface import ControlError

RUNS = Path(__file__).resolve().parents[1] / "data" / "runs"
CEILINGS = RUNS / "healthy" / "ceilings.json"


def named(profile: str) -> Profile:
    return load_profile(find_profile(profile))


def own(choice: Choice, name: str) -> Weighed:
    """Return a deployment with the profile's own weights, possible or refused."""
    (found,) = (
        each
        for each in (*choice.possible, *choice.refused)
        if each.candidate.name == name and each.candidate.own_weights
    )
    return found


@pytest.fixture(scope="module")
def embedded() -> Choice:
    profile = named("embedded")
    return choose(profile, ceilings_file.load(CEILINGS, profile))


@pytest.fixture(scope="module")
def a770() -> Choice:
    return choose(named("arc-a770/v0.1"))


def test_a_rate_is_that_of_the_step_model_at_the_measured_ceilings(embedded: Choice) -> None:
    profile = embedded.profile
    known = ceilings_file.load(CEILINGS, profile)
    assert known is not None
    accelerator = measured_accelerator(known, ["node0"])
    served = Served(profile.model.model_shape(), profile.model.weight_format(), 2048)
    mean, _ = prior(served.weights, accelerator)
    fitted = profile.engines["cpu"].efficiencies
    assert fitted is not None
    for name, (value, _) in fitted.of_bits(served.weights.bits).values.items():
        mean[PARAMETERS.index(name)] = math.log(value)
    single = own(embedded, "single").speed
    assert single is not None
    alone = WorkPoints.of(served, accelerator, [(1, 256)], 32, WHOLE).seconds(mean)
    assert single.one.ttft_seconds.median == pytest.approx(alone[0])
    assert single.one_rate.median == pytest.approx(1 / alone[1])
    together = WorkPoints.of(served, accelerator, [(4, 256)], 32, WHOLE).seconds(mean)
    assert single.many.tokens_per_second.median == pytest.approx(4 * 32 / (together[0] + 31 * together[1]))
    two = own(embedded, "tp2").speed
    machine = machine_of(profile, profile.deployments["tp2"], known)
    both = WorkPoints.of(served, accelerator, [(4, 256)], 32, Split(2, 1, machine.link)).seconds(mean)
    assert two is not None and two.many.itl_seconds.median == pytest.approx(both[1])


def test_what_was_fitted_to_an_engine_is_named_and_is_not_that_of_another(embedded: Choice, a770: Choice) -> None:
    for name, entry in (("single", "cpu"), ("genai", "cpu-openvino"), ("llamacpp", "cpu-llamacpp")):
        speed = own(embedded, name).speed
        assert speed is not None and speed.basis[0].startswith(f"{entry}: efficiencies of the engine map, fitted to")
    # Without any of its own the priors stand.
    other = own(a770, "layers2").speed
    assert other is not None and not [text for text in other.basis if "fitted" in text]


def test_what_belongs_to_kernels_is_that_of_the_weights_it_was_fitted_to() -> None:
    fitted = named("embedded").engines["cpu"].efficiencies
    assert fitted is not None and fitted.bits == 4
    own_kernels, others = fitted.of_bits(4).values, fitted.of_bits(16).values
    assert "weight_efficiency" in own_kernels and "weight_efficiency" not in others
    assert others["sequence_seconds"] == own_kernels["sequence_seconds"]


def test_efficiencies_are_named_as_the_step_models_parameters() -> None:
    assert get_args(EfficiencyName) == PARAMETERS


def test_calibrated_on_a_run_it_says_what_whatif_says() -> None:
    run = load_run(RUNS / "healthy")
    assert run.profile is not None
    base = recorded([run])
    fitted = calibrations([run], run.profile)
    load = run.profile.workload.model_copy(
        update={
            "concurrency": base.base.batch,
            "input_tokens": base.base.input_tokens,
            "output_tokens": base.base.output_tokens,
        }
    )
    choice = choose(run.profile, run.ceilings, load, fitted)
    found = own(choice, run.deployment).speed
    assert found is not None
    pipeline = run.profile.deployments["pp2"]
    link = machine_of(run.profile, pipeline, run.ceilings).link
    there = Scenario(
        **{**vars(base.base), "split": Split(1, 2, link)},
    )
    expected = compare(base.calibration(), base.base, there)
    assert found.many.itl_seconds == expected.base.itl_seconds
    assert found.many.tokens_per_second == expected.base.tokens_per_second
    staged = own(choice, "pp2").speed
    assert staged is not None and staged.many.ttft_seconds == expected.changed.ttft_seconds
    assert "calibrated on 1 measured point of this engine" in found.basis


def test_memory_is_that_of_the_profiles_checks(a770: Choice) -> None:
    profile = a770.profile
    for each in (*a770.possible, *a770.refused):
        if each.memory is None:
            continue
        deployment, model = each.candidate.deployment, each.candidate.model
        fits = node_fits(deployment, model, {name: profile.nodes[name] for name in deployment.nodes}, profile.engines)
        worst = max(fits, key=lambda fit: fit.memory.total_bytes / fit.limit_bytes)
        assert (each.memory.memory, each.margin_bytes) == (
            worst.memory,
            worst.limit_bytes - worst.memory.total_bytes,
        )
    # 41.4 GiB of 16-bit weights on a card of 15.1.
    (whole,) = (
        each for each in a770.refused if (each.candidate.name, each.candidate.model.quantization.bits) == ("single", 16)
    )
    assert "does not fit node0" in whole.refused and whole.margin_bytes is not None and whole.margin_bytes < -20e9


def test_what_an_engine_cannot_do_is_refused_with_the_profiles_sentence(embedded: Choice) -> None:
    refused = own(embedded, "cpu-openvino-tp2")
    assert (
        refused.refused
        == "tensor_parallel: 2, but OpenVINO GenAI shares no layer between ranks; expected 1 (it has replicas)"
    )
    assert own(embedded, "cpu-llamacpp-tp2").refused
    # Tools for models serve nothing and are not weighed.
    assert not any(each.candidate.engine.kind == "openvino-converter" for each in embedded.refused + embedded.possible)


def test_stages_that_wait_for_each_other_are_slower_for_many() -> None:
    profile = named("embedded")
    machine = machine_of(profile, profile.deployments["pp2"], ceilings_file.load(CEILINGS, profile))
    assert machine.accelerator is not None
    served = Served(profile.model.model_shape(), profile.model.weight_format(), 2048)
    mean, _ = prior(served.weights, machine.accelerator)
    points = [(1, 256), (4, 256)]
    stages, calls = (
        WorkPoints.of(served, machine.accelerator, points, 32, Split(1, 2, machine.link, overlapping=each)).seconds(
            mean
        )
        for each in (True, False)
    )
    assert calls[2] == stages[2], "between tokens of one request"
    assert calls[3] > stages[3], "of four"
    # The engine map says which of them an engine's are.
    assert profile.engines["cpu"].interface.overlapping_stages
    assert not profile.engines["cpu-llamacpp"].interface.overlapping_stages


def test_more_requests_than_are_served_at_once_wait() -> None:
    profile = named("embedded")
    load = profile.workload.model_copy(update={"concurrency": 64})
    choice = choose(profile, ceilings_file.load(CEILINGS, profile), load)
    # Four sequences by llama.cpp; 16 in each of two copies by the others, whose cache has room for more.
    for name, expected in (("llamacpp", 4), ("replicas", 32), ("tp2", 16)):
        speed = own(choice, name).speed
        assert speed is not None and speed.at_once == expected


def test_a_deployment_that_is_not_written_gets_sequences_that_fit(a770: Choice) -> None:
    alone = own(a770, "vulkan-llamacpp-single")
    assert not alone.candidate.written and not alone.refused
    server = alone.candidate.deployment.server
    assert server.max_model_len == 2048 and server.max_num_seqs == 4
    # The profile's own are as they are written.
    assert own(a770, "single").candidate.deployment is a770.profile.deployments["single"]


def test_the_best_of_the_profiles_own_form_is_taken(embedded: Choice, a770: Choice) -> None:
    for choice in (embedded, a770):
        taken = choice.taken
        assert taken is not None and taken.speed is not None
        assert taken.candidate.own_weights and taken.candidate.written and not taken.refused
        rates = [
            each.speed.many.tokens_per_second.median
            for each in choice.possible
            if each.speed is not None and each.candidate.own_weights
        ]
        assert taken.speed.many.tokens_per_second.median >= max(rates) / 1.01
        assert choice.sentence.startswith(f"Take {taken.candidate.name} (") and choice.sentence.endswith(".")
        assert ". " not in choice.sentence
    assert "nobody has tried its engine there" in a770.sentence
    assert "nobody" not in embedded.sentence


def test_without_probes_and_datasheet_memory_is_all_that_is_said() -> None:
    choice = choose(named("embedded"))
    assert all(each.speed is None and each.memory is not None and each.memory.fits for each in choice.possible)
    assert choice.taken is None
    assert choice.sentence.endswith("measure it: cluster probe.")


def test_nominal_figures_say_so(a770: Choice) -> None:
    speed = own(a770, "tp2").speed
    assert speed is not None
    assert [text.partition(":")[0] for text in speed.basis] == ["nominal", "nominal"]
    assert any("usb4 at 10 Gbit/s by the profile and 65 us one way" in text for text in speed.basis)


def test_cards_of_a_node_are_joined_as_the_profile_says() -> None:
    profile = named("nvidia-h200/v1")
    link = machine_of(profile, profile.deployments["tp4"], None).link
    assert link is not None and link.bytes_per_second == 450e9
    node = profile.nodes["node0"]
    bare = node.accelerator.model_copy(update={"interconnect_bytes_per_second": None, "pcie": None})
    alone = profile.model_copy(update={"nodes": {"node0": node.model_copy(update={"accelerator": bare})}})
    with pytest.raises(NoCeiling, match="interconnect and pcie are missing"):
        machine_of(alone, profile.deployments["tp4"], None)


def test_a_run_of_another_model_is_no_calibration() -> None:
    run = load_run(RUNS / "healthy")
    with pytest.raises(SweepError, match=r"served .*; expected a run of mistral-small"):
        calibrations([run], named("arc-a770/v0.1"))


# -- the command


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan-deployment", *arguments], env={"COLUMNS": "200"})


class Asked:
    """A control node that has ceilings, or cannot be reached."""

    def __init__(self, document: dict[str, Any] | None) -> None:
        self._document = document

    def runner(self, name: str) -> dict[str, Any]:
        assert name == "probe.show"
        if self._document is None:
            raise ControlError("no route to host")
        return self._document


def test_ceilings_come_from_the_control_node_that_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    document = json.loads(CEILINGS.read_text())
    document["profile"] = "arc-a770"
    for node in document["nodes"].values():
        node["memory_read_bytes_per_second"] = 400e9
        node["device"] = {"kind": "xpu"}
    monkeypatch.setenv("CLUSTER_RUNS", str(tmp_path))
    monkeypatch.setenv("CLUSTER_CONTROL", "control.example")
    arguments = ("--profile", "arc-a770/v0.1", "--json")
    monkeypatch.setattr(plan_deployment, "connect", lambda *_: Asked(document))
    found = json.loads(run(*arguments).stdout)
    assert found["ceilings"] == "cluster probe, of control.example"
    single = next(each for each in found["deployments"] if each["name"] == "single")
    assert not any("datasheet" in text for text in single["speed"]["basis"])
    monkeypatch.setattr(plan_deployment, "connect", lambda *_: Asked(None))
    away = run(*arguments)
    assert "ceilings of control.example: no route to host" in away.stderr
    assert json.loads(away.stdout)["ceilings"].startswith("no probes of arc-a770")


def test_the_command_prints_data() -> None:
    result = run("--profile", "arc-a770/v0.1", "--nominal", "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["recommendation"]["deployment"] in {each["name"] for each in found["deployments"]}
    written = next(each for each in found["deployments"] if each["name"] == "vulkan-llamacpp-x2")
    assert written["deployment"]["server"]["max_num_seqs"] == 4
    assert all(each["refused"] for each in found["refused"])
    assert {each["bits"] for each in found["deployments"]} == {4, 8}


def test_in_a_narrow_window_names_and_what_decides_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(plan_deployment, "out", Console(width=80, file=shown))
    assert run("--profile", "embedded", "--ceilings", str(CEILINGS)).exit_code == 0
    printed = shown.getvalue()
    assert "cpu-openvino-single" in printed and "[italic]" not in printed
    assert "tokens/s, 4" in printed and "memory a rank" not in printed


def test_people_read_what_to_take_and_what_to_type() -> None:
    result = run("--profile", "embedded", "--ceilings", str(CEILINGS))
    assert result.exit_code == 0, result.stderr
    assert "Take replicas (vLLM, 2 copies, compressed-tensors" in result.stdout
    assert "next is genai (OpenVINO GenAI, 2 copies, int4" in result.stdout
    assert "refused: cpu-openvino-pp2" in result.stdout
    assert "int8" not in result.stdout
    assert "next: cluster deploy replicas" in result.stderr
    assert "int8" in run("--ceilings", str(CEILINGS), "--all-weights").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--link", "carrier-pigeon"], 2, "--link carrier-pigeon; expected one of ethernet, direct"),
        (["--ceilings", "none.json"], 2, "--ceilings none.json: no such file"),
        (["--ceilings", str(CEILINGS), "--nominal"], 2, "--nominal and --ceilings; expected one of them"),
        (["--run", str(RUNS / "healthy"), "--profile", "arc-a770/v0.1", "--nominal"], 1, "expected a run of"),
        (["--profile", "nowhere"], 2, "nowhere"),
        (["--concurrency", "0"], 2, "Invalid value"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], code: int, expected: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert expected in " ".join(result.stderr.split())
    assert result.stdout == ""
