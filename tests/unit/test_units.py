"""Quantities with units."""

import pytest

from bottleneck.units import (
    DURATION,
    FREQUENCY,
    GIB,
    RATE,
    SIZE,
    Dimension,
    duration_text,
    rate_text,
    shown,
    size_text,
)


@pytest.mark.parametrize(
    ("dimension", "text", "expected"),
    [
        (SIZE, "5 GiB", 5 * 2**30),
        (SIZE, "5GiB", 5 * 2**30),
        (SIZE, "1.5 MiB", 1.5 * 2**20),
        (SIZE, "16 GB", 16e9),
        (SIZE, "1e3 kB", 1e6),
        (RATE, "1 Gbit/s", 125e6),
        (RATE, "20 Mbit/s", 2.5e6),
        (RATE, "560 GB/s", 560e9),
        (RATE, "1 MiB/s", 2**20),
        (DURATION, "100 ms", 0.1),
        (DURATION, "65 us", 65e-6),
        (DURATION, "24 h", 86400),
        (FREQUENCY, "10 Hz", 10),
        (FREQUENCY, " .5 kHz ", 500),
    ],
)
def test_parse(dimension: Dimension, text: str, expected: float) -> None:
    assert dimension.parse(text) == expected


def test_sizes_are_exact_whole_bytes() -> None:
    seen = SIZE.parse_whole("0.1 GB")
    assert seen == 100_000_000
    assert isinstance(seen, int)
    with pytest.raises(ValueError, match="less than one"):
        SIZE.parse_whole("0.3 B")


def test_a_size_as_an_engine_prints_it_loses_the_part_of_a_byte() -> None:
    assert SIZE.parse_whole("15.9 GiB") == int(15.9 * 2**30) == 17072495001


@pytest.mark.parametrize("text", ["1 gbit/s", "1 GBIT/S"])
def test_a_unit_in_the_wrong_case_is_suggested_right(text: str) -> None:
    with pytest.raises(ValueError, match=r"did you mean Gbit/s\?"):
        RATE.parse(text)


def test_a_bad_unit_lists_the_accepted_ones() -> None:
    with pytest.raises(ValueError) as caught:
        RATE.parse("1 furlong/s")
    message = str(caught.value)
    assert message.startswith("unit 'furlong/s'; expected a rate such as 1 Gbit/s")
    assert all(unit in message for unit in RATE.units)


@pytest.mark.parametrize(
    "value", ["", "GiB", "five GiB", "5 GiB extra", "nan GiB", "inf GiB", "1e999 GiB", None, [], True]
)
def test_what_is_no_quantity_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        SIZE.parse(value)


@pytest.mark.parametrize("value", [5, 5.0, "5"])
def test_a_number_without_a_unit_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a number without a unit; expected a size such as 5 GiB"):
        SIZE.parse(value)


@pytest.mark.parametrize("value", ["0 s", "-1 s", "-0.0 s"])
def test_zero_and_less_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="above zero"):
        DURATION.parse(value)


def test_texts() -> None:
    assert size_text(5 * GIB) == "5 GiB"
    assert size_text(12.1 * 2**20) == "12.1 MiB"
    assert size_text(1000) == "1000 B"
    assert size_text(1023 * 2**20) == "1023 MiB"
    assert rate_text(125e6) == "1 Gbit/s"
    assert rate_text(2.5e6) == "20 Mbit/s"
    assert rate_text(10) == "80 bit/s"
    assert duration_text(86400) == "1 d"
    assert duration_text(0.0925) == "92.5 ms"
    assert duration_text(65e-6) == "65 us"
    assert duration_text(0) == "0 s"


def test_shown_is_short_and_on_one_line() -> None:
    assert shown(None) == "nothing"
    assert shown(True) == "true"
    assert shown({"a": 1}) == "a mapping"
    assert shown([1]) == "a list"
    assert "\n" not in shown("a\nb")
    assert len(shown("x" * 1000)) == 60
