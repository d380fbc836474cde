"""The benchmark on cards: its list of cases, their order, what is done to the lab, and the score."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from bottleneck.plan.nodes import deployment_with
from bottleneck.profile import Profile, find_profile, load_profile
from cli.gpu_lab import scores as scoring
from cli.gpu_lab.cases import Case, Cases, Put, Turn, all_cases, settings_of, turns
from cli.gpu_lab.trials import _names, injections
from lab import cards as machine
from lab import requirements
from tests.by_file import load

GIB = 2**30


def profile(cards: int, device: str) -> Profile:
    return load_profile(find_profile({2: "gpu-pair", 4: "gpu-mesh"}[cards] + ("" if device == "cards" else "-cpu")))


@pytest.mark.parametrize(("cards", "least", "causes"), [(2, 40, 10), (4, 20, 8)])
def test_there_are_cases_enough(cards: int, least: int, causes: int) -> None:
    found = all_cases().of(cards, "cards")
    assert len(found) >= least
    assert len({case.put.kind for case in found if case.put}) >= causes
    assert any(case.put is None for case in found), "controls"


def test_some_can_be_rehearsed_on_processors() -> None:
    assert len([case for case in all_cases().of(2, "processors") if case.put]) >= 3


@pytest.mark.parametrize("device", ["cards", "processors"])
@pytest.mark.parametrize("cards", [2, 4])
def test_every_case_fits_its_profile(cards: Any, device: Any) -> None:
    loaded = profile(cards, device)
    for case in all_cases().of(cards, device):
        deployment = deployment_with(loaded, case.deployment, settings_of(case, device) or None)
        load, _ = all_cases().load(case.load, device)  # type: ignore[misc]
        assert load.input_tokens + load.output_tokens <= (deployment.server.max_model_len or 0), case.name
        assert case.beside is None or case.beside in loaded.deployments
        if case.put and case.put.node:
            assert case.put.node in deployment.nodes, case.name
        if case.put and case.put.cable:
            assert set(case.put.cable) <= set(deployment.nodes), case.name


def test_every_fault_is_beside_a_run_without_it_and_within_two_of_one_on_its_other_side() -> None:
    found = turns(all_cases().of(2, "cards"), "cards")

    def plain(number: int, like: Turn) -> bool:
        other = found[number]
        return other.is_plain and (other.deployment, other.load) == (like.deployment, like.load)

    for number, turn in enumerate(found):
        if turn.case and turn.case.put and not turn.settings:
            before = [step for step in (1, 2) if plain(number - step, turn)]
            after = [step for step in (1, 2) if plain(number + step, turn)]
            assert before and after and 1 in (before[0], after[0]), turn.case.name


def test_what_settings_are_compared_with_is_recorded_before_them() -> None:
    for cards in (2, 4):
        found = turns(all_cases().of(cards, "cards"), "cards")
        for number, turn in enumerate(found):
            if turn.settings or (turn.case and turn.case.beside):
                plain = (turn.case.beside or turn.deployment) if turn.case else ""
                assert any(
                    each.is_plain and (each.deployment, each.load) == (plain, turn.load) for each in found[:number]
                )


def test_a_deployment_is_started_once_for_all_of_its_cases() -> None:
    found = turns(all_cases().of(2, "cards"), "cards")
    stages = [turn.stage for number, turn in enumerate(found) if number == 0 or found[number - 1].stage != turn.stage]
    assert Counter(stages).most_common(1)[0][1] == 1


def test_names_of_runs_are_the_same_in_every_call() -> None:
    found = turns(all_cases().of(2, "processors"), "processors")
    names = _names(found)
    assert len(set(names)) == len(names) == len(found)
    assert names[0] == "tp2/prompts/1" and "tp2-rate-5-prompts" in names


def test_what_is_done_to_the_lab() -> None:
    done = {}
    for cards in (2, 4):
        control: Any = SimpleNamespace(profile=profile(cards, "cards"))
        for turn in turns(all_cases().of(cards, "cards"), "cards"):
            if turn.case:
                done[turn.case.name] = injections(turn, "cards", control)
    assert done["tp2-rate-10-eight"] == [
        {"kind": "throttle", "link": "direct", "bytes_per_second": 1.25e9, "cable": None}
    ]
    assert done["tp4-cable-1-2"] == [
        {"kind": "throttle", "link": "mesh", "bytes_per_second": 1.25e8, "cable": ("node1", "node2")}
    ]
    assert done["tp2-latency-short-chat"] == [{"kind": "delay", "link": "direct", "seconds": pytest.approx(50e-6)}]
    assert done["tp2-kernels-30-chat"] == [{"kind": "foreign_kernels", "node": "node1", "share": 0.3}]
    assert done["tp2-paused-head"] == [{"kind": "paused", "node": "node0", "share": 0.2}]
    assert done["tp2-few-slots"] == done["tp2-eager-chat"] == done["tp2-healthy-chat"] == []


def test_settings_are_a_servers() -> None:
    by_name = {case.name: case for case in all_cases().cases}
    assert settings_of(by_name["tp2-eager-chat"], "cards") == {"enforce_eager": True}
    assert settings_of(by_name["pp2-small-cache"], "cards") == {"kv_cache_memory": "460 MiB"}
    assert settings_of(by_name["tp2-few-slots"], "cards") == {"max_num_seqs": 4}
    assert settings_of(by_name["tp2-rate-10-eight"], "cards") == {}


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"expected": ["slow_link"]}, "slow_link; expected classes"),
    ({"load": "heavy"}, "load heavy; expected one of"),
    ({"put": {"kind": "foreign_kernels", "cards": 0.5}}, "foreign_kernels without a node"),
    ({"put": {"kind": "link_rate", "cards": "10 parsecs"}}, "parsecs"),
    ({"put": {"kind": "slots", "cards": 4, "cable": ["node0", "node1"]}}, "expected that of link_rate alone"),
]


@pytest.mark.parametrize(("change", "expected"), MISTAKES, ids=[each[1][:20] for each in MISTAKES])
def test_a_mistake_in_the_list_is_named(change: dict[str, Any], expected: str) -> None:
    case = {"name": "a", "cards": 2, "deployment": "tp2", "load": "chat", "expected": ["straggler"], **change}
    with pytest.raises(ValidationError, match=expected):
        Cases.model_validate({"schema": 1, "loads": {"chat": {"cards": [1, 1, 1, 1]}}, "cases": [case]})


def line(case: str, began: float, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "case": case, "of": None, "put": None, "expected": None, "deployment": "tp2", "load": {"kind": "chat"},
        "requests": 8, "began": began, "seconds_per_token": seconds, "error": "",
        "verdict": {"class": "balanced", "where": {}}, **more,
    }  # fmt: skip


def faulty(named: str, node: str | None, **more: Any) -> dict[str, Any]:
    put = {"kind": "foreign_kernels", "node": "node1", "strength": 0.7}
    verdict = {"class": named, "where": {"node": node}}
    return line("f", 2.0, 0.3, of="f", put=put, expected=["straggler"], verdict=verdict, **more)


def test_a_fault_costs_what_the_runs_beside_it_say() -> None:
    far = line("tp2/chat/3", 9.0, 5.0)
    record = [line("tp2/chat/1", 1.0, 0.1), faulty("straggler", "node1"), line("tp2/chat/2", 3.0, 0.3), far]
    (score,) = scoring.scores(record)
    assert score.cost == pytest.approx(0.3 / 0.2 - 1) and score.is_right


def test_the_right_class_of_the_wrong_node_is_wrong() -> None:
    assert not scoring.scores([faulty("straggler", "node0")])[0].is_right
    assert not scoring.scores([faulty("host_overhead", "node1")])[0].is_right


@pytest.mark.parametrize(
    ("limit", "runner", "is_right"), [(0.8, "node1", True), (0.8, "node0", False), (0.3, "node1", False)]
)
def test_a_fault_that_takes_less_than_what_limits_anyway_may_stand_behind_it(
    limit: float, runner: str, is_right: bool
) -> None:
    limited = {"class": "link_latency", "where": {}, "gain": {"share": limit}}
    record = [line("tp2/chat/1", 1.0, 0.2, verdict=limited), faulty("link_latency", None)]
    record[1]["verdict"]["runners_up"] = [{"class": "straggler", "node": runner, "score": 0.31}]
    # It costs 50 %: a third of the time comes back without it.
    (score,) = scoring.scores(record)
    assert score.is_right is is_right
    if is_right:
        assert (score.gain, score.is_first) == (0.31, False)
        assert scoring.summary([score])["gain_within_5_points"] == {"right": 1, "of": 1}
        assert "as a runner-up" in scoring.table([score])


def test_the_summary_counts_large_faults_and_false_names() -> None:
    record = [
        line("tp2/chat/1", 1.0, 0.1),
        faulty("straggler", "node1"),
        line("c", 3.0, 0.1, of="c", expected=["link_latency"], verdict={"class": "straggler", "where": {}}),
        line("d", 4.0, 0.1, of="d", expected=["link_latency"], verdict={"class": "inconclusive", "where": {}}),
        line("broken", 5.0, 0.1, of="e", error="no answer"),
    ]
    found = scoring.summary(scoring.scores(record))
    assert (found["cases"], found["causes"]) == (3, 1)
    assert found["large"] == {"right": 1, "of": 1}
    assert found["controls"] == {"false_names": 1, "of": 2}
    assert "| f | foreign_kernels | +200% | straggler on node1 | -; 67% | yes |" in scoring.table(
        scoring.scores(record)
    )


SMI = "0, NVIDIA H100 80GB HBM3, GPU-1, 81559, 1, 580.159.04\n1, NVIDIA H100 80GB HBM3, GPU-2, 81559, 1, 580.159.04\n"
TOOLS = dict.fromkeys((*requirements.TOOLS, *machine.NODE_TOOLS, *machine.COMPILER), "/usr/bin/x")


def test_a_machine_with_two_idle_cards_lacks_nothing() -> None:
    assert machine.lacks(profile(2, "cards"), machine.read_cards(SMI), TOOLS) == []


def test_each_thing_that_is_lacking_is_named_with_what_to_do() -> None:
    cards = machine.read_cards(SMI)
    loaded = profile(2, "cards")
    (none,) = machine.lacks(loaded, [], TOOLS)
    assert "expected 2 cards. Next: make gpu-lab DEVICE=cpu" in str(none)
    (one,) = machine.lacks(loaded, cards[:1], TOOLS)
    assert str(one).startswith("NVIDIA cards: 1 (0 NVIDIA H100 80GB HBM3); expected 2.")
    (small,) = machine.lacks(loaded, [replace(cards[0], memory_bytes=24 * GIB), cards[1]], TOOLS)
    assert str(small).startswith(
        "memory of card 0 (NVIDIA H100 80GB HBM3): 24.0 GiB; expected 70.0 GiB for a rank of node0"
    )
    (busy,) = machine.lacks(loaded, [cards[0], replace(cards[1], used_bytes=30 * GIB)], TOOLS)
    assert "30.0 GiB are in use already; expected an idle card" in str(busy)
    (tools,) = machine.lacks(loaded, cards, {**TOOLS, "ip": None, "iperf3": None})
    assert "no ip, iperf3" in str(tools) and "sudo apt-get install iperf3 iproute2" in str(tools)
    assert machine.lacks(profile(2, "processors"), [], TOOLS) == [], "no card is needed on processors"


def test_mounts_that_hold_the_driver_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "driver/lib64/libcuda.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    info = tmp_path / "mountinfo"
    info.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {tmp_path}/driver ro - virtiofs x ro\n")
    listed = f"2 libs found\n\tlibcuda.so.1 (libc6,x86-64) => {library}\n\tlibm.so.6 (libc6) => /lib/libm.so.6\n"
    assert machine.driver_mounts(None, listed, info, {}) == [f"{tmp_path}/driver"]
    assert machine.driver_mounts(None, "", info, {"LD_LIBRARY_PATH": str(library.parent)}) == [f"{tmp_path}/driver"]
    assert machine.driver_mounts(None, "", info, {}) == []
    engine = profile(2, "cards").engine_of("node0")
    monkeypatch.setenv("CLUSTER_CACHE", str(tmp_path / "cache"))
    packages = tmp_path / "cache/engines" / Path(engine.directory()).name / "lib/python3.12/site-packages"
    packages.mkdir(parents=True)
    (packages / "machine.pth").write_text(f"{library.parent}\n")
    assert machine.driver_mounts(engine, "", info, {}) == [f"{tmp_path}/driver"], "torch is on a disk of its own"
    assert machine.driver_environment({"LD_LIBRARY_PATH": "/x", "HOME": "/root"}) == {"LD_LIBRARY_PATH": "/x"}


def test_foreign_kernels_keep_to_their_share() -> None:
    program = load("salt/perturb/files/foreign_kernels.py", "foreign_kernels_program")
    now, computed = [0.0], [0]

    def multiply() -> None:
        computed[0] += 1
        now[0] += 0.001

    def sleep(seconds: float) -> None:
        now[0] += seconds

    for _ in range(10):
        program.busy(multiply, 0.3, lambda: now[0], sleep)
    assert computed[0] == pytest.approx(60, abs=2) and now[0] == pytest.approx(0.2)


def test_a_put_knows_its_units() -> None:
    put = Put(kind="link_rate", cards="10 Gbit/s")
    assert put.strength("cards") == 1.25e9 and put.strength("processors") is None
    assert Case(name="a", cards=2, deployment="tp2", load="chat", expected=("straggler",)).put is None
