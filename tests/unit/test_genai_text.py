"""Text of tokens that come one by one, and the strings that end it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from genai_server.text import Detokenizer, StopStrings
from hypothesis import given
from hypothesis import strategies as st


def of_bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def with_leading_space(tokens: Sequence[int]) -> str:
    """Decode as SentencePiece does: the first word loses its space."""
    return "".join(f" w{token}" for token in tokens).removeprefix(" ")


@given(st.text(), st.lists(st.integers(1, 4), max_size=40))
def test_a_text_in_pieces_is_the_text(text: str, sizes: list[int]) -> None:
    tokens, maker, found = list(text.encode()), Detokenizer(of_bytes), ""
    for size in [*sizes, len(tokens)]:
        part, tokens = tokens[:size], tokens[size:]
        piece = maker.add(part)
        assert "\ufffd" not in piece or "\ufffd" in text
        found += piece
    assert found + maker.rest() == text


def test_a_token_whose_text_depends_on_the_one_before_is_right() -> None:
    maker = Detokenizer(with_leading_space)
    assert [maker.add([token]) for token in (1, 2, 3)] == ["w1", " w2", " w3"]


def test_bytes_that_never_become_a_character_are_given_out_at_the_end() -> None:
    maker = Detokenizer(of_bytes)
    assert maker.add([65, 0xF0, 0x9F]) == "" and maker.rest() == "A\ufffd"


@pytest.mark.parametrize(
    ("stops", "pieces", "given_out"),
    [
        (["END"], ["a", "E", "N", "D", "b"], ["a", "", "", "", ""]),
        (["END"], ["a", "EN", "x"], ["a", "", "ENx"]),
        (["ab", "b"], ["aab", "c"], ["a", ""]),
        ([], ["ab", "c"], ["ab", "c"]),
        (["aab"], ["aa", "ab"], ["", "a"]),
    ],
)
def test_a_stop_string_is_kept_back_until_it_is_certain(
    stops: list[str], pieces: list[str], given_out: list[str]
) -> None:
    stop = StopStrings(stops)
    assert [stop.add(piece) for piece in pieces] == given_out


@given(st.text(alphabet="ab"), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3), st.data())
def test_what_is_given_out_ends_at_the_first_stop_string(text: str, stops: list[str], data: st.DataObject) -> None:
    stop, found, rest = StopStrings(stops), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        found += stop.add(rest[:size])
        rest = rest[size:]
    found += stop.rest()
    # A string may have ended before a longer one that began earlier: so it is cut at the one that ended first.
    ends = [place for place in range(len(text) + 1) if any(text[:place].endswith(each) for each in stops)]
    if not ends:
        assert found == text and stop.found is None
    else:
        assert text.startswith(found) and stop.found is not None
        assert not any(each in found for each in stops)
