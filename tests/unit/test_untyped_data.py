"""Untyped data stays at the boundaries: `Any` is for documents that come in or go out, and for no fact."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
_TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cluster"]
BOUNDARIES: dict[str, list[str]] = _TOOLS["boundaries"]
UNTYPED: dict[str, list[str]] = _TOOLS["untyped"]
ROOMS = (
    *("_engines", "_modules", "_runners", "_states", "_utils", "bottleneck", "cli", "control", "lab", "netboot"),
    *("rehearsal", "remote", "salt"),
)
FILES = sorted(
    path
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if not path.is_symlink() and not any(folder.is_symlink() for folder in path.parents)
)
# Functions that are a boundary by what they are: a fact's own document, what pydantic and serialisers call.
DOCUMENTS = {"to_json", "from_json", "document", "from_document", "to_document", "as_dict"}
HOOKS = re.compile(r"(?:field|model)_(?:validator|serializer)|computed_field")
# What a document, or several of them, are written as.
KEYED = {"dict", "Mapping", "MutableMapping", "Callable"}


class Use(NamedTuple):
    """One annotation that says `Any`: the name that it is of, and whether it is more than a document's."""

    name: str
    line: int
    bare: bool


def uses(tree: ast.Module) -> Iterator[Use]:
    """Yield the uses of `Any` in annotations and in names of types, but those of functions that are a boundary."""
    yield from _uses(tree, "", is_class=False)


def _uses(node: ast.AST, scope: str, *, is_class: bool) -> Iterator[Use]:
    for child in ast.iter_child_nodes(node):
        inside = f"{scope}.{child.name}".lstrip(".") if isinstance(child, ast.ClassDef | ast.FunctionDef) else scope
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if child.name in DOCUMENTS or any(HOOKS.search(ast.unparse(each)) for each in child.decorator_list):
                continue
            taken = child.args
            every = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg]
            found = [each.annotation for each in every if each] + [child.returns]
            yield from (_use(inside, each) for each in found if each and _says_any(each))
        elif isinstance(child, ast.AnnAssign) and _says_any(child.annotation):
            # What a class holds is a fact: it has a type, whatever it was read from.
            name = f"{scope}.{ast.unparse(child.target)}".lstrip(".")
            yield _use(name, child.annotation)._replace(bare=is_class or _is_bare(child.annotation))
        elif isinstance(child, ast.Assign) and isinstance(child.value, ast.Subscript) and _says_any(child.value):
            yield _use(f"{scope}.{ast.unparse(child.targets[0])}".lstrip("."), child.value)
        yield from _uses(child, inside, is_class=isinstance(child, ast.ClassDef))


def _use(name: str, annotation: ast.expr) -> Use:
    return Use(name, annotation.lineno, _is_bare(annotation))


def _says_any(annotation: ast.expr) -> bool:
    return re.search(r"\bAny\b", ast.unparse(annotation)) is not None


def _is_bare(annotation: ast.expr) -> bool:
    """Return whether an `Any` is more than the values of a mapping, the entries of a list, or a call's result."""
    match annotation:
        case ast.Constant(value=str(text)):
            return _is_bare(ast.parse(text, mode="eval").body)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name == "Any"
        case ast.Subscript(value=ast.Name(id=kind), slice=ast.Tuple(elts=[first, ast.Name(id="Any")])) if kind in KEYED:
            return _is_bare(first)
        case ast.Subscript(value=ast.Name(id="list"), slice=ast.Name(id="Any")):
            return False
    return any(_is_bare(each) for each in ast.iter_child_nodes(annotation) if isinstance(each, ast.expr))


def listed(lists: dict[str, list[str]]) -> list[str]:
    """Return the entries of every kind."""
    return [entry for entries in lists.values() for entry in entries]


def is_below(place: PurePath, glob: str) -> bool:
    """Return whether a glob names a file; `**` is any number of folders, or none."""
    pattern = re.escape(glob).replace(r"/\*\*/", "/(?:.*/)?").replace(r"\*", "[^/]*")
    return re.fullmatch(pattern, place.as_posix()) is not None


def refused(place: PurePath, tree: ast.Module) -> list[str]:
    """Return the uses of a file that nothing allows, each with what is expected."""
    is_boundary = any(is_below(place, glob) for glob in listed(BOUNDARIES))
    found = []
    for use in uses(tree):
        if use.bare and not any(fnmatchcase(f"{place}:{use.name}", each) for each in listed(UNTYPED)):
            found.append(f"{place}:{use.line}: {use.name}: Any; expected a type, or object")
        elif not use.bare and not is_boundary:
            found.append(f"{place}:{use.line}: {use.name}: dict[str, Any]; expected a dataclass, a TypedDict or object")
    return found


@pytest.fixture(scope="module")
def trees() -> dict[PurePath, ast.Module]:
    """Return every file of ours, parsed."""
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_any_is_at_a_boundary(trees: dict[PurePath, ast.Module]) -> None:
    found = [use for place, tree in trees.items() for use in refused(place, tree)]
    assert found == [], "see CONTRIBUTING.md, Habits; boundaries are in pyproject.toml, [tool.cluster.boundaries]"


def test_the_lists_name_nothing_that_is_gone(trees: dict[PurePath, ast.Module]) -> None:
    every = [(place, list(uses(tree))) for place, tree in trees.items()]
    documents = [place for place, found in every if any(not use.bare for use in found)]
    assert [glob for glob in listed(BOUNDARIES) if not any(is_below(place, glob) for place in documents)] == []
    bare = [f"{place}:{use.name}" for place, found in every for use in found if use.bare]
    assert [each for each in listed(UNTYPED) if not any(fnmatchcase(name, each) for name in bare)] == []


SAMPLE = """
Batch = dict[str, Any]

@dataclass
class Facts:
    node: str
    measured: dict[str, Any]

    def to_json(self) -> dict[str, Any]: ...

    @field_validator("node", mode="before")
    def _whole(cls, value: Any) -> Any: ...

def facts(document: Mapping[str, Any], *more: list[dict[str, Any]]) -> Facts:
    found: dict[str, dict[str, Any]] = {}

def value(name: str) -> "Any": ...
def call(function: Callable[..., Any], arguments: Sequence[Any]) -> None: ...
"""


def test_what_says_any_is_seen_and_a_fact_has_a_type_everywhere() -> None:
    seen = [(use.name, use.bare) for use in uses(ast.parse(SAMPLE))]
    assert seen == [
        ("Batch", False),
        ("Facts.measured", True),
        *[("facts", False)] * 2,
        ("facts.found", False),
        ("value", True),
        ("call", False),
        ("call", True),
    ]
    tree = ast.parse("def mean(values: dict[str, Any]) -> Any: ...")
    inside, outside = (PurePath(name) for name in ("cli/verify/new.py", "bottleneck/diagnosis/causes/new.py"))
    assert [text.partition("; ")[0] for text in refused(inside, tree)] == ["cli/verify/new.py:1: mean: Any"]
    assert [text.split(": ")[2].partition(";")[0] for text in refused(outside, tree)] == ["dict[str, Any]", "Any"]


def test_a_glob_reaches_below_any_number_of_folders() -> None:
    for name in ("cli/probe.py", "cli/verify/faults.py", "cli/a/b/c.py"):
        assert is_below(PurePath(name), "cli/**/*.py")
        assert is_below(PurePath(name), "cli/*.py") == (name == "cli/probe.py")
    assert not is_below(PurePath("lab/cli/probe.py"), "cli/**/*.py")
