"""Our parser of Prometheus' text against prometheus_client's, on texts made at random; and what is no sample."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bottleneck.telemetry import exposition
from bottleneck.telemetry.prometheus_text import MetricsText

BLANKS = st.text(" \t", min_size=1, max_size=3)
SOME_BLANKS = st.text(" \t", max_size=2)
NAMES = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,12}", fullmatch=True)
LABEL_NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True).filter(
    # Reserved, which the client library refuses.
    lambda name: not name.startswith("__")
)
# Whatever a server may put into a label: quotes, braces, commas, blanks, escapes, other scripts' line ends.
VALUES = st.text(
    st.one_of(st.characters(codec="utf-8", exclude_characters="\r"), st.sampled_from('"\\\n{},= #\x85\u2028'))
)
NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True).map(repr),
    st.integers(-(10**18), 10**18).map(str),
    st.sampled_from(["NaN", "+Inf", "-Inf", "1e+09", "2.5E-3", "0"]),
)
TIMESTAMPS = st.one_of(st.just(""), st.integers(-(10**12), 10**13).map(str))


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


@st.composite
def sample_lines(draw: st.DrawFn) -> str:
    """Return a sample as a server may write it: blanks where they are allowed, a comma at the end or not."""
    labels: dict[str, str] = draw(st.dictionaries(LABEL_NAMES, VALUES, max_size=4))
    text = draw(NAMES)
    braces: bool = draw(st.booleans())
    trailing: bool = draw(st.booleans())
    if labels or braces:
        parts = [f'{draw(SOME_BLANKS)}{name}="{escaped(value)}"{draw(SOME_BLANKS)}' for name, value in labels.items()]
        comma = "," if labels and trailing else ""
        text += f"{draw(SOME_BLANKS)}{{{','.join(parts)}{comma}}}"
    timestamp = draw(TIMESTAMPS)
    return f"{text}{draw(BLANKS)}{draw(NUMBERS)}" + (f"{draw(BLANKS)}{timestamp}" if timestamp else "")


LINES = st.one_of(
    sample_lines(),
    st.just(""),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20).map(lambda text: f"# {text}"),
)


def comparable(name: str, labels: object, value: float) -> tuple[str, object, float | str]:
    return name, labels, "NaN" if math.isnan(value) else float(value)


@settings(max_examples=400, deadline=None)
@given(lines=st.lists(LINES, max_size=8))
def test_it_reads_what_the_client_library_reads(lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    expected = [
        comparable(sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    found = [exposition.parse_line(line) for line in text.split("\n")]
    points = [point for point in found if point is not None]
    assert sorted(map(repr, (comparable(*point) for point in points))) == sorted(map(repr, expected))
    usable = MetricsText.parse(text)
    assert [point.key() for point in usable.points] == [point.key() for point in points if not math.isnan(point.value)]


@settings(max_examples=200, deadline=None)
@given(name=NAMES, labels=st.dictionaries(LABEL_NAMES, VALUES, max_size=3))
def test_a_key_is_read_back_as_what_it_was_written_from(name: str, labels: dict[str, str]) -> None:
    point = exposition.Point(name, tuple(sorted(labels.items())), 1.0)
    assert exposition.parse_key(point.key()) == (name, point.labels)
    assert exposition.parse_line(f"{point.key()} 1") == point


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_no_text_is_too_strange_to_be_passed_over(text: str) -> None:
    for sample in exposition.raw_samples(text):
        assert exposition.parse_key(sample.key) is not None


NO_SAMPLES = (
    *("", "   ", "# comment", "name", "name{}", "x1", 'x{a="1" 2', 'x{a="1"}', "x one", "{} 1", "x{a=1} 1", "x 1 2 3"),
    *('x{a="1"b="2"} 1', "x 1 soon", "1x 1", "x 1_000"),
)


@pytest.mark.parametrize("line", NO_SAMPLES)
def test_lines_that_are_no_samples(line: str) -> None:
    assert exposition.parse_line(line) is None
