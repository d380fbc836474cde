"""
Name the reason of a failure in one sentence, from a program's log and rules.

A rule is data: patterns, what they mean, what to do, and how near to the cause such a message is. A pattern matches a
line from its beginning and nowhere else, so that a warning that quotes an error is no reason; in the message of an
exception, from the beginning of a clause. Source code in a traceback is never looked at.
"""

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import log_events

# A message that is passed on as it is.
MESSAGE_CHARACTERS = 600
# The place, among the rules, of one that only says that a library failed.
_VAGUE = 1_000_000
# Raised by a slip in the handling of an error more often than by the error itself.
_SLIPS = ("AttributeError", "KeyError", "NameError", "UnboundLocalError", "IndexError", "SystemExit", "CancelledError")
_PLACE = re.compile(r"\{(\w+)(?::(\w+))?\}")
_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
# Where a clause of a message begins: at its start or a line's, behind a mark, or inside quotes or brackets.
_CLAUSE = r"""(?:^|(?<=[:.;,!)\]}>'"-] )|(?<=['"(\[{<:=]))"""
_SPACES = re.compile(r"\s+")


class Rank(enum.IntEnum):
    """Nearness of a message to the cause: the smallest of a log, then the first in time, is the reason."""

    CAUSE = 0
    # An exception without a rule, or a process that was ended by a signal.
    UNNAMED = 1
    # What broke, when nothing says why.
    SYMPTOM = 2
    # Another process is gone, or late: it may know why.
    PEER = 3
    # What a process does when another failed: it gives up.
    AFTERMATH = 4
    # The same failure, reported again further up.
    WRAPPER = 5


@dataclass(frozen=True)
class Rule:
    """
    The meaning of a message.

    name
        of the failure, in snake case
    rank
        how near to the cause it is
    patterns
        regular expressions, without regard to case; their named groups fill ``says`` and ``next``
    says
        the sentence: ``{group}``, with ``bytes``, ``milliseconds`` or ``seconds`` behind a colon where it is a number
        of those; what stands in square brackets is left out when one of its groups is missing; ``{text}`` is the
        message, ``{type}`` the exception's name, ``{library}`` what a library had warned of
    next
        the command to run now: the first whose groups are all there; NODE, MINION and DEPLOYMENT stand for their names
    on
        ``exception``, ``line`` (outside of exceptions), or both when empty
    types
        a regular expression that the exception's name must match, when not empty
    """

    name: str
    rank: Rank
    patterns: tuple[str, ...]
    says: str
    next: tuple[str, ...]
    on: str = ""
    types: str = ""


