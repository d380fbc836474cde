"""Write the page: predicted against measured over links, and where tensor and pipeline parallelism cross."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.links.campaign import RANKS, rate_name
from bench.links.chart import Panel
from bench.links.predictions import ALL, FIRST, STEP, Predictor, Row, errors, seconds_of, split_over
from bottleneck.performance.calibration import CALIBRATION_POINTS, Calibration, uncalibrated
from bottleneck.performance.collectives import Link
from bottleneck.performance.datasheets import DATASHEETS
from bottleneck.performance.efficiencies import efficiency
from bottleneck.performance.messages import allreduces
from bottleneck.performance.served import Accelerator, Served
from bottleneck.performance.workpoints import WorkPoints
from bottleneck.prediction.break_even import BreakEven, break_even
from bottleneck.prediction.deployment import Scenario

COMMAND = "python -m bench.links --write"
PICTURE = "what-if-links.svg"
PARALLEL = {"tensor": "TP=2", "pipeline": "PP=2"}
TARGET = (0.05, 0.1)
CHART_RATES = (1e8, 2e8, 5e8, 1e9, 2e9, 5e9, 1e10, 2e10, 4e10)
CABLES = (1e9, 1e10, 2e10)
# The slower of the two rates at which a link of USB4 comes up; the sockets of the probed link carry no more than this.
USB4 = 2e10
# Clients, tokens of a prompt, tokens of an answer.
ALONE, EIGHT = (1, 512, 96), (8, 512, 96)


@dataclass(frozen=True)
class Machine:
    """A card whose pair is asked about, and what is known of it."""

    name: str
    known: Calibration
    backend: str
    latencies: tuple[tuple[str, float], ...]


def accuracy(rows: Sequence[Row]) -> list[str]:
    """Return the table of errors by what was predicted, and the target."""
    lines = [
        "| of | figures | from one card: median | p90 | in the 90 % interval | figures | from the pair: median | p90 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds: list[tuple[str, list[Row]]] = [
        (f"{PARALLEL[parallel]}, {what}", [r for r in rows if (r.what, r.measured.parallel) == (what, parallel)])
        for parallel in PARALLEL
        for what in (STEP, FIRST, ALL)
    ]
    kinds += [(f"**{PARALLEL[each]}**", [r for r in rows if r.measured.parallel == each]) for each in PARALLEL]
    for name, chosen in [*kinds, ("**all**", list(rows))]:
        if not chosen:
            continue
        card, pair = errors(chosen), errors(chosen, pair=True)
        known = [r for r in chosen if r.interval is not None]
        inside = sum(r.interval.low <= r.seconds <= r.interval.high for r in known if r.interval is not None)
        share = f"{inside} of {len(known)}" if known else ""
        of_pair = f"{pair[2]} | {_percent(pair[0])} | {_percent(pair[1])}" if pair[2] else "0 |  | "
        lines.append(f"| {name} | {card[2]} | {_percent(card[0])} | {_percent(card[1])} | {share} | {of_pair} |")
    return lines


def table(rows: Sequence[Row]) -> list[str]:
    """Return every figure, predicted and measured."""
    lines = [
        "| split | link | load | of | measured | from one card | error | from the pair | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        at = row.measured
        link = rate_name(at.bits_per_second) + (f" + {1e6 * at.delay_seconds:g} us" if at.delay_seconds else "")
        load = f"{at.clients} x {at.input_tokens}+{at.output_tokens}"
        pair = f"{_time(row.from_pair)} | {row.pair_error:+.1%}" if row.from_pair and row.pair_error else " | "
        lines.append(
            f"| {PARALLEL[at.parallel]} | {link} | {load} | {row.what} | {_time(row.seconds)} | "
            f"{_time(row.predicted)} | {row.error:+.1%} | {pair} |"
        )
    return lines


def panels(predictor: Predictor, known: Mapping[str, Calibration]) -> list[Panel]:
    """Return the chart's panels: one client's tokens, its first token, eight clients' answers; over a cable's rate."""
    found = []
    for title, load, what in (
        ("1 client: between tokens", ALONE, STEP),
        ("1 client, 512 tokens: first token", ALONE, FIRST),
        ("8 clients, 512+96: all answers", EIGHT, ALL),
    ):
        lines = {
            parallel: [
                (rate, _seconds(predictor, known[parallel], parallel, predictor.campaign.cable(rate), load, what))
                for rate in CHART_RATES
            ]
            for parallel in PARALLEL
        }
        found.append(Panel(title, lines))
    return found


def _seconds(
    predictor: Predictor, known: Calibration, parallel: str, link: Link, load: tuple[int, int, int], what: str
) -> float:
    return seconds_of(what, predictor.seconds(known, parallel, link, load), load[2])


def machines(predictor: Predictor) -> list[Machine]:
    """Return the measured card, and the two of the clusters that this project is for, by their datasheets."""
    probed = predictor.campaign.link.latency_seconds
    published = efficiency("link_latency_seconds").value
    both = (("the probed link", probed), ("thunderbolt_net, published", published))
    own = predictor.card_calibrations[len(predictor.card_calibrations) // 2]
    found = [Machine(predictor.campaign.card.name, own, predictor.campaign.backend, both)]
    for key, backend in (("arc-a770", "xccl"), ("ryzen-ai-max", "nccl")):
        accelerator = DATASHEETS[key].accelerator()
        found.append(Machine(accelerator.name, uncalibrated(predictor.served, accelerator, 96), backend, both))
    return found


def crossing(machine: Machine, link: Link, load: tuple[int, int, int]) -> BreakEven:
    """Return the link where both decode equally fast on a machine, from a link that it is seen over."""
    served, accelerator = machine.known.served, machine.known.accelerator
    scenario = Scenario(served, accelerator, split_over("tensor", link), 1, *load)
    return break_even(scenario, machine.known.mean, RANKS)


def prefill(served: Served, accelerator: Accelerator, known: Calibration, link: Link, parallel: str) -> float:
    """Return the seconds until a prompt of 512 tokens has its first token."""
    at = WorkPoints.of(served, accelerator, [ALONE[:2]], ALONE[2], split_over(parallel, link))
    return float(at.seconds(known.mean)[0])


def break_evens(predictor: Predictor) -> list[str]:
    """Return the tables of TP against PP on three machines."""
    count = allreduces(predictor.served.shape, split_over("tensor", predictor.campaign.link)).count
    lines = [
        f"An all-reduce of one token (12 KiB, {count} of them a step) takes two trips of the one-way latency and its "
        'bytes. Below the latency, at a cable\'s rate, TP=2 has less time between tokens than PP=2; "never" is where '
        "even a cable without latency does not let it.",
        "",
        "| card | clients | cable | TP=2 is faster below: one way | all-reduce of a token, then | at the probed "
        f"{1e6 * predictor.campaign.link.latency_seconds:.0f} us: TP=2, PP=2 | at the published "
        f"{1e6 * efficiency('link_latency_seconds').value:.0f} us: TP=2, PP=2 |",
        "|---|---|---|---|---|---|---|",
    ]
    size = predictor.served.shape.hidden_size * 2.0
    for machine in machines(predictor):
        for load in (ALONE, EIGHT):
            for rate in CABLES:
                cable = predictor.campaign.cable(rate)
                links = [
                    Link(latency, cable.bytes_per_second, machine.backend, None, cable.excess)
                    for _, latency in machine.latencies
                ]
                found = [crossing(machine, link, load) for link in links]
                even = found[0].latency_seconds
                words = "never | "
                if even is not None:
                    then = Link(even, links[0].bytes_per_second, machine.backend, None, cable.excess)
                    words = f"{1e6 * even:.0f} us | {1e6 * then.allreduce_seconds(size * load[0], RANKS):.0f} us"
                cells = " | ".join(_pair(each.tensor_step_seconds, each.pipeline_step_seconds) for each in found)
                lines.append(f"| {machine.name} | {load[0]} | {rate_name(rate)} | {words} | {cells} |")
    return lines


def first_tokens(predictor: Predictor) -> list[str]:
    """Return the table of first tokens of one prompt, which the bytes decide."""
    lines = [
        "| card | " + " | ".join(f"{rate_name(rate)}: TP=2, PP=2" for rate in CABLES) + " |",
        "|---|" + "---|" * len(CABLES),
    ]
    for machine in machines(predictor):
        cells = []
        for rate in CABLES:
            cable = predictor.campaign.cable(rate)
            link = Link(cable.latency_seconds, cable.bytes_per_second, machine.backend, None, cable.excess)
            served, accelerator = machine.known.served, machine.known.accelerator
            cells.append(_pair(*(prefill(served, accelerator, machine.known, link, parallel) for parallel in PARALLEL)))
        lines.append(f"| {machine.name} | {' | '.join(cells)} |")
    return lines


def page(predictors: Sequence[Predictor]) -> str:
    """Return the whole page."""
    lines = [
        "# What-if over links: TP or PP?",
        "",
        f"`{COMMAND}`, {time.strftime('%Y-%m-%d')}. Data: `tests/data/links`; the records of another `cluster gpu-lab` "
        "are added by `python -m bench.links --add RECORDS --name NAME --write`.",
        "",
        "Two predictions of each figure. **From one card**: the step model calibrated on "
        f"{CALIBRATION_POINTS} points of one card and one probe of the link as it is (all-reduces of a few sizes); "
        "median over random choices of the points. **From the pair**: calibrated on what the same split took over "
        "the link as it is, predicted where the link is changed. Nothing is fitted on a changed link. Asked for: 5 % "
        "in the median, 10 % at the 90th percentile; published simulators are off by 15.5 % for TP=2 of a small "
        "dense model. How messages over a link are counted: [the what-if model](../explanation/what-if.md).",
        "",
    ]
    for predictor in predictors:
        campaign, rows = predictor.campaign, predictor.rows
        lines += [
            f"## {campaign.title}, {campaign.date}",
            "",
            f"{campaign.engine}. Link as it is: "
            + ", ".join(f"{size:,} bytes in {1e6 * each:,.0f} us" for size, each in campaign.all_reduce.items())
            + ".",
            "",
            *accuracy(rows),
            "",
            _kept(rows),
            "",
            *table(rows),
            "",
            *(f"- {note}" for note in campaign.notes),
            "",
        ]
    return "\n".join([*lines, *_answer(answering(predictors))]) + "\n"


def answering(predictors: Sequence[Predictor]) -> Predictor:
    """Return the newest of those whose card was measured alone; else the newest."""
    return next((each for each in reversed(predictors) if each.campaign.card.is_measured), predictors[-1])


def _kept(rows: Sequence[Row]) -> str:
    def words(found: tuple[float, float, int]) -> str:
        kept = "kept" if found[0] <= TARGET[0] and found[1] <= TARGET[1] else "missed"
        return f"{_percent(found[0])} % and {_percent(found[1])} %, {kept}"

    return f"Against 5 % and 10 %: from one card {words(errors(rows))}; from the pair {words(errors(rows, pair=True))}."


def _answer(predictor: Predictor) -> list[str]:
    return [
        "## TP=2 or PP=2 over a cable",
        "",
        *_words(predictor),
        "",
        f"![TP=2 against PP=2 over the rate of a cable]({PICTURE})",
        "",
        f"The picture is of {predictor.campaign.card.name}, from the pair where it was measured: a cable with the "
        "probed link's latency (an all-reduce of a token takes about 60 us over it) and the rate below. A cable holds "
        "every byte back; the shapers of the lab let a bucket's worth pass at once, so steps over a slow cable are "
        "longer than the lab's at that rate.",
        "",
        *break_evens(predictor),
        "",
        "Until the first token of a prompt of 512 tokens, at the probed latency:",
        "",
        *first_tokens(predictor),
        "",
        "The cards that were not measured are by their datasheets and the table of efficiencies, uncalibrated: "
        "kernels in 4 bit that were measured on Hopper. The faster the kernels, the less TP=2 has to win: were the "
        "A770's weights read at all of its 560 GB/s, the two would cross at an all-reduce of 94 us "
        "([the what-if model](../explanation/what-if.md)).",
    ]


def _words(predictor: Predictor) -> list[str]:
    """Return which of both is faster over USB4 on each card, by the same numbers as the tables."""
    cable, latency = predictor.campaign.cable(USB4), efficiency("link_latency_seconds").value
    lines = [
        f"Over USB4 ({rate_name(USB4)}, the slower of its two rates, and {1e6 * latency:.0f} us one way, published):",
        "",
    ]
    for machine in machines(predictor):
        link = Link(latency, cable.bytes_per_second, machine.backend, None, cable.excess)
        alone, eight = (crossing(machine, link, load) for load in (ALONE, EIGHT))
        served, accelerator = machine.known.served, machine.known.accelerator
        first = (prefill(served, accelerator, machine.known, link, parallel) for parallel in PARALLEL)
        lines.append(
            f"- {machine.name}: between tokens of one client {_steps(alone)}, of eight {_steps(eight)}; first token "
            f"of 512 {_faster(*first)}."
        )
    many = [r for r in predictor.rows if r.measured.parallel == "pipeline" and r.measured.clients > 1]
    off = [r for r in many if r.what == STEP]
    if off:
        worst = max(abs(each.error) for each in off)
        lines += [
            "",
            f"A pipeline under several clients was predicted up to {worst:.0%} off from one card: the engine makes its "
            "first batch of the request that came first and the next of all others, the model halves them. Differences "
            "smaller than that do not decide.",
        ]
    return lines


def _steps(found: BreakEven) -> str:
    return _faster(found.tensor_step_seconds, found.pipeline_step_seconds)


def _faster(tensor: float, pipeline: float) -> str:
    name, least, most = ("TP=2", tensor, pipeline) if tensor < pipeline else ("PP=2", pipeline, tensor)
    return f"{name} ({_time(least)} against {_time(most)})"


def _pair(tensor: float, pipeline: float) -> str:
    one, two = _time(tensor), _time(pipeline)
    return f"**{one}**, {two}" if tensor < pipeline else f"{one}, **{two}**"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
