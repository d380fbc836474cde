"""The causal experiment from the laptop: run it, show what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from bottleneck.units import duration_text, rate_text
from cli.cluster import runner_step
from cli.control import Control, Progress
from cli.output import Step, out

# Measuring the links, warming, putting back, and the blocks of an upgrade that is made come on top of the budget.
EXTRA_SECONDS = 600.0
STRAGGLER = "straggler"


def experiment(control: Control, budget_seconds: float, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run the experiment on what is deployed; everything that was slowed is put back when this returns or raises."""

    def show(current: Step) -> Progress:
        def follow(report: dict[str, Any]) -> None:
            spent = f"{report['elapsed']:.0f} of {budget_seconds:.0f} s: " if "elapsed" in report else ""
            current.detail(f"{spent}{report['stage']} {report['detail']}")

        return follow

    with runner_step("Slowing one resource at a time", f"cluster bottleneck --lab {control.lab}") as current:
        arguments = {"budget": budget_seconds, **settings}
        result: dict[str, Any] = control.runner(
            "causal.run", arguments, show(current), timeout=budget_seconds + EXTRA_SECONDS
        )
    return result


def show_result(result: Mapping[str, Any]) -> None:
    """Print what the experiment found."""
    table = Table(
        "resource",
        "now",
        "blocks",
        "share of the time",
        "of first token",
        "between tokens",
        "twice as good",
        "without limit",
        box=None,
        header_style="dim",
    )
    for row in result["sensitivity"]:
        metrics = row["metrics"]
        time = metrics.get("time")
        table.add_row(
            escape(row["resource"]),
            amount_text(row["amount"], row["unit"]),
            str(row["blocks"]),
            *(share_text(metrics.get(name)) for name in ("time", "ttft", "itl")),
            *(saved_text(time, factor) for factor in ("2", "inf")),
        )
    if result["sensitivity"]:
        out.print(table)
    if result["slack"]:
        out.print(slack_table(result["slack"]))
        out.print(f"[dim]{escape(result['slack_statement'])}[/]")
    conclusion = result["conclusion"]
    word = "[bold green]confirmed[/]" if conclusion["confirmed"] else "[yellow]not settled[/]"
    out.print(f"{word}: [bold]{conclusion['class']}[/] - {escape(conclusion['statement'])}")
    if straggler := result.get("straggler"):
        out.print(f"[bold]straggler[/] - {escape(straggler['statement'])}")
    blocks = len(result["blocks"])
    out.print(
        f"[dim]{blocks} blocks in {result['experiment_seconds']:.0f} s, seed {result['seed']}; {result['stopped']}[/]"
    )
    for upgrade in result.get("upgrades") or []:
        for metric, found in upgrade["metrics"].items():
            predicted, real = (found[key]["saved"]["value"] for key in ("predicted", "real"))
            out.print(
                f"{escape(upgrade['resource'])} x{upgrade['factor']:g}, {metric}: predicted {predicted:.1%} saved, "
                f"really {real:.1%}, {found['error_points']:+.1f} points"
            )
    for problem in result["problems"]:
        out.print(f"[yellow]note:[/] {escape(problem)}")


def slack_table(ranks: Sequence[Mapping[str, Any]]) -> Table:
    """Return the ranks that were paused: for how much of the time, what that cost, and their slack."""
    table = Table("rank", "paused", "throughput lost", "slack", box=None, header_style="dim")
    for rank in ranks:
        table.add_row(
            escape(rank["rank"]),
            f"{rank['put_in']:.0%}",
            *(
                f"{found['value']:.{digits}%} [dim]({found['low']:.{digits}%} to {found['high']:.{digits}%})[/]"
                for found, digits in ((rank["lost"], 1), (rank["slack"], 0))
            ),
        )
    return table


def straggler_of(
    verdict: Mapping[str, Any], result: Mapping[str, Any], accelerators: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return what the ranks' slack makes of a run's straggler, with its node, card and cause; None without either."""
    where = _straggler_node(verdict)
    if where is None or not result["slack"]:
        return None
    kind = verdict.get("kind")
    late = next((rank["node"] for rank in result["slack"] if rank["rank"] == result["waited_for"]), None)
    name = f"{where} ({', '.join(part for part in (accelerators.get(where), kind) if part)})".replace(" ()", "")
    if late == where:
        words = f"confirmed: {name} is waited for, and its peers have slack"
    elif late is None:
        words = f"{name} is neither confirmed nor refuted: {result['slack_statement']}"
    else:
        words = f"refuted: not {name} is waited for but {late}"
    return {
        "node": where,
        "card": accelerators.get(where) or None,
        "kind": kind,
        "confirmed": None if late is None else late == where,
        "statement": words,
    }


def _straggler_node(verdict: Mapping[str, Any]) -> str | None:
    """Return the node that a verdict names as the straggler, or as what it may be."""
    if verdict["class"] == STRAGGLER:
        node: str | None = verdict["where"]["node"]
        return node
    if STRAGGLER not in (verdict.get("undecided") or ()):
        return None
    return next((each.get("node") for each in verdict.get("candidates") or () if each.get("class") == STRAGGLER), None)


def share_text(found: Mapping[str, Any] | None) -> str:
    """Return a share with its interval."""
    if found is None:
        return "-"
    share = found["share"]
    return f"{share['value']:.0%} [dim]({share['low']:.0%} to {share['high']:.0%})[/]"


def saved_text(found: Mapping[str, Any] | None, factor: str) -> str:
    """Return what an upgrade would save, with its interval."""
    if found is None:
        return "-"
    saved = found["upgrades"][factor]["saved"]
    return f"{saved['value']:+.0%} [dim]({saved['low']:+.0%} to {saved['high']:+.0%})[/]"


def amount_text(amount: float, unit: str) -> str:
    """Return how much there is of a resource."""
    if unit == "B/s":
        return rate_text(amount)
    if unit == "s":
        return duration_text(amount)
    return f"{amount:.3g} {unit}"
