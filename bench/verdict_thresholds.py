"""Move every threshold of the verdict by a fifth, up and down, and count the recorded verdicts that change.

    python bench/verdict_thresholds.py --write

Writes the table of doc/reference/verdict-accuracy.md; without `--write` it goes to stdout. What is worked out before a
number is read is kept, so that all runs of the record take about ten minutes of one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.verdict_tables import PAGE, RECORD, filled  # noqa: E402 - the path comes first
from bottleneck.diagnosis import thresholds  # noqa: E402
from bottleneck.diagnosis.arbitration import arbitrate  # noqa: E402
from bottleneck.diagnosis.attribution.build import Attribution, attribute  # noqa: E402
from bottleneck.diagnosis.observations.gather import gather  # noqa: E402
from bottleneck.diagnosis.observations.observed import Observations  # noqa: E402
from bottleneck.runs.run import Run  # noqa: E402
from bottleneck.runs.run_folder import load_run  # noqa: E402
from cli.verify import archive  # noqa: E402

STEP = 0.2
"""How far each number is moved, as a share of it."""

Named = tuple[str, str | None, str | None]
Change = tuple[str, float]


@contextmanager
def moved(name: str, factor: float) -> Iterator[None]:
    """Multiply one threshold by a factor for as long as the block lasts; a share stays one."""
    old = getattr(thresholds, name)
    value = float(old) * factor
    setattr(thresholds, name, thresholds.replaced(name, min(value, 1.0) if old <= 1.0 else value))
    try:
        yield
    finally:
        setattr(thresholds, name, old)


class Watched(ModuleType):
    """The module of thresholds, noting which of them are read."""

    def __getattribute__(self, name: str) -> object:
        """Return a threshold, and note its name."""
        if name.isupper():
            READ.add(name)
        return super().__getattribute__(name)


READ: set[str] = set()


def named(seen: Observations, attribution: Attribution) -> Named:
    """Return the class and the place that are named."""
    decision = arbitrate(seen, attribution)
    return decision.cause.name, decision.finding.node, decision.finding.link


def named_otherwise(run: Run) -> set[Change]:
    """Return the thresholds and factors by which a run is named otherwise.

    A number that is not read changes nothing, and one that is read late changes nothing of what was worked out before.
    """
    read = []
    READ.clear()
    seen = gather(run)
    read.append(frozenset(READ))
    READ.clear()
    attribution = attribute(seen, run.interval)
    read.append(frozenset(READ))
    READ.clear()
    usual = named(seen, attribution)
    read.append(frozenset(READ))
    names, found = list(thresholds.all_numbers()), set()
    for name in names:
        for factor in (1.0 - STEP, 1.0 + STEP):
            with moved(name, factor):
                if name in read[0]:
                    again = gather(run)
                    now = named(again, attribute(again, run.interval))
                elif name in read[1]:
                    now = named(seen, attribute(seen, run.interval))
                else:
                    now = named(seen, attribution) if name in read[2] else usual
            if now != usual:
                found.add((name, factor))
    return found


def changes(asked: tuple[Path, int]) -> tuple[int, dict[Change, int]]:
    """Return how many runs of an archive were judged, and by threshold and factor how many were named otherwise."""
    path, every = asked
    thresholds.__class__ = Watched
    counts = {(name, factor): 0 for name in thresholds.all_numbers() for factor in (1.0 - STEP, 1.0 + STEP)}
    with archive.unpacked(path) as folders:
        chosen = sorted(folders)[::every]
        for folder in chosen:
            for change in named_otherwise(load_run(folder)):
                counts[change] += 1
    return len(chosen), counts


def table(results: Sequence[tuple[int, dict[Change, int]]]) -> str:
    """Return the table, the thresholds on which most hangs first."""
    whole = sum(count for count, _ in results)
    rows = []
    for name, number in thresholds.all_numbers().items():
        less, more = (sum(counts[name, factor] for _, counts in results) for factor in (1.0 - STEP, 1.0 + STEP))
        why = (
            ""
            if less or more
            else thresholds.STAYS.get(
                name, "**nothing hangs on it and no reason is given: delete it, or say why in `STAYS`**"
            )
        )
        rows.append((max(less, more), f"| `{name}` | {float(number):g} | {number.unit} | {less} | {more} | {why} |"))
    rows.sort(key=lambda row: -row[0])
    head = (
        f"{whole} recorded runs; {len(rows)} thresholds, {sum(not largest for largest, _ in rows)} of them with no run "
        f"that changes. What each decides: `bottleneck/diagnosis/thresholds.py`.\n\n"
        f"| threshold | value | unit | named otherwise at {1 - STEP:.0%} | at {1 + STEP:.0%} | why it stays |\n"
        "|---|---|---|---|---|---|\n"
    )
    return head + "".join(f"{row}\n" for _, row in rows)


def main() -> None:
    """Move each number, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", nargs="?", type=Path, default=RECORD, help="folder of the record")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th run")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    results = []
    places = sorted((arguments.record / "runs").glob("*.tar.xz"))
    with get_context("spawn").Pool() as pool:
        for found in pool.imap_unordered(changes, [(place, arguments.every) for place in places]):
            results.append(found)
            print(f"{len(results)} of {len(places)} archives", file=sys.stderr, flush=True)
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(filled(page, {"thresholds": table(results)}), encoding="utf-8")
    else:
        print(table(results))


if __name__ == "__main__":
    main()
