"""Judge the ledger by a trace: waiting and transfer inside collectives, as both ranks' profilers saw them.

    python -m bench.trace_judge gpu-lab/traces/*.json.xz

A record is what `cluster gpu-lab --trace` leaves. The k-th collective of one rank is the k-th of every other: a rank
waits in it from its own entry until the last entry, and from there to its end the collective moves bytes. What is
neither in a collective nor in other work is idle: the host. Beside it stands what the ledger of the same run says that
the link took of an output token's time; where the run's archive lies in `runs` beside the record's folder, the ledger
is worked out anew by the code at hand.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bottleneck.diagnosis.attribution.ledger import Ledger  # noqa: E402 - the path comes first
from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL  # noqa: E402
from bottleneck.diagnosis.verdict import Verdict, analyse  # noqa: E402
from bottleneck.runs.run_folder import load_run  # noqa: E402
from cli.gpu_lab.rank_traces import RankTrace  # noqa: E402
from cli.verify import archive  # noqa: E402

WITHIN = 0.05
LINK = ("link_transfer", "link_latency", "message_handling", "message_wait")
# Every rank leaves these at the same moment, but for one message.
SYMMETRIC = ("allreduce", "all_reduce", "allgather", "all_gather", "reducescatter", "reduce_scatter")
# What one rank sends the other receives: one passing to the next stage.
_PASSING = re.compile("send|recv", re.IGNORECASE)
# A rank whose peers wait for it so much longer than it waits for them is late.
LATE_SHARE = 0.1


class JudgeError(Exception):
    """A record that cannot be judged; the text says why."""


@dataclass(frozen=True)
class Shares:
    """A rank's time as shares of the window; together 1."""

    work: float
    transfer: float
    waiting: float
    idle: float


@dataclass(frozen=True)
class Judged:
    """Answer of a record's traces.

    Attributes
    ----------
    seconds
        Length of the window.
    collectives
        How many each rank took part in.
    ranks
        Shares of each rank, in order.
    clock_offset
        Seconds by which the second rank's clock was ahead of the first's; 0 where clocks are one.
    kinds
        Kind of steps -> (transfer, waiting), as shares of the whole window, mean over ranks.
    is_pipeline
        Whether all that ranks exchanged were messages to the next stage.
    """

    seconds: float
    collectives: int
    ranks: tuple[Shares, ...]
    clock_offset: float
    kinds: Mapping[str, tuple[float, float]]
    is_pipeline: bool = False

    @property
    def link(self) -> float:
        """The share that is held against the ledger's: of a pipeline, without the waiting for the stage before."""
        return self.mean(lambda rank: rank.transfer + (0.0 if self.is_pipeline else rank.waiting))

    def mean(self, part: Callable[[Shares], float]) -> float:
        """Return a share, mean over ranks."""
        return sum(map(part, self.ranks)) / len(self.ranks)

    @property
    def late(self) -> int | None:
        """The rank for which the others wait, if they do; in a pipeline a stage waits for the one before it anyway."""
        if self.is_pipeline:
            return None
        waiting = [rank.waiting for rank in self.ranks]
        least = int(np.argmin(waiting))
        return least if max(waiting) - waiting[least] >= LATE_SHARE else None


