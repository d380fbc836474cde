"""Predict what taking a throttle away gives, take it away, compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import typer

from cli.causal import experiment
from cli.control import Control
from cli.verify.faults import FaultError, injected
from cli.verify.strengths import LINK, MEGABIT

BUDGET_SECONDS = 90.0
ROUNDS = 3
GOAL_POINTS = 5.0
# Short bursts, so that there are many of them: by their prompts, and by their answers.
LOADS: Mapping[str, Mapping[str, Any]] = {
    "normal": {"concurrency": 2, "input_tokens": 128, "output_tokens": 12},
    "reading": {"concurrency": 1, "input_tokens": 384, "output_tokens": 2},
    # Alone: beside another request, one that comes a moment too late for a long step adds a whole step to its burst.
    "writing": {"concurrency": 1, "input_tokens": 16, "output_tokens": 24},
}


@dataclass(frozen=True)
class Upgrade:
    """One throttled cluster and the upgrade that mends it, wholly or in part."""

    deployment: str
    load: str
    injections: tuple[Mapping[str, object], ...]
    resource: str
    factor: float
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The upgrade's name, unique among them."""
        put = ",".join("-".join(str(value) for value in each.values()) for each in self.injections)
        return f"{self.deployment}/{self.load}/{put}/{self.resource}x{self.factor:.3g}"

    def settings(self, seed: int) -> dict[str, Any]:
        """Return the experiment's arguments."""
        return {
            "load": {**LOADS[self.load], "seed": seed},
            "resources": [self.resource, *self.also],
            "upgrades": {self.resource: self.factor},
            "upgrade_rounds": ROUNDS,
        }


def _link(deployment: str, load: str, megabits: float, factor: float) -> Upgrade:
    injection = {"kind": "throttle", "link": LINK, "bytes_per_second": megabits * MEGABIT}
    return Upgrade(deployment, load, (injection,), f"link_rate:{LINK}", factor)


def _delay(load: str, milliseconds: float, factor: float) -> Upgrade:
    injection = {"kind": "delay", "link": LINK, "seconds": milliseconds / 1e3}
    return Upgrade("tp2", load, (injection,), f"link_latency:{LINK}", factor)


def _node(deployment: str, node: str, peer: str, cores: float) -> Upgrade:
    injection = {"kind": "slow", "node": node, "cores": cores}
    return Upgrade(deployment, "normal", (injection,), f"cpu:{node}", 1 / cores, (f"cpu:{peer}",))


UPGRADES = (
    # To the 8 Gbit/s of the profile: the throttle is gone.
    *(_link("tp2", "normal", megabits, 8000 / megabits) for megabits in (20, 40, 80)),
    *(_link("tp2", "reading", megabits, 8000 / megabits) for megabits in (30, 60)),
    _link("tp2", "normal", 20, 2),
    _link("tp2", "normal", 40, 4),
    *(_delay("writing", milliseconds, 10) for milliseconds in (5, 10, 20)),
    _node("tp2", "node1", "node0", 0.35),
    _node("tp2", "node0", "node1", 0.5),
    Upgrade(
        "tp2", "normal", tuple({"kind": "slow", "node": node, "cores": 0.5} for node in ("node0", "node1")), "cpu", 2.0
    ),
    *(_link("pp2", "normal", megabits, 8000 / megabits) for megabits in (3, 8)),
    _node("replicas", "node1", "node0", 0.4),
)


def made(control: Control, case: Upgrade, seed: int) -> dict[str, Any]:
    """Predict one upgrade, make it, and return what came: a line of the record."""
    try:
        with injected(control, case.injections):
            result = experiment(control, BUDGET_SECONDS, case.settings(seed))
    except (FaultError, typer.Exit) as error:
        return {"case": case.name, "factor": case.factor, "metrics": {}, "error": str(error) or "the command ended"}
    (upgrade,) = result["upgrades"]
    return {
        "case": case.name,
        "factor": case.factor,
        "metrics": upgrade["metrics"],
        "seed": seed,
        # What it rests on, in the order in which it ran; those of the upgrade that was made come last.
        "bursts": [
            [burst["resource"], burst["slowdown"], burst["time_seconds"]]
            for burst in (*result["blocks"], *upgrade["bursts"])
        ],
        "seconds": result["seconds"],
        "error": "",
    }


def line_text(line: Mapping[str, Any]) -> str:
    """Return a line of the record in words."""
    if line["error"]:
        return f"[red]not run[/]: {line['case']}: {line['error']}"
    found = line["metrics"].get("time")
    return f"{line['case']}: {found['error_points']:+.1f} points" if found else f"{line['case']}: no estimate"


def summary(lines: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return how far predictions were from what came, over the cases that were run."""
    rows = [line for line in lines.values() if not line.get("error")]
    errors = {
        metric: [abs(row["metrics"][metric]["error_points"]) for row in rows if metric in row["metrics"]]
        for metric in ("time", "ttft", "itl")
    }
    covered = [
        row["metrics"]["time"]["predicted"]["saved"]["low"]
        <= row["metrics"]["time"]["real"]["saved"]["value"]
        <= row["metrics"]["time"]["predicted"]["saved"]["high"]
        for row in rows
        if "time" in row["metrics"]
    ]
    return {
        "cases": len(rows),
        "median_error_points": {metric: float(np.median(each)) for metric, each in errors.items() if each},
        "largest_error_points": {metric: max(each) for metric, each in errors.items() if each},
        "inside_interval": sum(covered),
        "goal_points": GOAL_POINTS,
        "errors": {case: line["error"] for case, line in lines.items() if line.get("error")},
        "rows": rows,
    }


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the comparison as a table in Markdown."""
    lines = ["| case | upgrade | predicted | real | error, points |", "|---|---|---|---|---|"]
    for row in figures["rows"]:
        found = row["metrics"].get("time")
        if found is None:
            continue
        predicted, real = found["predicted"]["saved"], found["real"]["saved"]
        lines.append(
            f"| {row['case']} | x{row['factor']:.3g} | {_share(predicted)} | {_share(real)} "
            f"| {found['error_points']:+.1f} |"
        )
    return "\n".join(lines) + "\n"


def _share(found: Mapping[str, float]) -> str:
    return f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})"
