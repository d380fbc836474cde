"""Words of the field: docstrings that begin with what a module does, and names that were replaced stay away."""

from __future__ import annotations

import ast
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    *(
        "_engines",
        "_modules",
        "_runners",
        "_executors",
        "_states",
        "_utils",
        "bench",
        "bottleneck",
        "cli",
        "control",
        "lab",
        "netboot",
    ),
    *("rehearsal", "remote", "salt", "tests"),
)
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if not path.is_symlink())


def _paths(*patterns: str) -> list[str]:
    """Return the tree's own files, links left out; what a run or a build leaves beside them is not ours."""
    found = (path for pattern in patterns for path in ROOT.rglob(pattern) if not path.is_symlink())
    paths = (path.relative_to(ROOT) for path in found)
    return sorted(
        str(path) for path in paths if not {"build", "runs", "data"} & set(path.parts) and str(path)[0] != "."
    )


NAMED = _paths("*.py")
TEXTS = _paths("*.md", "*.sls", "*.yaml", "*.j2")
# File -> what it is now: one name is one thing.
REPLACED = {
    "_modules/admission.py": "control/gateway.py",
    "_modules/delay.py": "salt/perturb/files/packet_delay.py",
    "_modules/drain.py": "control/gateway.py",
    "_modules/perf.py": "_modules/telemetry.py",
    "_modules/steal.py": "salt/perturb/files/cpu_burner.py",
    "_runners/startup.py": "_runners/start_recording.py",
    "_runners/wave.py": "_runners/burst_load.py",
    "bottleneck/numbers.py": "bottleneck/json_numbers.py",
    "bottleneck/profile/overlay.py": "bottleneck/profile/local_overrides.py",
    "bottleneck/profile/placement.py": "bottleneck/profile/rank_placement.py",
    "bottleneck/profile/places.py": "bottleneck/profile/paths.py",
    "bottleneck/telemetry/live.py": "bottleneck/telemetry/cluster_state.py",
    "bottleneck/telemetry/metrics.py": "bottleneck/telemetry/prometheus_text.py",
    "bottleneck/telemetry/rates.py": "bottleneck/telemetry/recent_rates.py",
    "netboot/boot/limits.py": "netboot/boot/rate_limit.py",
    "netboot/boot/neighbours.py": "netboot/boot/kernel_tables.py",
    "netboot/boot/orders.py": "netboot/boot/command_queue.py",
    "netboot/image/trial.py": "netboot/image/canary.py",
    "netboot/boot/watching.py": "netboot/boot/progress_report.py",
    "salt/sampler/files/surroundings.py": "salt/sampler/files/thermal_numa.py",
}
# Names that loaders, buses, folders, profiles, samples and metrics had.
GONE = re.compile(
    r"cluster/perf/|salt-run perf\.|admission\.(?:open|close)d?\b|wave\.send|startup\.record|cluster_perf_"
    r"|boot[. ]hold\b|boot/orders|(?:profile|`)\.?perf\.|_heard_timestamp|\"waves?\"|`FRONT_|tone-front"
)
# A docstring that opens with one of these names a question instead of a thing.
ASKING = re.compile(r"(?:What|Whether|How|Which|Where|Who|Whose|When|Why)\b")
ANALYSIS = [path for path in MODULES if path.relative_to(ROOT).parts[0] == "bottleneck"]
# Words that are no names: each says too little or is not the field's own.
NO_NAMES = {
    *("told", "said", "heard", "held", "doubt", "doubts", "doubtful", "speeds", "front", "surroundings", "orders"),
    *("neighbour", "neighbours", "wave", "waves", "salting", "takeup", "perf", "between"),
}
# The few that are: `time.perf_counter`, and points that a calibration has not seen are held out everywhere.
NAMES = re.compile(r"perf_counter|(?i:held_out)")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_docstring_begins_with_what_the_thing_does(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip(), "a module without a docstring"
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(each) or "" for each in ast.walk(tree) if isinstance(each, kinds)]
    assert [each for each in texts if ASKING.match(each)] == []
    # A test may hold a name against its coming back.
    found = GONE.search(text) if path.relative_to(ROOT).parts[0] != "tests" else None
    assert found is None, f"{found[0]} is gone" if found else ""


@pytest.mark.parametrize("path", NAMED, ids=str)
def test_no_name_has_a_word_that_says_too_little(path: str) -> None:
    with tokenize.open(ROOT / path) as stream:
        names = {token.string for token in tokenize.generate_tokens(stream.readline) if token.type == tokenize.NAME}
    # What a test is called is a sentence.
    names = {NAMES.sub("", name) for name in names if not name.startswith("test_")}
    assert {name for name in names if NO_NAMES & set(name.lower().split("_"))} == set()


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_no_page_and_no_setting_has_a_name_that_is_gone(path: str) -> None:
    found = GONE.search((ROOT / path).read_text(encoding="utf-8"))
    assert found is None, f"{found[0]} is gone" if found else ""


@pytest.mark.parametrize("old", REPLACED)
def test_a_replaced_name_stays_away(old: str) -> None:
    assert not (ROOT / old).exists(), f"it is {REPLACED[old]} now"
    assert (ROOT / REPLACED[old]).is_file()


def _public(body: list[ast.stmt]) -> list[ast.FunctionDef]:
    found = []
    for each in body:
        if isinstance(each, ast.ClassDef) and not each.name.startswith("_"):
            found += _public(each.body)
        elif isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
            found.append(each)
    return found


def _section(text: str, title: str) -> str:
    """Return a section of a NumPy docstring, without its title."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=\n\n[A-Z]\w+\n---|\Z)", text, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def _lacks(function: ast.FunctionDef) -> list[str]:
    """Return what the docstring of a function does not say and should."""
    text = ast.get_docstring(function) or ""
    if not text:
        return [f"{function.name}: a docstring"]
    heads = [line.partition(" :")[0] for line in _section(text, "Parameters").splitlines() if line[:1] not in ("", " ")]
    named = {name.strip().lstrip("*") for head in heads for name in head.split(",")}
    arguments = function.args
    asked = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    found = [each.arg for each in asked if each and each.arg not in ("self", "cls") and each.arg not in named]
    marks = {ast.unparse(each) for each in function.decorator_list}
    returned = ast.unparse(function.returns) if function.returns else "None"
    # A property is what its docstring names.
    if returned != "None" and not marks & {"property", "cached_property"} and not re.search("[Rr]eturn|Yield", text):
        found.append("what it returns")
    if not any("validator" in mark for mark in marks):
        raised = [each.exc for each in ast.walk(function) if isinstance(each, ast.Raise) and each.exc]
        names = {ast.unparse(each.func if isinstance(each, ast.Call) else each) for each in raised}
        found += [f"when it raises {name}" for name in names if name[0].isupper() and name not in text]
    return [f"{function.name}: {each}" for each in found]


@pytest.mark.parametrize("path", ANALYSIS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_public_function_of_the_analysis_says_what_it_takes_returns_and_refuses(path: Path) -> None:
    functions = _public(ast.parse(path.read_text(encoding="utf-8")).body)
    assert [each for function in functions for each in _lacks(function)] == []


def test_a_docstring_that_lacks_a_part_is_seen() -> None:
    text = '''
def times(value: int, factor: int = 2) -> int:
    """Multiply.

    Parameters
    ----------
    value : int
        Number.
    """
    if factor < 0:
        raise ValueError(factor)
    return value * factor
'''
    (function,) = _public(ast.parse(text).body)
    assert _lacks(function) == ["times: factor", "times: what it returns", "times: when it raises ValueError"]
