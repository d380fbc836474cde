"""Make the page about every bottleneck that can be named, from the causes and the thresholds."""

from __future__ import annotations

import re

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes import CAUSES, Cause, fill

# A `cluster` command inside a sentence of advice: words up to a punctuation mark or a conjunction.
COMMAND = re.compile(r"\bcluster(?: (?!(?:and|or|then)\b)[\w{}./=-]*[\w{}=])+")
# What stands on the page where a verdict has a name or a number.
PLACEHOLDERS: dict[str, str | None] = {
    "node": "NODE",
    "link": "LINK",
    "max_num_seqs": "N",
    "more_seqs": "4N",
    "max_num_batched_tokens": "B",
    "more_tokens": "4B",
    "concurrency": "C",
}


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
    for item in CAUSES.values():
        title, fault = fill(item.title, PLACEHOLDERS), "yes" if item.fault else "no"
        lines.append(f"| [`{item.name}`](#{item.name}) | {title} | {item.meaning} | {fault} | {item.tried} |")
    for item in CAUSES.values():
        lines += ["", *_section(item)]
    lines += [
        "",
        "## Thresholds",
        "",
        "Every number of the diagnosis. A run near one of them is a run to repeat.",
        "",
        "| Name | Value | Unit | What it decides | Source | Set on |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{name}` | {number:g} | {number.unit} | {number.decides} | {number.source} | {number.set_on} |"
            for name, number in thresholds.all_numbers().items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _section(item: Cause) -> list[str]:
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
        "How it differs from similar causes:",
        "",
        *(f"- [`{name}`](#{name}): {_sentence(words, lower=True)}" for name, words in item.similar),
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