def judged(ranks: Sequence[RankTrace], window: tuple[float, float] | None = None) -> Judged:
    """Judge the traces of all ranks.

    Parameters
    ----------
    window
        Microseconds on the traces' clock: what lies outside is left out. None is from the first collective to the last.

    Raises
    ------
    JudgeError
        When ranks have other collectives than the first, or there is none in the window.
    """
    ranks = sorted(ranks, key=lambda rank: rank.rank)
    kinds = [[_PASSING.sub("pass", rank.names[int(row[0])]) for row in rank.collectives] for rank in ranks]
    for rank, names in zip(ranks, kinds, strict=True):
        if names != kinds[0]:
            raise JudgeError(
                f"rank {rank.rank} has {len(names)} collectives and rank {ranks[0].rank} {len(kinds[0])}, or in another"
                " order; expected the same: was a load under way when the profiler was started?"
            )
    starts, lengths, work = (np.array([[row[i] for row in rank.collectives] for rank in ranks]) for i in (1, 2, 3))
    offset = _clock_offset(ranks, starts + lengths, kinds[0])
    starts = starts - offset[:, None]
    # What was sent has arrived when the receiver goes on; the sender's part may stay open until its next message.
    passing = np.array(["pass" in name for name in kinds[0]])
    ends = np.where(passing, (starts + lengths).min(axis=0), starts + lengths)
    lengths = np.clip(ends - starts, 0.0, None)
    entries = starts.max(axis=0)
    first, last = window or (float(starts.min()), float(ends.max()))
    # A collective belongs to the window with all its ranks, and so does the work that led to it.
    inside = (starts.min(axis=0) >= first) & (ends.max(axis=0) <= last)
    if not inside.any():
        raise JudgeError(f"no collective between {first / 1e6:.3f} and {last / 1e6:.3f} s; expected those of the load")
    waiting = np.clip(np.minimum(entries, ends) - starts, 0.0, None)
    transfer = lengths - waiting
    length = last - first
    found = []
    for number in range(len(ranks)):
        busy, moving, late = (float(each[number][inside].sum()) / length for each in (work, transfer, waiting))
        # Collectives of several streams may overlap.
        found.append(Shares(busy, moving, late, max(0.0, 1.0 - busy - moving - late)))
    steps = _kinds_of_collectives(ranks[0], starts[0])
    by_kind = {
        kind: (
            float(transfer[:, inside & (steps == kind)].sum(axis=1).mean()) / length,
            float(waiting[:, inside & (steps == kind)].sum(axis=1).mean()) / length,
        )
        for kind in sorted(set(steps[inside]))
    }
    return Judged(length / 1e6, int(inside.sum()), tuple(found), float(offset[-1]) / 1e6, by_kind, bool(passing.all()))


