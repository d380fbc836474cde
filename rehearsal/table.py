"""Show a person where the rehearsal is: the stage under way, and at the end a table of all."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from cli.output import console, out


@dataclass
class Outcome:
    """Outcome of a stage."""

    title: str
    seconds: float
    passed: bool
    detail: str


class Stages:
    """Runs stages one after the other and keeps how each went.

    Parameters
    ----------
    until
        Name of the last stage to run; None for all.
    order
        Names of all stages.
    """

    def __init__(self, until: str | None, order: Sequence[str]) -> None:
        self._until = until
        last = order.index(until) if until else len(order) - 1
        self._names = frozenset(order[: last + 1])
        self._outcomes: list[Outcome] = []
        self._shown = ""

    @property
    def failed(self) -> bool:
        """Return whether a stage failed, or was cut off."""
        return any(not outcome.passed for outcome in self._outcomes)

    def includes(self, *names: str) -> bool:
        """Return whether one of these stages comes before the end."""
        return not self._names.isdisjoint(names)

    def say(self, text: str) -> None:
        """Show what a stage is at."""
        if text != self._shown:
            self._shown = text
            console.print(f"  [dim]{escape(text)}[/]", soft_wrap=True)

    def do(self, name: str, title: str, work: Callable[[], str]) -> bool:
        """Run a stage; return whether the next one is to be run."""
        console.print(f"[bold]{name}[/] {escape(title)} ...")
        started = time.monotonic()
        try:
            detail, passed = work(), True
        except (Exception, subprocess.TimeoutExpired) as error:
            detail, passed = str(error) or type(error).__name__, False
        except BaseException:
            self._outcomes.append(Outcome(title, time.monotonic() - started, False, "cut off"))
            raise
        seconds = time.monotonic() - started
        self._outcomes.append(Outcome(title, seconds, passed, detail))
        mark = "[green]✓[/]" if passed else "[red]✗[/]"
        console.print(f"{mark} {escape(name)} in {seconds:.0f} s: {escape(detail)}", soft_wrap=True)
        return passed and name != self._until

    def show(self, seconds: float, log: Path) -> None:
        """Print the table."""
        table = Table("stage", "", "seconds", "", box=None, pad_edge=False)
        table.columns[2].justify = "right"
        for outcome in self._outcomes:
            mark = "[green]✓[/]" if outcome.passed else "[red]✗[/]"
            table.add_row(outcome.title, mark, f"{outcome.seconds:.0f}", escape(outcome.detail[:300]))
        out.print(table)
        out.print(
            f"{'failed' if self.failed else 'passed'} after {seconds / 60:.1f} minutes; every command is in {log}"
        )
