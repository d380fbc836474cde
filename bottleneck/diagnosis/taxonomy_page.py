"""The page about every bottleneck that can be named, made from the taxonomy and the thresholds of the judge."""

from __future__ import annotations

import re

from bottleneck.diagnosis import evidence
from bottleneck.diagnosis.observations import engine_signals, link_signals, node_signals
from bottleneck.diagnosis.rules import between, front, judge, start, straggler
from bottleneck.diagnosis.taxonomy import CLASSES, BottleneckClass, fill

# A `cluster` command inside a sentence of advice: words up to a punctuation mark or a conjunction.
COMMAND = re.compile(r"\bcluster(?: (?!(?:and|or|then)\b)[\w{}./=-]*[\w{}=])+")
# What stands on the page where a verdict has a name or a number.
PLACEHOLDERS: dict[str, str | None] = {
    "node": "NODE",
    "link": "LINK",
    "max_num_seqs": "N",
    "more_seqs": "4N",
    "concurrency": "C",
}
# (value, what it decides)
THRESHOLDS: tuple[tuple[float, str], ...] = (
    (judge.LEAST_SCORE, "A cause with a smaller share of an output token's time is not called a bottleneck."),
    (judge.LEAST_CONFIDENCE, "With less confidence the answer is `inconclusive`."),
    (judge.TIE, "Two causes inside a step that are nearer than this share of the larger are `balanced`."),
    (front.IDLE, "Idle for this share of the time or more: `client_limited` is weighed."),
    (straggler.STANDS_OUT, "A straggler stands out from its peers by at least this share of the busy time."),
    (between.BUBBLE, "A bubble needs even the busiest stage to sleep this share of the busy time."),
    (start.STARTING, "Idle for this share of the time or more: storage may be what holds a start back."),
    (
        start.LEAST_SHARE,
        "Storage that is waited for, or read at its ceiling, for less of that time is no `weight_loading`.",
    ),
    (start.STARVED, "A start whose processes had no core for this share of it is `inconclusive`, not `balanced`."),
    (evidence.FRONT_EASY, "Above this share of a core the server's front process begins to count as full."),
    (node_signals.SLOWER, "A ceiling below this share of its peers' makes a node slow, if the intervals are apart."),
    (link_signals.FULL, "From this share of its capacity on a link counts as full."),
    (engine_signals.CACHE_FULL, "From this usage on the KV cache counts as full."),
    (engine_signals.CACHE_ROOMY, "Below this usage the KV cache counts as having room."),
)


def page() -> str:
    """Return `doc/explanation/bottlenecks.md`."""
    lines = [
        "# Every bottleneck that can be named",
        "",
        "Made from `bottleneck/diagnosis/` and its thresholds by `make reference`; do not edit it by hand.",
        "How the time is measured and weighed is in [ledger and verdict](verdict.md).",
        "",
        "In the titles and commands below `NODE` and `LINK` stand for the place that a verdict names, `N` for the",
        "present limit on sequences, `C` for a concurrency that would fill the engine.",
        "",
        "Some classes are limits that a healthy cluster has too: something always takes the most time. The others are",
        "faults: something is set or works wrong (`fault` in the JSON). The last column says on what a class's rule",
        "was tried at the best: `lab`, faults made on the embedded cluster; `recorded`, metrics of a real accelerator;",
        "`synthetic`, made-up signals alone, because no machine at hand can produce the real ones.",
        "",
        "| Class | Title | In short | Fault | Tried |",
        "|---|---|---|---|---|",
    ]
    for item in CLASSES.values():
        title, fault = fill(item.title, PLACEHOLDERS), "yes" if item.fault else "no"
        lines.append(f"| [`{item.name}`](#{item.name}) | {title} | {item.meaning} | {fault} | {item.tried} |")
    for item in CLASSES.values():
        lines += ["", *_section(item)]
    lines += [
        "",
        "## Thresholds",
        "",
        "Ratios from 0 to 1, constants of the judge. A run near one of them is a run to repeat.",
        "",
        "| Value | What it decides |",
        "|---|---|",
        *(f"| {value:g} | {meaning} |" for value, meaning in THRESHOLDS),
    ]
    return "\n".join(lines) + "\n"


def advice_commands(item: BottleneckClass) -> list[str]:
    """Return the `cluster` commands that a class advises, with placeholders for names and numbers."""
    return [found for line in item.advice for found in COMMAND.findall(fill(line, PLACEHOLDERS))]


def _section(item: BottleneckClass) -> list[str]:
    return [
        f"## `{item.name}`",
        "",
        f"**{fill(item.title, PLACEHOLDERS)}.** {item.meaning}"
        + (f" Of an engine that starts: {item.at_start[0].lower()}{item.at_start[1:]}" if item.at_start else ""),
        "",
        "What shows it:",
        "",
        *(f"- {_sentence(signal)}" for signal in item.signals),
        "",
        "What tells it from its neighbours:",
        "",
        *(f"- [`{name}`](#{name}): {_sentence(words, lower=True)}" for name, words in item.neighbours),
        "",
        "What to do:",
        "",
        *(f"- {_sentence(_marked(line))}" for line in item.advice),
    ]


def _marked(line: str) -> str:
    """Return a line of advice with its placeholders filled and its commands marked as code."""
    return COMMAND.sub(lambda found: f"`{found[0]}`", fill(line, PLACEHOLDERS))


def _sentence(text: str, lower: bool = False) -> str:
    text = text if lower else text[:1].upper() + text[1:]
    return text if text.endswith((".", "`")) else text + "."
