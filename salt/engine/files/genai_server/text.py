"""Make text of tokens as they come, and look for the strings that end it."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
# What a decoder writes for bytes that are not a whole character yet.
_UNFINISHED = "\ufffd"


class Detokenizer:
    """Text of a growing list of tokens.

    A token's text may depend on those before it, and a character may be spread over several: text is given out once
    the next token can no longer change it.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        # Tokens that the next ones are decoded with, and how many of them have been given out.
        self._context: list[int] = []
        self._given = 0

    def add(self, tokens: Sequence[int]) -> str:
        """Return the text that became certain."""
        self._context += tokens
        before = self._decode(self._context[: self._given]) if self._given else ""
        now = self._decode(self._context)
        if now.endswith(_UNFINISHED) or len(now) < len(before):
            return ""
        self._context = self._context[self._given :]
        self._given = len(self._context)
        return now[len(before) :]

    def rest(self) -> str:
        """Return what was kept back: the end of the text has come."""
        before = self._decode(self._context[: self._given]) if self._given else ""
        return self._decode(self._context)[len(before) :] if len(self._context) > self._given else ""


class StopStrings:
    """Text up to the first of some strings; what may be the beginning of one is kept back."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [string for string in strings if string]
        self._kept = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """Return the text that is certain not to belong to one of the strings."""
        if self.found is not None:
            return ""
        self._kept += text
        places = [(place, string) for string in self._strings if (place := self._kept.find(string)) >= 0]
        if places:
            place, self.found = min(places)
            given, self._kept = self._kept[:place], ""
            return given
        keep = self._partial()
        given, self._kept = self._kept[: len(self._kept) - keep], self._kept[len(self._kept) - keep :]
        return given

    def rest(self) -> str:
        """Return what was kept back: the end of the text has come."""
        given, self._kept = self._kept, ""
        return given

    def _partial(self) -> int:
        longest = max((len(string) for string in self._strings), default=1) - 1
        for length in range(min(longest, len(self._kept)), 0, -1):
            if any(string.startswith(self._kept[-length:]) for string in self._strings):
                return length
        return 0
