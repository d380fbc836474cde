"""The ten changes of CONTRIBUTING: at most three files each, which are there, and lists that are whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bottleneck.accuracy import trials
from bottleneck.accuracy.trials import FAULTS, FaultKind, Put
from bottleneck.diagnosis.attribution.ledger import RESOURCES
from bottleneck.profile.boot_types import Stage
from bottleneck.runs.ceilings import NodeCeilings, Spread
from cli.probe import node_table
from cli.report import ledger as report_ledger
from cli.verify import faults, plan
from cli.verify.strengths import KINDS, Fault, Kind, injections
from netboot.boot.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
CHANGES = (
    *("a cause", "an engine", "a probe", "a metric", "a profile key", "a boot stage", "a doctor check", "a lab fault"),
    *("a report picture", "a CLI option"),
)


def table() -> dict[str, list[str]]:
    """Return each change and the files that are written for it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Where a change goes")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| a")]
    return {row[1].strip(): re.findall(r"`((?:[\w.-]+/)+[\w.-]+)`", row[2]) for row in rows}


def test_the_ten_changes_are_there() -> None:
    assert tuple(table()) == CHANGES


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_has_at_most_three_files_and_they_exist(change: str) -> None:
    files = table()[change]
    assert 1 <= len(files) <= 3
    for name in files:
        path = ROOT / name.replace("NAME.py", "straggler.py")
        assert path.is_file(), f"{name}: CONTRIBUTING sends people there for {change}"


CAUSE = '''"""Made up: always there."""

from bottleneck.diagnosis.causes.base import SYNTHETIC, Cause, Finding, Tier


def find(context):
    return Finding(0.99)


CAUSE = Cause(
    name="made_up",
    title="Made up",
    meaning="A cause of a test.",
    signals=("always",),
    similar=(("balanced", "there nothing is made up"),),
    advice=("Take it away.",),
    fault=True,
    tried=SYNTHETIC,
    tier=Tier.MENDABLE,
    find=find,
)
'''
PROGRAM = """
from bottleneck.diagnosis import causes_page
from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run_folder import load_run
verdict = analyse(load_run({run!r}))
assert verdict.name == "made_up", verdict.name
assert "made_up" in causes_page.page()
"""


@pytest.mark.starts_programs
def test_a_cause_is_one_file(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bottleneck", tmp_path / "bottleneck", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    (tmp_path / "bottleneck" / "diagnosis" / "causes" / "made_up.py").write_text(CAUSE)
    program = PROGRAM.format(run=str(ROOT / "tests" / "data" / "runs" / "healthy"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_measure_of_a_node_is_shown() -> None:
    names = [name for name, field in NodeCeilings.model_fields.items() if field.annotation == Spread | None]
    values = dict.fromkeys(names, Spread(median=1.0, low=1.0, high=1.0))
    found = node_table(
        {"nodes": {"node0": NodeCeilings.model_validate(values).model_dump(mode="json", exclude_none=True)}}
    )
    assert len(values) > 10 and found.row_count == 1 + len(values), "what they were measured on, and each"


def test_every_stage_of_a_boot_has_its_rules() -> None:
    assert tuple(STAGES) == Stage.__args__  # type: ignore[attr-defined]
    assert all(rules.deadline_seconds > 0 and rules.cause for rules in STAGES.values())
    page = (ROOT / "doc" / "reference" / "boot.md").read_text(encoding="utf-8")
    for stage, rules in STAGES.items():
        (row,) = re.findall(rf"^\| `{stage}` \|.*$", page, re.MULTILINE)
        assert f"| {rules.deadline_seconds:.0f} s" in row and ("| the node |" in row) == rules.reported


def test_every_fault_can_be_put_in_is_planned_and_has_words() -> None:
    assert set(KINDS) <= set(FAULTS)
    steps = [
        step for group in plan.groups(1) for stage in group.stages for block in stage.blocks for step in block.steps
    ]
    planned = {kind for step in steps for kind, _ in step.parts}
    assert set(KINDS) <= planned
    for kind in KINDS.values():
        fault = Fault(kind.name, kind.weakest, "node0", "direct")
        assert {each["kind"] for each in injections(fault, ("node0", "node1"))} <= set(faults._KINDS)


def test_a_fault_without_a_group_of_its_own_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind("slow_clock", "node", 0.9, 0.1, lambda value: 1.0 / value, lambda size: 1.0 / size)
    monkeypatch.setattr(plan, "KINDS", {**KINDS, kind.name: kind})
    monkeypatch.setattr(trials, "FAULTS", {**FAULTS, kind.name: FaultKind("straggler", "a slow clock", 1.0, "of it")})
    names = [group.name for group in plan.groups(1, rounds=1)]
    assert names[-1] == "tp2-slow_clock" and "tp2-slow_clock" not in [group.name for group in plan.groups(1, rounds=0)]
    assert Put("slow_clock", 0.5).expected == "straggler"


def test_every_resource_of_the_ledger_has_words_in_the_report() -> None:
    assert set(report_ledger.RESOURCES) == set(RESOURCES)


def test_the_way_from_a_sample_to_a_verdict_names_files_in_the_order_of_the_data() -> None:
    text = (ROOT / "doc" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("## From a sample to a verdict, in an hour")[2].partition("\n## ")[0]
    files = re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", section)
    assert len(files) >= 10 and all((ROOT / name).exists() for name in files)
    rooms = ["salt/sampler", "_engines", "reactor", "_runners", "bottleneck/runs", "bottleneck/diagnosis"]
    places = [next(index for index, name in enumerate(files) if name.startswith(room)) for room in rooms]
    assert places == sorted(places)
    # What is read one after the other is called, or imported, by what was read before.
    verdict = (ROOT / "bottleneck" / "diagnosis" / "verdict.py").read_text(encoding="utf-8")
    for module in ("observations.gather", "attribution.build", "arbitration"):
        assert f"bottleneck.diagnosis.{module} import" in verdict


def test_the_table_of_what_works_is_one_click_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](doc/reference/status.md)" in readme
    page = (ROOT / "doc" / "reference" / "status.md").read_text(encoding="utf-8")
    assert "| part | works | built, not run | not claimed |" in page
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 8 and all(len(row) == 4 and row[1].strip() for row in rows)
    for profile in sorted(
        {path.name.removesuffix(".yaml") for path in (ROOT / "profiles").iterdir()} - {"engines", "engine_interfaces"}
    ):
        assert f"`{profile}`" in page, f"{profile}: what is it at?"