def _clock_offset(ranks: Sequence[RankTrace], ends: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return how far each rank's clock is ahead of the first's, in microseconds.

    Processes of one host have one clock. What a card's kernels are stamped with is fitted to it by each process for
    itself; all leave an all-reduce together, so the median of their ends' differences is what the fits differ by.
    """
    chosen = np.array([any(word in name.lower() for word in SYMMETRIC) for name in names])
    if ranks[0].device != "cards" or not chosen.any():
        return np.zeros(len(ranks))
    return np.asarray(np.median(ends[:, chosen] - ends[0, chosen], axis=1))


def _kinds_of_collectives(rank: RankTrace, starts: np.ndarray) -> np.ndarray:
    """Return the kind of step that each collective is of: that of the last that began before it."""
    if not rank.steps:
        return np.full(len(starts), DECODE, dtype=object)
    begun = np.array([step[0] for step in rank.steps])
    kinds = np.array([PREFILL if step[3] else DECODE for step in rank.steps], dtype=object)
    return np.asarray(kinds[np.clip(np.searchsorted(begun, starts, side="right") - 1, 0, None)])


def link_share(ledger: Ledger) -> float:
    """Return what the link takes of an output token's time, as the ledger says."""
    return ledger.of(*LINK)


def steps_share(ledger: Ledger) -> float:
    """Return what the link takes of the steps' time: a trace has steps alone, and no wait of a request for one."""
    in_steps = ledger.phase(PREFILL) + ledger.phase(DECODE)
    return link_share(ledger) / in_steps if in_steps else 0.0


def read(path: Path) -> dict[str, Any]:
    """Return a record, with verdicts by the code at hand where its runs are there."""
    document: dict[str, Any] = json.loads(lzma.decompress(path.read_bytes()))
    document["verdicts"] = {which: Verdict.from_json(verdict) for which, verdict in document["verdicts"].items()}
    for which, run in document["runs"].items():
        packed = path.parent.parent / "runs" / f"{run}.tar.xz"
        if packed.exists():
            with archive.unpacked(packed, frozenset({run})) as folders:
                document["verdicts"][which] = analyse(load_run(folders[0]))
    return document


def judge_record(document: Mapping[str, Any]) -> Judged:
    """Judge a record that was read, over the time of its load."""
    base = float(document["base_seconds"])
    first, last = ((float(moment) - base) * 1e6 for moment in document["window"])
    return judged([RankTrace.from_json(rank) for rank in document["ranks"]], (first, last))


HEADER = (
    "| trace | collectives | rank: work, transfer, waiting, idle | collectives take |"
    " ledger: link, of steps' time (of a token's: traced; untraced) | difference (to transfer alone) |"
    " within 5 points | late rank |"
    " verdict |"
)


def row(document: Mapping[str, Any], found: Judged) -> str:
    """Return a line of the table, in Markdown."""
    nodes, verdicts = document["nodes"], document["verdicts"]
    shares = "; ".join(
        f"{nodes[number]}: {rank.work:.0%}, {rank.transfer:.0%}, {rank.waiting:.0%}, {rank.idle:.0%}"
        for number, rank in enumerate(found.ranks)
    )
    transfer, waiting = found.mean(lambda rank: rank.transfer), found.mean(lambda rank: rank.waiting)
    ledger = link_share(verdicts["traced"].ledger)
    steps = steps_share(verdicts["traced"].ledger)
    difference = steps - found.link
    late = "none" if found.late is None else nodes[found.late]
    verdict = verdicts["traced"]
    named = verdict.name + (f" on {verdict.where['node']}" if verdict.where.get("node") else "")
    return (
        f"| {document['trace']} | {found.collectives} | {shares} | {transfer + waiting:.1%}, waiting {waiting:.1%} |"
        f" {steps:.1%} ({ledger:.1%}; {link_share(verdicts['plain'].ledger):.1%}) | {100 * difference:+.1f}"
        f" ({100 * (steps - transfer):+.1f}) points |"
        f" {'yes' if abs(difference) <= WITHIN else 'no'} | {late} | {named} |"
    )


def details(document: Mapping[str, Any], found: Judged) -> str:
    """Return what the table has no room for."""
    ledger, costs = document["verdicts"]["traced"].ledger, document["seconds_per_token"]
    lines = [
        f"{document['trace']}: {found.seconds:.2f} s of {document['deployment']}; clocks of the ranks differed by"
        f" {1e6 * found.clock_offset:+.1f} us"
    ]
    if all(costs.values()):
        lines.append(f"  an output token took {costs['traced'] / costs['plain'] - 1:+.0%} of time with the profiler")
    for kind, (transfer, waiting) in found.kinds.items():
        lines.append(
            f"  {kind} steps: transfer {transfer:.1%}, waiting {waiting:.1%}; ledger {ledger.of_kind(kind, *LINK):.1%}"
        )
    lines += [f"  ledger: {entry.phase} {entry.resource} {entry.share:.1%}" for entry in ledger.entries]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge records; the status is 1 when one cannot be judged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+", help="files of traces/ in a folder of records")
    parser.add_argument("--details", action="store_true", help="also by kind of step, and the whole ledger")
    asked = parser.parse_args(arguments)
    rows, texts, status = [], [], 0
    for path in asked.records:
        document = read(path)
        try:
            found = judge_record(document)
        except JudgeError as error:
            print(f"{path}: {error}", file=sys.stderr)
            status = 1
            continue
        rows.append(row(document, found))
        texts.append(details(document, found))
    print("\n".join([HEADER, "|---" * (HEADER.count("|") - 1) + "|", *rows]))
    if asked.details:
        print("\n" + "\n".join(texts))
    return status


if __name__ == "__main__":
    sys.exit(main())
