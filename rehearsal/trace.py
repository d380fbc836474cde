"""Read a boot's record from power-on to the first token, and write it as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A stretch of a boot.

    Attributes
    ----------
    end_seconds
        Since the boot began, which is the first thing that was seen of the node.
    """

    name: str
    seconds: float
    end_seconds: float


def stages(boot: Mapping[str, Any]) -> list[Stage]:
    """Return the stretches of a boot as `cluster boot watch --json` has it, from its beginning on."""
    began = boot.get("began", 0.0)
    return [
        Stage(each["stage"], each["seconds"], each["start"] + each["seconds"] - began)
        for each in boot.get("stages", [])
    ]


def total_seconds(found: Sequence[Stage]) -> float:
    """Return how long a boot took to the stage that it reached last, the wait for a deployment left out."""
    return found[-1].end_seconds - sum(stage.seconds for stage in found if stage.name == "idle")


def table(boots: Mapping[str, Sequence[Stage]]) -> str:
    """Return a Markdown table: a row a stage; of each node its length, and when it ended since the boot began."""
    names = list(dict.fromkeys(stage.name for found in boots.values() for stage in found))
    columns = [column for node in boots for column in (f"{node}: s", "at")]
    lines = [f"| stage | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name in names:
        cells = []
        for found in boots.values():
            stage = next((each for each in found if each.name == name), None)
            cells += [f"{stage.seconds:.1f}", f"{stage.end_seconds:.1f}"] if stage else ["-", "-"]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)
