"""Read Prometheus text as a table of numbers, and subtract two of them.

Only what the analysis needs of the format is here, so that this room needs no client library: samples, whose lines
`exposition` parses. Comments, timestamps and lines that are not samples are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bottleneck.json_numbers import number
from bottleneck.telemetry.engine_names import SHARES, read_once
from bottleneck.telemetry.exposition import Point, parse_key, raw_samples

_COUNTER_ENDINGS = ("_total", "_sum", "_count", "_bucket")


@dataclass(frozen=True)
class Delta:
    """Growth of a counter between two readings.

    Attributes
    ----------
    value : float
        The increase, summed over the series that match.
    reset : bool
        True when a series started again between the readings; its increase is then what it counted since, which is
        a lower bound (the rule of Prometheus' `increase`).
    """

    value: float
    reset: bool = False


@dataclass(frozen=True)
class Histogram:
    """A cumulative histogram.

    Attributes
    ----------
    bounds : tuple of float
        Upper bounds, ascending, the last one infinite.
    counts : tuple of float
        Observations at or below each bound.
    total : float
        Sum of the observations, in the metric's own unit.
    count : float
        Number of observations.
    reset : bool
        Whether a counter started again in between, for a difference of two readings.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()
    total: float = 0.0
    count: float = 0.0
    reset: bool = False

    @property
    def mean(self) -> float | None:
        """Mean observation, or None when there is none."""
        return self.total / self.count if self.count > 0 else None

    def quantile(self, share: float) -> float | None:
        """Estimate a quantile by interpolating inside its bucket.

        Parameters
        ----------
        share : float
            0 to 1.

        Returns
        -------
        float or None
            None without buckets or observations. A quantile in the open last bucket is the last finite bound.
        """
        if not self.bounds or not self.counts or self.counts[-1] <= 0:
            return None
        rank = share * self.counts[-1]
        lower, below = 0.0, 0.0
        for bound, cumulative in zip(self.bounds, self.counts, strict=True):
            if cumulative >= rank and cumulative > below:
                if math.isinf(bound):
                    return lower
                return lower + (bound - lower) * (rank - below) / (cumulative - below)
            if not math.isinf(bound):
                lower = bound
            below = max(below, cumulative)
        return lower


@dataclass
class MetricsText:
    """One reading of a metrics endpoint.

    Attributes
    ----------
    points : list of Point
        Every sample with a usable number, an engine's under the present name of its family (`engine_names`); values
        that are not a number are left out and counted in `unusable`.
    unusable : int
        How many samples were left out.
    repeated : int
        How many were left out because the text has their family under its present name, too.
    """

    points: list[Point] = field(default_factory=list)
    unusable: int = 0
    repeated: int = 0
    _by_name: dict[str, list[Point]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        usable = [point for point in self.points if not math.isnan(point.value)]
        self.unusable += len(self.points) - len(usable)
        other = read_once({point.name for point in usable})
        if other:
            named = [(other.get(point.name, point.name), point) for point in usable]
            usable = [point._replace(name=name) for name, point in named if name is not None]
            self.repeated += len(named) - len(usable)
        self.points = usable
        for point in usable:
            self._by_name.setdefault(point.name, []).append(point)

    @classmethod
    def parse(cls, text: str) -> MetricsText:
        """Return the metrics of an exposition text.

        Parameters
        ----------
        text : str
            Prometheus exposition text, format 0.0.4; lines that are no sample are passed over.
        """
        return cls([Point(*series, raw.value) for raw in raw_samples(text) if (series := parse_key(raw.key))])

    @classmethod
    def from_flat(cls, flat: Mapping[str, object]) -> MetricsText:
        """Return the metrics of a dict keyed by the sample as the exposition text writes it.

        Parameters
        ----------
        flat : mapping
            `{'name{label="value"}': number}`. What is not a number counts as unusable.
        """
        points: list[Point] = []
        unusable = 0
        for key, value in flat.items():
            if type(value) is not float and (isinstance(value, bool) or not isinstance(value, int | float | str)):
                unusable += 1
                continue
            series = parse_key(key)
            if series is None:
                unusable += 1
            else:
                points.append(Point(*series, number(value)))
        return cls(points, unusable)

    def to_flat(self) -> dict[str, float]:
        """Return the reading as a dict keyed as the exposition text writes it."""
        return {point.key(): point.value for point in self.points}

    def select(self, name: str, **labels: str) -> list[Point]:
        """Return the points of a name whose labels have the given values.

        Parameters
        ----------
        name : str
            Name of a sample, such as "vllm:num_requests_running".
        **labels : str
            Values that labels must have; a point may have further labels.
        """
        points = self._by_name.get(name, [])
        if not labels:
            return list(points)
        wanted = set(labels.items())
        return [point for point in points if wanted.issubset(point.labels)]

    def value(self, name: str, **labels: str) -> float | None:
        """Sum the points that match, or return the largest of them where they are shares; None when there is none.

        Parameters
        ----------
        name : str
            Name of a sample; those of `SHARES` are ratios, which are not added up.
        **labels : str
            As in `select`.
        """
        points = self.select(name, **labels)
        if not points:
            return None
        values = [point.value for point in points]
        return max(values) if name in SHARES else sum(values)

    @property
    def engines(self) -> int:
        """The number of engines in the text: several where requests are spread over copies of the model."""
        return max(1, len(self.engine_labels))

    @property
    def engine_labels(self) -> list[dict[str, str]]:
        """The labels that tell each engine from the others, as `select` takes them."""
        running = self.select("vllm:num_requests_running")
        names = {tuple((key, point.label(key)) for key in ("engine", "WorkerId")) for point in running}
        return [{key: value for key, value in each if value is not None} for each in sorted(names, key=str)]

    def names(self) -> set[str]:
        """Return every name that has a usable sample."""
        return set(self._by_name)

    def info(self, name: str, label: str) -> str | None:
        """Return one label of the first point of an info metric, or None.

        Parameters
        ----------
        name : str
            Name of the info metric, whose value is always 1.
        label : str
            Name of the label.
        """
        for point in self._by_name.get(name, []):
            if (value := point.label(label)) is not None:
                return value
        return None

    def histogram(self, family: str, **labels: str) -> Histogram | None:
        """Return a histogram summed over the series that match; None when there is no `_count` of it.

        Parameters
        ----------
        family : str
            Name without `_bucket`, `_sum` and `_count`.
        **labels : str
            As in `select`.
        """
        return histogram_delta(MetricsText(), self, family, **labels)


def _started_again(before: MetricsText, after: MetricsText, point: Point, earlier: float) -> bool:
    if point.value < earlier:
        return True
    ending = next((ending for ending in _COUNTER_ENDINGS if point.name.endswith(ending)), None)
    if ending is None:
        return False
    # A counter that restarted may have passed its old value again; its creation time tells.
    labels = {name: value for name, value in point.labels if name != "le"}
    stem = point.name.removesuffix(ending)
    created_before = before.value(f"{stem}_created", **labels)
    created_after = after.value(f"{stem}_created", **labels)
    return created_before is not None and created_after is not None and created_after > created_before + 1e-3


def delta(before: MetricsText | None, after: MetricsText | None, name: str, **labels: str) -> Delta | None:
    """Return how much a counter grew from one reading to a later one.

    Parameters
    ----------
    before, after : MetricsText or None
        The readings. A series that is missing before counts from zero (vLLM creates labelled series on first use).
    name : str
        The sample's name, with its `_total`, `_sum` or `_count`.
    **labels : str
        Only the series with these label values.

    Returns
    -------
    Delta or None
        None when the later reading does not have it.
    """
    if after is None or before is None:
        return None
    # A counter below zero is none.
    points = [point for point in after.select(name, **labels) if not point.value < 0]
    if not points:
        return None
    earlier = {point.labels: max(0.0, point.value) for point in before.select(name, **labels)}
    total, reset = 0.0, False
    for point in points:
        start = earlier.get(point.labels, 0.0)
        if _started_again(before, after, point, start):
            total, reset = total + point.value, True
        else:
            total += point.value - start
    return Delta(total, reset)


def histogram_delta(
    before: MetricsText | None, after: MetricsText | None, family: str, **labels: str
) -> Histogram | None:
    """Return the histogram of what was observed between two readings; None when it cannot be told.

    Parameters
    ----------
    before : MetricsText or None
        The earlier reading.
    after : MetricsText or None
        The later one.
    family : str
        Name of the histogram, without `_bucket`.
    **labels : str
        Values that labels of the series must have.
    """
    count, total = delta(before, after, f"{family}_count", **labels), delta(before, after, f"{family}_sum", **labels)
    if count is None or total is None or before is None or after is None:
        return None
    bounds = sorted({_bound(point.label("le")) for point in after.select(f"{family}_bucket", **labels)})
    counts: list[float] = []
    for bound in bounds:
        texts = {
            text
            for point in after.select(f"{family}_bucket", **labels)
            if (text := point.label("le")) is not None and _bound(text) == bound
        }
        grown = _sum_deltas(delta(before, after, f"{family}_bucket", **{**labels, "le": text}) for text in texts)
        # Cumulative by definition; a reset between scrapes of two buckets must not break that.
        counts.append(max(grown, counts[-1] if counts else 0.0))
    return Histogram(tuple(bounds), tuple(counts), total.value, count.value, count.reset or total.reset)


def _sum_deltas(deltas: Iterable[Delta | None]) -> float:
    return sum(part.value for part in deltas if part is not None)


def _bound(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.inf
    except ValueError:
        return math.inf