@dataclass(frozen=True)
class Rules:
    """
    An engine's rules.

    rules
        the more special ones first: the first that matches a message is its meaning
    handled
        beginnings of lines after which the engine goes on, whatever traceback follows
    alive
        beginnings of lines that a program writes only while it works: what was raised before the last of them did not
        end it
    wrapped
        patterns whose group ``text`` is the message of another process that is quoted; the rules are asked about that
    """

    rules: tuple[Rule, ...]
    handled: tuple[str, ...] = ()
    wrapped: tuple[str, ...] = ()
    alive: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reason:
    """
    The reason that something failed for.

    ``moment`` is seconds since the epoch by the node's clock, None when the log has no times; ``order`` is the line's
    number; of two reasons in one ``chain`` the more ``special`` rule counts (the smaller number).
    """

    name: str
    rank: int
    sentence: str
    moment: float | None
    order: int
    chain: int = 0
    special: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for Salt."""
        return {"name": self.name, "rank": self.rank, "sentence": self.sentence, "moment": self.moment}


def reason(raw: Iterable[str], rules: Rules, now: float | None = None) -> Reason | None:
    """
    Return why a program failed, or None when its log reports nothing.

    raw
        lines of the log, oldest first
    rules
        of the program
    now
        seconds since the epoch, for lines without a year
    """
    found = reasons(raw, rules, now)
    return found[0] if found else None


def reasons(raw: Iterable[str], rules: Rules, now: float | None = None) -> list[Reason]:
    """Return everything that may be the reason, the likeliest first; arguments as `reason`."""
    events = log_events.read_events(raw, _compiled(rules.handled, clauses=False), now)
    events = _since_alive(events, _compiled(rules.alive, clauses=False))
    libraries = [
        event for event in events if event.place in log_events.LIBRARIES and event.level in ("WARNING", "ERROR")
    ]
    meanings = {event.order: meant for event in events if (meant := _named(event, rules, libraries))}
    own = {event.order for event in libraries}
    if own & set(meanings):
        # The library's own line has a meaning: that a call of it failed adds nothing.
        meanings = {order: _repeated(meant) if order not in own else meant for order, meant in meanings.items()}
    explained = {meant.chain for meant in meanings.values() if meant.chain and meant.rank != Rank.WRAPPER}
    unnamed = [event for event in events if event.order not in meanings and event.chain not in explained]
    named = _most_special(meanings.values())
    found = named + [_after_peers(_plain(event), named) for event in _unnamed(unnamed)]
    return sorted(found, key=lambda each: (each.rank, each.order))


def _since_alive(events: Sequence[log_events.Event], alive: "Sequence[re.Pattern[str]]") -> list[log_events.Event]:
    """Leave out exceptions that the program outlived; what libraries and drivers reported may take longer to end it."""
    last = max(
        (event.order for event in events if not event.type and any(p.match(event.text) for p in alive)), default=0
    )
    return [event for event in events if event.order > last or not event.type]


def _named(event: log_events.Event, rules: Rules, libraries: Sequence[log_events.Event]) -> Reason | None:
    # What a library warns of may end its program; what it only tells does not.
    loud = {"WARNING"} if event.place in log_events.LIBRARIES else set()
    quiet = not event.type and event.level in set(log_events.QUIET_LEVELS) - loud
    if quiet or event.handled:
        return None
    for pattern in _compiled(rules.wrapped, clauses=True):
        quoted = pattern.search(event.text)
        if quoted:
            return _quoted(event, quoted["text"], rules, libraries)
    for special, rule in enumerate(rules.rules):
        if rule.on and rule.on != ("exception" if event.type else "line"):
            continue
        if rule.types and not re.fullmatch(rule.types, event.type):
            continue
        for pattern in _compiled(rule.patterns, clauses=bool(event.type)):
            match = pattern.search(event.text)
            if match:
                words: dict[str, str | None] = {"text": _short(event.text), "type": event.type, **match.groupdict()}
                words["library"] = _detail(event, libraries)
                sentence = _sentence(rule, words)
                vague = special if "{library}" not in rule.says else _VAGUE
                return Reason(rule.name, rule.rank, sentence, event.moment, event.order, event.chain, vague)
    return None


def _quoted(event: log_events.Event, text: str, rules: Rules, libraries: Sequence[log_events.Event]) -> Reason:
    """Return what a message means that another process is quoted with: there it may be a consequence."""
    inner = replace(event, text=text, type=event.type or "Exception")
    meant = _named(inner, Rules(rules.rules), libraries)
    rank = max(Rank.SYMPTOM, meant.rank) if meant else Rank.SYMPTOM
    name, sentence = (meant.name, meant.sentence) if meant else ("", _short(text))
    return Reason(name, rank, sentence, event.moment, event.order, event.chain)


def _repeated(meant: Reason) -> Reason:
    return replace(meant, rank=Rank.WRAPPER) if meant.special == _VAGUE else meant


def _most_special(meanings: Iterable[Reason]) -> list[Reason]:
    """Keep, of the reasons of one rank in one chain of exceptions, the one by the most special rule."""
    kept: dict[tuple[int, int, int], Reason] = {}
    for meant in meanings:
        key = (meant.rank, meant.chain, 0 if meant.chain else meant.order)
        if key not in kept or meant.special < kept[key].special:
            kept[key] = meant
    return list(kept.values())


def _detail(event: log_events.Event, libraries: Sequence[log_events.Event]) -> str | None:
    """Return what a library warned of before an exception reported only that it failed."""
    before = [each for each in libraries if each.order < event.order]
    return _short(before[0].text) if before and event.type else None


def _unnamed(events: Sequence[log_events.Event]) -> list[log_events.Event]:
    """Return one exception of every chain: the one that tells most."""
    chains: dict[int, list[log_events.Event]] = {}
    for event in events:
        if event.type and not event.handled:
            chains.setdefault(event.chain, []).append(event)
    return [_telling(chain) for chain in chains.values()]


def _telling(chain: Sequence[log_events.Event]) -> log_events.Event:
    """Return the last exception that was raised on purpose and has words, else the first."""
    worded = [event for event in chain if event.text and event.type not in _SLIPS]
    return worded[-1] if worded else chain[0]


def _plain(event: log_events.Event) -> Reason:
    text = _short(f"{event.type}: {event.text}" if event.text else event.type)
    rank = Rank.UNNAMED if event.text else Rank.SYMPTOM
    return Reason("", rank, text, event.moment, event.order)


def _after_peers(unnamed: Reason, named: Sequence[Reason]) -> Reason:
    """Return an exception without a rule as what follows from a lost peer, when it came after that."""

    def earlier(peer: Reason) -> bool:
        if peer.moment is None or unnamed.moment is None or peer.moment == unnamed.moment:
            return peer.order < unnamed.order
        return peer.moment < unnamed.moment

    lost = any(earlier(each) for each in named if each.rank == Rank.PEER)
    return replace(unnamed, rank=Rank.AFTERMATH) if lost else unnamed


def _sentence(rule: Rule, words: dict[str, str | None]) -> str:
    says = _OPTIONAL.sub(lambda part: part[1] if _has(part[1], words) else "", rule.says)
    command = next((each for each in rule.next if _has(each, words)), "")
    return _filled(f"{says}; next: {command}" if command else says, words)


def _has(template: str, words: dict[str, str | None]) -> bool:
    return all(words.get(name) for name, _ in _PLACE.findall(template))


def _filled(template: str, words: dict[str, str | None]) -> str:
    return _PLACE.sub(lambda part: _shown(words.get(part[1]) or "", part[2]), template)


def _shown(value: str, unit: str | None) -> str:
    """Return a number as people write it; what is no number stays as it is."""
    if unit is None:
        return value.strip()
    try:
        number = float(value)
    except ValueError:
        return value.strip()
    if unit == "bytes":
        for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if number >= size:
                return f"{number / size:.1f} {name}"
        return f"{number:.0f} bytes"
    seconds = number / 1000 if unit == "milliseconds" else number
    return f"{seconds / 60:.3g} minutes" if seconds >= 120 else f"{seconds:g} s"


def _short(text: str) -> str:
    """Return a message on one line, cut where it becomes a dump."""
    line = _SPACES.sub(" ", text).strip()
    return line if len(line) <= MESSAGE_CHARACTERS else line[: MESSAGE_CHARACTERS - 3] + "..."


@lru_cache(maxsize=2048)
def _pattern(text: str, clauses: bool) -> "re.Pattern[str]":
    begin = _CLAUSE if clauses else "^"
    return re.compile(f"{begin}(?:{text})", re.IGNORECASE | re.MULTILINE | re.DOTALL)


def _compiled(texts: Iterable[str], clauses: bool) -> "list[re.Pattern[str]]":
    return [_pattern(text, clauses) for text in texts]
