"""No code but an engine's own names an engine or a kind of accelerator: those are data."""

import ast
from collections.abc import Iterator
from pathlib import Path

from bottleneck.profile.loading import load_engines
from bottleneck.profile.paths import ENGINE_MAP, repository_directory

REPOSITORY = repository_directory()
ROOMS = [
    *("bottleneck", "cli", "control", "lab", "netboot", "remote", "rehearsal"),
    *("_engines", "_executors", "_modules", "_runners", "_states", "_utils", "salt"),
]
# What is an engine's own: its dialect, and scripts that make its form of the model.
OWN = (
    "bottleneck/plan/engines/",
    "bottleneck/telemetry/engine_names.py",
    "_utils/engine_names.py",
    "salt/sampler/files/engine_names.py",
    "salt/model/files/make_",
)
# What is left, and why: a file that no longer names one has to go from here.
LEFT = {
    "bottleneck/plan/workers.py": (["vllm"], "records from before engines were named are vLLM's"),
    "cli/gpu_lab/command.py": (["cuda"], "the benchmark is of this kind of card, or of processors in its stead"),
    "lab/campaign/faults.py": (["vllm"], "the lab's deployments that have ranks to hit are vLLM's"),
    "lab/campaign/invariants.py": (["vllm"], "what of those ranks may be left over has their names"),
    "lab/packing/contents.py": (["cuda-lab"], "what a bare machine lacks is listed by the entry of the map"),
    "salt/perturb/files/foreign_kernels.py": (["cuda"], "a program of torch, whose devices have such names"),
}


def literals(path: Path, names: set[str]) -> Iterator[str]:
    """Yield the strings of a file that are the name of an engine, a program of it, or a kind of accelerator."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            word = node.value.removeprefix("bin/")
            # "cpu" is a resource of every node too; as a kind of accelerator it is what a `kind` is compared with.
            if word in names - {"cpu"}:
                yield word
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Attribute) and side.attr == "kind" for side in sides):
                yield from (side.value for side in sides if isinstance(side, ast.Constant) and side.value == "cpu")


def test_engines_and_accelerators_are_data() -> None:
    engines = load_engines(REPOSITORY / "profiles" / ENGINE_MAP)
    names = set(engines) | {engine.engine for engine in engines.values()}
    found = {}
    for room in ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            where = path.relative_to(REPOSITORY).as_posix()
            if not where.startswith(OWN) and (words := sorted(set(literals(path, names)))):
                found[where] = words
    assert found == {where: words for where, (words, _) in LEFT.items()}
