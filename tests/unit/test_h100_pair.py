"""Two real cards over a link: what held each recorded run back is named, and nearly all of it explained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bottleneck.diagnosis.verdict import Verdict, analyse
from bottleneck.profile import find_profile, load_profile
from bottleneck.runs.run_folder import load_run
from cli.verify import archive

DATA = Path(__file__).parents[1] / "data" / "h100_pair"
# Run -> the class that is right, and its place. A pipeline's two nodes are alike: either stands for both.
HEALTHY = {
    "20261128T002810Z-tp2-d95a": ("link_latency", {"link": "direct"}),
    "20261128T002904Z-tp2-adcb": ("link_latency", {"link": "direct"}),
    "20261128T002935Z-tp2-2871": ("link_bandwidth", {"link": "direct"}),
    "20261128T003034Z-pp2-c9b6": ("decode_memory_bandwidth", {}),
    "20261128T003116Z-pp2-87ab": ("decode_memory_bandwidth", {}),
    "20261128T003147Z-pp2-6a27": ("prefill_compute", {}),
    "20261128T003229Z-pp2-b02a": ("decode_memory_bandwidth", {}),
    "20261128T003312Z-pp2-8db2": ("decode_memory_bandwidth", {}),
    "20261128T003357Z-pp2-0f08": ("decode_memory_bandwidth", {}),
    "20261128T003448Z-pp2-d363": ("decode_memory_bandwidth", {}),
}
AT_1_GBIT, STARVED = "20261128T003249Z-pp2-4a17", "20261128T003416Z-pp2-8ef8"
# Prompts of 1,500 tokens with answers of 2: how many share a step is not known, and the second token waits for others'.
PROMPTS = {"20261128T002935Z-tp2-2871", "20261128T003147Z-pp2-6a27"}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Verdict]]:
    folder = tmp_path_factory.mktemp("h100")
    yield {
        run.name: analyse(load_run(run))
        for path in sorted((DATA / "runs").glob("*.tar.xz"))
        for run in archive.unpack(path, folder)
    }


@pytest.mark.parametrize("name", HEALTHY)
def test_what_limits_a_run_in_which_nothing_was_put_is_named(verdicts: dict[str, Verdict], name: str) -> None:
    (expected, place), found = HEALTHY[name], verdicts[name]
    assert found.name == expected
    assert place.items() <= found.where.items()
    assert not found.fault


@pytest.mark.parametrize("name", HEALTHY)
def test_the_ledger_explains_nearly_all_of_an_output_token(verdicts: dict[str, Verdict], name: str) -> None:
    assert verdicts[name].ledger.attributed > (0.8 if name in PROMPTS else 0.85)


def test_a_slowed_cable_of_a_pipeline_is_named_with_what_its_mending_gives(verdicts: dict[str, Verdict]) -> None:
    found = verdicts[AT_1_GBIT]
    assert (found.name, found.where["link"]) == ("link_bandwidth", "direct")
    # 363.6 tokens/s, and 588.9 and 587.5 before and after it.
    assert found.gain is not None and found.gain["share"] == pytest.approx(1 - 363.6 / 588.2, abs=0.08)


def test_a_node_whose_engine_gets_too_little_of_its_processor_is_the_straggler(verdicts: dict[str, Verdict]) -> None:
    assert (verdicts[STARVED].name, verdicts[STARVED].where["node"]) == ("straggler", "node1")


def test_a_follower_beside_a_card_is_seen_to_become_ready() -> None:
    engine = load_profile(find_profile("gpu-pair")).engine_of("node1")
    stages = [(stage.name, re.compile(stage.pattern)) for stage in engine.interface.stages]
    lines = (DATA / "follower.log").read_text().splitlines()
    seen = [[name for name, pattern in stages if pattern.search(line)] for line in lines]
    first = next(number for number, names in enumerate(seen) if "warming" in names)
    assert "Initial free memory" in lines[first], "its weights are loaded and its cache has its place"
