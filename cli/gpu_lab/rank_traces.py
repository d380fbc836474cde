"""Reduce the traces of torch's profiler to what the judge reads: each rank's collectives, and its work between them.

A trace of two seconds is tens of MB; what is kept of it is a row for each collective. All times are microseconds since
the record's `base_seconds` (unix), so that the ranks of one host have one clock.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ENDING = ".pt.trace.json.gz"
# As vLLM calls a step in a trace: requests and tokens of prompts, then of answers.
_STEP = re.compile(r"execute_context_(\d+)\((\d+)\)_generation_(\d+)\((\d+)\)")
CARD_WORK = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
LISTED_NAMES, NAME_LENGTH = 40, 120
Interval = tuple[float, float]
Step = tuple[float, float, int, int, int, int]


class TraceError(Exception):
    """A trace that cannot be read; the text says which and what was expected."""


@dataclass(frozen=True)
class RankTrace:
    """Work and collectives of a rank between the profiler's start and its stop.

    Attributes
    ----------
    device
        `cards` where kernels of a card were seen, otherwise `processors`.
    names
        Those of collectives.
    collectives
        A row each, in order: number of its name, start, duration, seconds of other work since the collective before
        it, and how many kernels that was.
    work_after
        Microseconds of other work after the last collective.
    steps
        A row each: start, duration, requests and tokens of prompts, requests and tokens of answers.
    kernels
        What else took most time: name, count, microseconds.
    """

    rank: int
    host: str
    device: str
    names: tuple[str, ...]
    collectives: tuple[tuple[int, float, float, float, int], ...]
    work_after: float = 0.0
    steps: tuple[Step, ...] = ()
    kernels: tuple[tuple[str, int, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "rank": self.rank,
            "host": self.host,
            "device": self.device,
            "names": list(self.names),
            "collectives": [list(row) for row in self.collectives],
            "work_after": self.work_after,
            "steps": [list(row) for row in self.steps],
            "kernels": [list(row) for row in self.kernels],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RankTrace:
        """Read what `to_json` returned."""
        rows = {key: tuple(tuple(row) for row in document[key]) for key in ("collectives", "steps", "kernels")}
        return cls(
            int(document["rank"]),
            str(document["host"]),
            str(document["device"]),
            tuple(document["names"]),
            work_after=float(document["work_after"]),
            **rows,
        )


def reduced(path: Path, base_seconds: float) -> RankTrace:
    """Read a trace as the profiler wrote it, and reduce it.

    Raises
    ------
    TraceError
        When it is no whole trace, or has no collective in it.
    """
    try:
        document = json.loads(gzip.decompress(path.read_bytes()))
        events = [event for event in document["traceEvents"] if event.get("ph") == "X"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path}: {type(error).__name__}: {error}; expected a trace of torch's profiler") from error
    return reduced_events(document, events, base_seconds, path)


def reduced_events(
    document: Mapping[str, Any], events: Sequence[Mapping[str, Any]], base_seconds: float, path: Path
) -> RankTrace:
    """Reduce the complete events of a trace's document."""
    # Whole numbers of nanoseconds first: what is left fits a float to a part of a microsecond.
    offset = (int(document.get("baseTimeNanoseconds", 0)) - round(base_seconds * 1e9)) / 1e3
    on_card = any(event.get("cat") == "kernel" for event in events)
    collectives, work = [], []
    steps: dict[str, list[Step]] = {"gpu_user_annotation": [], "user_annotation": []}
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in events:
        category, name = str(event.get("cat")), str(event.get("name"))
        start, duration = float(event["ts"]) + offset, float(event.get("dur", 0.0))
        if _is_collective(category, name, on_card):
            collectives.append((start, duration, name))
        elif category in CARD_WORK if on_card else category == "cpu_op":
            work.append((start, start + duration))
            counted = totals[name[:NAME_LENGTH]]
            counted[0], counted[1] = counted[0] + 1, counted[1] + duration
        elif category in steps and (found := _STEP.match(name)):
            context, context_tokens, answers, answer_tokens = map(int, found.groups())
            steps[category].append(
                (round(start, 1), round(duration, 1), context, context_tokens, answers, answer_tokens)
            )
    if not collectives:
        raise TraceError(f"{path}: no collective among {len(events)} events; expected names with nccl or gloo: in them")
    collectives.sort()
    names = tuple(dict.fromkeys(name for _, _, name in collectives))
    gaps = _work_before([(start, start + duration) for start, duration, _ in collectives], sorted(work))
    rows = tuple(
        (names.index(name), round(start, 1), round(duration, 1), round(busy, 1), count)
        for (start, duration, name), (busy, count) in zip(collectives, gaps, strict=False)
    )
    most = sorted(
        ((name, int(count), round(took, 1)) for name, (count, took) in totals.items()), key=lambda row: -row[2]
    )
    return RankTrace(
        rank_of(document, path),
        str(document.get("host_name", "")),
        "cards" if on_card else "processors",
        tuple(name[:NAME_LENGTH] for name in names),
        rows,
        round(gaps[-1][0], 1),
        # Its kernels on the card say when a step was there; where they are not marked, the process that started them.
        tuple(sorted(steps["gpu_user_annotation"] or steps["user_annotation"])),
        tuple(most[:LISTED_NAMES]),
    )


def rank_of(document: Mapping[str, Any], path: Path) -> int:
    """Return the rank whose trace it is: as torch says, or as the file is called.

    Raises
    ------
    TraceError
        When neither says it.
    """
    stated = (document.get("distributedInfo") or {}).get("rank")
    found = re.search(r"rank[_-]?(\d+)", path.name)
    if stated is None and found is None:
        raise TraceError(f"{path}: no rank in distributedInfo or in its name; expected one, such as rank0")
    return int(stated if stated is not None else found[1])  # type: ignore[index]


def _is_collective(category: str, name: str, on_card: bool) -> bool:
    if on_card:
        return category == "kernel" and "nccl" in name.lower()
    return category == "user_annotation" and name.startswith("gloo:")


def _work_before(collectives: Sequence[Interval], work: Sequence[Interval]) -> list[tuple[float, int]]:
    """Return (time, number) of work before each collective, outside of all collectives, and after the last.

    Overlapping work counts once: a card has several streams, and operators call others.
    """
    if not work:
        return [(0.0, 0)] * (len(collectives) + 1)
    merged = _merged(work)
    points = np.array(merged).ravel()
    # How much work there was up to each of the points: between them it grows evenly.
    spent = np.concatenate([[0.0], np.repeat(np.cumsum(points[1::2] - points[::2]), 2)[:-1]])
    begun = np.array([start for start, _ in work])
    gap_ends = np.array([*(start for start, _ in collectives), np.inf])
    gap_starts = np.concatenate([[-np.inf], np.maximum.accumulate([end for _, end in collectives])])
    gap_starts = np.minimum(gap_starts, gap_ends)
    busy = np.interp(gap_ends, points, spent) - np.interp(gap_starts, points, spent)
    counts = np.searchsorted(begun, gap_ends) - np.searchsorted(begun, gap_starts)
    return [(float(each), int(count)) for each, count in zip(busy, counts, strict=True)]


def _merged(work: Sequence[Interval]) -> list[Interval]:
    found: list[Interval] = []
    for start, end in work:
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found
