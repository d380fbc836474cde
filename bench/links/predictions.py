"""Predict what a pair of cards takes over a link: from one card and a probe, or from the pair over another link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.links.campaign import RANKS, Campaign, Measured
from bottleneck.estimate import Interval
from bottleneck.performance.calibration import CALIBRATION_POINTS, Calibration, calibrate, uncalibrated
from bottleneck.performance.collectives import Link
from bottleneck.performance.model import Split
from bottleneck.performance.served import Served
from bottleneck.performance.workpoints import WorkPoints
from bottleneck.prediction.sweep import read_sweep

STEP, FIRST, ALL = "time between tokens", "first tokens of all", "all answers"
DRAWS = 20


@dataclass(frozen=True)
class Row:
    """One measured figure, and what was predicted of it.

    Attributes
    ----------
    from_card
        Seconds, by each draw of calibration points of one card.
    interval
        Of the draw in the middle, 90 %; None for what is added up of two predictions.
    from_pair
        Seconds, calibrated on the same split over the link as it is; None where it is that itself, or is not there.
    """

    measured: Measured
    what: str
    seconds: float
    from_card: tuple[float, ...]
    interval: Interval | None
    from_pair: float | None

    @property
    def predicted(self) -> float:
        """Return the median over the draws."""
        return float(np.median(self.from_card))

    @property
    def error(self) -> float:
        """Return the median prediction over what was measured, less 1."""
        return self.predicted / self.seconds - 1.0

    @property
    def pair_error(self) -> float | None:
        """Return the same of the prediction from the pair."""
        return None if self.from_pair is None else self.from_pair / self.seconds - 1.0


def split_over(parallel: str, link: Link) -> Split:
    """Return a model split over two ranks."""
    return Split(RANKS, 1, link) if parallel == "tensor" else Split(1, RANKS, link)


@dataclass(frozen=True)
class Predictor:
    """Predictions of one campaign.

    Attributes
    ----------
    path
        Of its file, which others are named from.
    """

    campaign: Campaign
    path: Path

    @cached_property
    def served(self) -> Served:
        """The model as the pair served it."""
        found = read_sweep(self.path.parent / self.campaign.model).served
        return replace(found, max_num_batched_tokens=self.campaign.max_num_batched_tokens)

    @cached_property
    def card_calibrations(self) -> tuple[Calibration, ...]:
        """Fits on six points of one card each, drawn at random; one fit on all of them where there are no more.

        What is known of such kernels by the card's ceilings alone where it was not measured.
        """
        card = self.campaign.card
        if not card.is_measured:
            return (uncalibrated(self.served, card.accelerator, card.output_tokens),)
        if card.sweep is not None:
            sweep = read_sweep(self.path.parent / card.sweep)
            served, points, output = sweep.served, list(sweep.points), sweep.output_tokens
        else:
            served, points, output = self.served, card.measured, card.output_tokens
        draws = DRAWS if len(points) > CALIBRATION_POINTS else 1
        chosen = (
            [points[index] for index in np.random.default_rng(seed).permutation(len(points))[:CALIBRATION_POINTS]]
            for seed in range(draws)
        )
        return tuple(calibrate(served, card.accelerator, each, output) for each in chosen)

    @cached_property
    def pair_calibrations(self) -> dict[str, Calibration]:
        """Fits on the pair over the link as it is, by how it was split."""
        found = {}
        for parallel in ("tensor", "pipeline"):
            plain = [
                each
                for each in self.campaign.measured
                if each.is_plain and each.parallel == parallel and each.step_seconds and each.first_seconds
            ]
            if plain:
                points = [each.point for each in plain]
                found[parallel] = calibrate(
                    self.served,
                    self.campaign.card.accelerator,
                    points,
                    max(each.output_tokens for each in plain),
                    split=split_over(parallel, self.campaign.link),
                )
        return found

    def seconds(
        self, known: Calibration, parallel: str, link: Link, load: tuple[int, int, int]
    ) -> tuple[Interval, Interval]:
        """Return time to the first tokens and between tokens for a load of clients, input and output tokens."""
        clients, prompt, output = load
        split = split_over(parallel, link)
        at = WorkPoints.of(self.served, known.accelerator, [(clients, prompt)], max(2, output), split)
        first, step = known.forecast(at).intervals()
        return first, step

    @cached_property
    def rows(self) -> list[Row]:
        """Every measured figure with its predictions."""
        return [row for each in self.campaign.measured for row in self._rows(each)]

    def _rows(self, measured: Measured) -> list[Row]:
        link = self.campaign.link_at(measured.bits_per_second, measured.delay_seconds)
        load = (measured.clients, measured.input_tokens, measured.output_tokens)
        by_draw = [self.seconds(known, measured.parallel, link, load) for known in self.card_calibrations]
        pair = self.pair_calibrations.get(measured.parallel)
        own = None if pair is None or measured.is_plain else self.seconds(pair, measured.parallel, link, load)
        figures = {STEP: measured.step_seconds, FIRST: measured.first_seconds, ALL: measured.all_seconds}
        found = []
        for what, seconds in figures.items():
            if seconds is not None:
                predicted = tuple(seconds_of(what, each, measured.output_tokens) for each in by_draw)
                from_pair = seconds_of(what, own, measured.output_tokens) if own else None
                found.append(Row(measured, what, seconds, predicted, _middle(what, by_draw), from_pair))
        return found


def seconds_of(what: str, predicted: tuple[Interval, Interval], output_tokens: int) -> float:
    """Return the seconds of one figure by what was predicted of first tokens and of a step."""
    first, step = (each.median for each in predicted)
    return {STEP: step, FIRST: first, ALL: first + (output_tokens - 1) * step}[what]


def _middle(what: str, by_draw: Sequence[tuple[Interval, Interval]]) -> Interval | None:
    if what == ALL:
        return None
    each = sorted((pair[0] if what == FIRST else pair[1] for pair in by_draw), key=lambda interval: interval.median)
    return each[len(each) // 2]


def errors(rows: Sequence[Row], pair: bool = False) -> tuple[float, float, int]:
    """Return median and 90th percentile of the errors' size, over figures and draws, and how many figures there are."""
    if pair:
        sizes = [abs(row.pair_error) for row in rows if row.pair_error is not None]
        count = len(sizes)
    else:
        sizes = [abs(each / row.seconds - 1.0) for row in rows for each in row.from_card]
        count = len(rows)
    if not sizes:
        return float("nan"), float("nan"), 0
    return float(np.median(sizes)), float(np.quantile(sizes, 0.9)), count
