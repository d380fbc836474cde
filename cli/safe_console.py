"""Show text that a node, a log or a file wrote without letting it do anything: the one way to a person's terminal.

What a node reports (a worker's reason, a state's comment, a log line) ends on the terminal of whoever asked. Bytes in
it could move the cursor, set the clipboard or the title; brackets in it could be taken for rich's markup and vanish, or
end the command with an error. So every console of this program is a `SafeConsole`: control characters become visible,
and of markup it knows only the few styles that the program itself writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.errors import MarkupError
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

# What the program writes into its own markup; anything else in brackets is text.
STYLES = frozenset({"bold", "dim", "red", "yellow", "green", "cyan"})
_TAG = re.compile(r"(\\*)\[([a-z#/@][^[\]]*)\]")

# Line ends and tabs are harmless; what turns the direction of writing makes a line read as another, and half a
# surrogate cannot be written at all.
_UNSEEN = [*range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_CONTROLS = "".join(map(chr, (code for code in _UNSEEN if chr(code) not in "\n\t")))
_CONTROL = re.compile(f"[{re.escape(_CONTROLS)}\ud800-\udfff]")


def visible(text: str) -> str:
    """Return a text with a mark in the place of each character that acts on a terminal instead of being seen."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def own_markup(text: str) -> str:
    """Return a text in which only the program's own styles are still markup."""

    def kept(found: re.Match[str]) -> str:
        backslashes, tag = found.groups()
        words = tag.removeprefix("/").split(" ")
        if len(backslashes) % 2 or tag == "/" or STYLES.issuperset(words):
            return found[0]
        return f"{backslashes}{backslashes}\\[{tag}]"

    return _TAG.sub(kept, text)


class SafeConsole(Console):
    """A console that shows text and obeys none of it."""

    def render_str(self, text: str, **keywords: Any) -> Text:
        """Return a text as rich shows it; a style that ends and never began is text, too."""
        text = visible(text)
        try:
            return super().render_str(own_markup(text), **keywords)
        except MarkupError:
            return super().render_str(text, **{**keywords, "markup": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of what is shown; those that are rich's own controls stay."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
                continue
            style = segment.style
            if style is not None and style.link:
                style = style.update_link(None)
            yield Segment(visible(segment.text), style or Style.null())
