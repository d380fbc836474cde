"""Read a campaign: what one card, one probe of its link, and a pair of such cards over that link took."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bottleneck.performance.collectives import Link, Shaper, link_of
from bottleneck.performance.served import Accelerator, Point

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "data" / "links"
RANKS = 2
# Of a packet of Ethernet: what it carries of a TCP stream is its size less headers of IP, TCP and its time stamps.
_HEADERS, _ETHERNET = 52, 14

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measured(_Section):
    """Times that clients which start together saw of one pair over one link.

    Attributes
    ----------
    bits_per_second
        Rate that the link was held to; None as it is.
    delay_seconds
        Put on the link, one way.
    step_seconds, first_seconds, all_seconds
        Between tokens; until all first tokens were there; until all answers were.
    runs
        How many runs the figures are the median of.
    """

    parallel: Literal["tensor", "pipeline"]
    bits_per_second: _Positive | None = None
    delay_seconds: Annotated[float, Field(ge=0)] = 0.0
    clients: Annotated[int, Field(ge=1)]
    input_tokens: Annotated[int, Field(ge=1)]
    output_tokens: Annotated[int, Field(ge=1)]
    step_seconds: _Positive | None = None
    first_seconds: _Positive | None = None
    all_seconds: _Positive | None = None
    runs: Annotated[int, Field(ge=1)] = 1
    source: str

    @property
    def point(self) -> Point:
        """Return it as a point to calibrate on.

        Raises
        ------
        ValueError
            Without a time to the first tokens and one between tokens.
        """
        if self.first_seconds is None or self.step_seconds is None:
            raise ValueError("a figure without first_seconds and step_seconds is no point to calibrate on")
        return Point(self.clients, self.input_tokens, self.first_seconds, self.step_seconds)

    @property
    def is_plain(self) -> bool:
        """Return whether the link was as it is."""
        return self.bits_per_second is None and not self.delay_seconds


class Card(_Section):
    """One card, and what it took alone.

    Attributes
    ----------
    sweep
        File of a sweep, beside this one; its points are drawn from.
    points
        Batch, tokens of a prompt, seconds of the prefill, of a decode step. Without either, its ceilings are all
        that is known of it.
    """

    name: str
    memory_bytes_per_second: _Positive
    flops_per_second: _Positive
    launch_seconds: _Positive
    output_tokens: Annotated[int, Field(ge=2)]
    sweep: str | None = None
    points: tuple[tuple[int, int, _Positive, _Positive], ...] = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.sweep is not None and self.points:
            raise ValueError("sweep and points; expected one of both")
        return self

    @property
    def is_measured(self) -> bool:
        """Return whether it served the model alone."""
        return self.sweep is not None or bool(self.points)

    @property
    def accelerator(self) -> Accelerator:
        """Return it as the step model takes it."""
        return Accelerator(self.name, self.memory_bytes_per_second, self.flops_per_second, self.launch_seconds)

    @property
    def measured(self) -> list[Point]:
        """Return its own points."""
        return [Point(*each) for each in self.points]


class Campaign(_Section):
    """All of one campaign.

    Attributes
    ----------
    model
        File of a sweep of the same model in the same format, beside this one, whose shape is taken.
    all_reduce
        Bytes of a message -> seconds, over the link as it is.
    mtu_bytes
        Of the link.
    bucket_bytes, bucket_seconds
        Of the shaper: so many bytes, and so many as pass in this time.
    """

    schema_version: Literal[1] = Field(alias="schema")
    title: str
    date: str
    engine: str
    notes: tuple[str, ...] = ()
    model: str
    max_num_batched_tokens: int
    card: Card
    backend: str
    all_reduce: dict[int, _Positive]
    mtu_bytes: int
    bucket_bytes: float
    bucket_seconds: float = 0.0
    measured: tuple[Measured, ...]

    @property
    def link(self) -> Link:
        """Return the link as it was probed."""
        found = link_of({float(size): each for size, each in self.all_reduce.items()}, RANKS, self.backend)
        assert found is not None, "a campaign has probes"
        return found

    def link_at(self, bits_per_second: float | None, delay_seconds: float = 0.0) -> Link:
        """Return the link held to a rate, with a delay put on."""
        plain = self.link
        shaper = None
        if bits_per_second is not None:
            rate = bits_per_second / 8
            shaper = Shaper(rate * self.goodput, self.bucket_bytes + rate * self.bucket_seconds)
        return Link(plain.latency_seconds + delay_seconds, plain.bytes_per_second, plain.backend, shaper, plain.excess)

    def cable(self, bits_per_second: float, latency_seconds: float | None = None) -> Link:
        """Return a cable of a rate, which holds each byte back, with the software of the probed link."""
        plain = self.link
        rate = min(plain.bytes_per_second, bits_per_second / 8 * self.goodput)
        latency = plain.latency_seconds if latency_seconds is None else latency_seconds
        return Link(latency, rate, plain.backend, None, plain.excess)

    @property
    def goodput(self) -> float:
        """Return the share of a link's bytes that messages have."""
        return (self.mtu_bytes - _HEADERS) / (self.mtu_bytes + _ETHERNET)


def campaigns(folder: Path = FOLDER) -> Mapping[Path, Campaign]:
    """Return all campaigns of a folder, oldest first."""
    found = {path: Campaign.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("*.json"))}
    return dict(sorted(found.items(), key=lambda pair: pair[1].date))


def rate_name(bits_per_second: float | None) -> str:
    """Return a rate as people say it."""
    if bits_per_second is None or math.isinf(bits_per_second):
        return "as it is"
    return f"{bits_per_second / 1e9:g} Gbit/s" if bits_per_second >= 1e9 else f"{bits_per_second / 1e6:g} Mbit/s"
