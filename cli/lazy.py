"""Subcommands that are imported when they are used: most of a start is imports that one command does not need."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


@dataclass(frozen=True)
class Lazy:
    """One subcommand before it is imported.

    Attributes
    ----------
    place
        `module:name` of its function, or of the `typer.Typer` with its own subcommands.
    summary
        What `--help` says of one with subcommands of its own; a function says it itself.
    """

    place: str
    summary: str = ""
    context_settings: Mapping[str, object] = field(default_factory=dict)

    def load(self, name: str) -> TyperCommand | TyperGroup:
        """Import it."""
        module, _, attribute = self.place.partition(":")
        found: typer.Typer | Callable[..., None] = getattr(importlib.import_module(module), attribute)
        app = typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_show_locals=False)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name, help=self.summary, no_args_is_help=True)
            group = get_command(app)
            assert isinstance(group, TyperGroup)
            loaded: object = group.commands[name]
        else:
            app.command(name, context_settings=dict(self.context_settings))(found)
            loaded = get_command(app)
        assert isinstance(loaded, TyperCommand | TyperGroup)
        return loaded


class LazyCommands(MutableMapping[str, Any]):
    """Subcommands by name, each imported when it is first asked for."""

    def __init__(self, waiting: Mapping[str, Lazy]) -> None:
        self._waiting = dict(waiting)
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Return the command."""
        if name not in self._loaded:
            self._loaded[name] = self._waiting[name].load(name)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        """Put a command that is there already in the place of a name."""
        self._waiting.setdefault(name, Lazy(""))
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        """Forget a command."""
        del self._waiting[name]
        self._loaded.pop(name, None)

    def __contains__(self, name: object) -> bool:
        """Tell whether there is one, without importing it."""
        return name in self._waiting

    def __iter__(self) -> Iterator[str]:
        """Give the names."""
        return iter(self._waiting)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._waiting)


def lazy_group(waiting: Mapping[str, Lazy]) -> type[TyperGroup]:
    """Return the class of a group with these subcommands, for `typer.Typer(cls=...)`."""

    class LazyGroup(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self.commands = LazyCommands(waiting)

        def list_commands(self, _ctx: Any) -> list[str]:
            return list(self.commands)

    return LazyGroup
