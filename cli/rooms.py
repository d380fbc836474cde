"""Describe the repository's rooms, from their code and the contracts in pyproject.toml: what imports what."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- made by `make reference`: {} -->", "<!-- end of what is made -->"


@dataclass(frozen=True)
class Room:
    """One folder of code.

    Attributes
    ----------
    name : str
        Its path from the root.
    imports : frozenset of str
        Other rooms and libraries that its code imports, beside the standard library.
    never : frozenset of str
        What a contract keeps it from.
    only : frozenset of str or None
        What alone it may import, where it is no package.
    """

    name: str
    imports: frozenset[str]
    never: frozenset[str] = frozenset()
    only: frozenset[str] | None = None

    @property
    def broken(self) -> frozenset[str]:
        """Imports that the contract forbids."""
        return self.imports & self.never | (frozenset() if self.only is None else self.imports - self.only)


def settings(root: Path = ROOT) -> dict[str, Any]:
    """Return the `tool` table of pyproject.toml."""
    tools: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    return tools


def rooms(root: Path = ROOT) -> list[Room]:
    """Return the packages, then the rooms that are none, with what their code imports."""
    tools = settings(root)
    linter, loader = tools["importlinter"], tools["cluster"]["loader-rooms"]
    never = forbidden(linter["contracts"])
    packages = [
        Room(name, _imports(root / name, {name}, {}), never.get(name, frozenset())) for name in linter["root_packages"]
    ]
    # Files of `_utils` are imported by their name alone, as are those in a room's own folder.
    shared = {path.stem: "_utils" for path in (root / "_utils").glob("*.py")}
    others = []
    for name, only in loader.items():
        own = {path.stem for path in (root / name).glob("*.py")} | {Path(name).name}
        others.append(Room(name, _imports(root / name, own, shared), only=frozenset(only)))
    return packages + others


def forbidden(contracts: list[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """Return what the contracts keep each whole package from."""
    found: dict[str, frozenset[str]] = {}
    for contract in contracts:
        for name in contract.get("source_modules", ()):
            found[name] = found.get(name, frozenset()) | frozenset(contract.get("forbidden_modules", ()))
    return found


def floors(root: Path = ROOT) -> list[list[str]]:
    """Return the rooms of the analysis by floor, from the top; each imports from those below it alone."""
    contracts = settings(root)["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in floor.split("|")] for floor in layers]


def purpose(path: Path) -> str:
    """Return the first sentence of a module's or a package's docstring, without its full stop."""
    file = path / "__init__.py" if path.is_dir() else path
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()[0].rstrip(".")


def import_table(root: Path = ROOT) -> str:
    """Return the table of what each room imports and never may, as Markdown."""
    lines = ["| room | imports | never, by contract |", "|---|---|---|"]
    for room in rooms(root):
        never = _names(room.never) if room.only is None else "anything else"
        lines.append(
            f"| `{room.name}/` | {_names(room.imports) or 'the standard library alone'} | {never or 'no rule'} |"
        )
    return "\n".join(lines)


def floor_table(root: Path = ROOT) -> str:
    """Return the table of the rooms of the analysis, as Markdown."""
    lines = ["| floor, from the top | what it does |", "|---|---|"]
    for floor in floors(root):
        for name in floor:
            path = root / "bottleneck" / name
            shown, where = (f"{name}/", path) if path.is_dir() else (f"{name}.py", path.with_suffix(".py"))
            lines.append(f"| `{shown}` | {purpose(where)} |")
    return "\n".join(lines)


def filled(text: str, root: Path = ROOT) -> str:
    """Return a page with its made parts made anew.

    Raises
    ------
    ValueError
        When a part has no end.
    """
    for name, made in {"imports": import_table, "floors": floor_table}.items():
        begin = BEGIN.format(name)
        if begin in text:
            before, _, rest = text.partition(begin)
            _, end, after = rest.partition(END)
            if not end:
                raise ValueError(f"a part that is made has no end; expected {END} behind {begin}")
            text = f"{before}{begin}\n\n{made(root)}\n\n{END}{after}"
    return text


def _names(names: frozenset[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _imports(folder: Path, own: set[str], shared: Mapping[str, str]) -> frozenset[str]:
    """Return the rooms and libraries that the files of a folder import, other than its own names."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        if not path.is_symlink():
            found |= set(_imported(ast.parse(path.read_text(encoding="utf-8"))))
    return frozenset(shared.get(name, name) for name in found - own - sys.stdlib_module_names)


def _imported(tree: ast.AST) -> Iterator[str]:
    """Yield the top-level names that a module imports when it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        yield from _imported(node)
