"""
Take a program's log apart: whole exceptions with their messages, and single lines, each with its moment and process.

A log holds the lines of several processes mixed, each with the prefixes of whatever wrote it: vLLM's logger, torch's
C++ logger, NCCL, oneCCL, the container's or the journal's time. What a line says is what is left without them.
"""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# A message that goes on for longer is a dump.
MESSAGE_LINES = 80
LINE_CHARACTERS = 4000
# Libraries that write lines of their own into a log.
LIBRARIES = ("NCCL", "oneCCL")
QUIET_LEVELS = ("DEBUG", "INFO", "WARNING")

_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_REPEATED = re.compile(r" \[repeated \d+x across cluster\].*$")
# What something outside the program put before each line: a container's time, the journal, compose, a collector.
_OUTSIDE = (
    re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)? (?:std(?:out|err) [FP] )?"),
    re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.,]\d+ \[\w+\] (?:\(\w+\) )?"),
    re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ [\w.@-]+\[\d+\]: "),
    re.compile(r"(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ )?kernel: "),
    re.compile(r"\[ *\d+\.\d+\] |\[[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\] "),
    re.compile(r"[\w.-]* *\| (?=\S)(?!CCL_)"),
    re.compile(r"\[\d+\] (?=\[rank)"),
    re.compile(r"\[(?!rank\d)[a-z][\w.-]*\]: "),
)
_PROCESS = re.compile(r"\(([A-Za-z][\w .=-]*? pid=\d+(?:, ip=[\d.a-f:]+)?)\) ?")
_RANK = re.compile(r"\[(rank\d+)\]: ?")
_VLLM = re.compile(
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:\d{4}-)?(?P<month>\d\d)-(?P<day>\d\d) (?P<clock>\d\d:\d\d:\d\d)"
    r"(?:[.,]\d+)? (?P<place>\[[^\]]*\]|[\w.]+:\d+\]) ?"
)
# The same words in another order, as forks of it write them.
_DATED = re.compile(
    r"\[?(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d) (?P<clock>\d\d:\d\d:\d\d)(?:[.,]\d+)?\]?:? (?:- \S+ - )?"
    r"\[?(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)\]?(?: -|:)? (?:\d+ )?"
    r"(?P<place>\[[^\]]*\]|[\w.]+:\d+(?:\]|:| --))? ?"
)
_UVICORN = re.compile(r"(?P<level>INFO|WARNING|ERROR|CRITICAL): {3,}")
_TORCH = re.compile(
    r"\[(?P<level>[DIWEF])(?:(?P<month>\d{1,2})(?P<day>\d\d) (?P<clock>\d\d:\d\d:\d\d)\.\d+)? (?P<place>\S+)\] "
)
_NCCL = re.compile(
    r"(?:\[[\d-]+ [\d:.]+\] )?\S+:(?P<pid>\d+):\d+ \[-?\d+\] (?:[\d.]+ )?(?P<place>\S+:\d+ )?NCCL (?P<level>[A-Z]+)"
    r"(?: [\d.]+ )? ?"
)
_ONECCL = re.compile(
    r"(?P<year>\d{4}):(?P<month>\d\d):(?P<day>\d\d)-(?P<clock>\d\d:\d\d:\d\d):\( *(?P<pid>\d+)\) "
    r"\|CCL_(?P<level>[A-Z]+)\| (?:(?P<place>\S+:\d+) )?"
)
_ROCM = re.compile(r":(?P<level>[01]):\S+? *: *\d+ *: *\d+ ?us: *(?:\[pid:\d+ +tid:0x\w+\] *)?")
_LEVELS = {
    "0": "ERROR",
    "1": "ERROR",
    "D": "DEBUG",
    "I": "INFO",
    "W": "WARNING",
    "E": "ERROR",
    "F": "CRITICAL",
    "WARN": "WARNING",
}

_TRACEBACK = re.compile(r"(?:.*[ ,])?(?:Exception Group )?Traceback \(most recent call last\):$")
_FRAME = re.compile(r'\s+(?:\| *)*File "(?P<file>[^"]*)", line (?P<line>\d+)')
_CHAIN = re.compile(r"The above exception was the direct cause|During handling of the above exception")
# In a traceback any name may be an exception's; elsewhere it must say so.
_RAISED = re.compile(r"(?P<type>[A-Za-z_][\w.]*(?:\(\w+\))?)(?:: (?P<message>.*)|:?)$")
_EXCEPTION = re.compile(
    r"(?P<type>(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|Interrupt|Fault)(?:\(\w+\))?|(?:[A-Za-z_]\w*\.)+(?:[A-Z]\w+|\w+error))"
    r"(?:: (?P<message>.*)|:?)$"
)
_WARNING = re.compile(r"\S+:\d+: \w*Warning: ")
# A C++ program's last words, and what torch puts before a group's message.
_TERMINATE = re.compile(r"what\(\): +(?P<message>.*)$")
_GROUP = re.compile(r"(?:\[(?:PG |Rank |default|c10d)[^\]]*\]:? ?)+")
_CPP_TRACE = re.compile(r"\n(?:Exception raised from|C\+\+ CapturedTraceback:|frame #\d+:)[\s\S]*$")
_VALIDATION = re.compile(r"(?:Value error|Assertion failed), (?P<text>.*)")
_TYPE_TAIL = re.compile(r" \[type=[a-z_.]+, input_(?:value|type)=[\s\S]*$")


@dataclass(frozen=True)
class Line:
    """One line without its prefixes; `moment` is the last one that was written so far, seconds since the epoch."""

    text: str
    source: str = ""
    level: str = ""
    place: str = ""
    prefix: str = ""
    moment: float | None = None


@dataclass(frozen=True)
class Event:
    """
    Something that a log reports: an exception with its whole message, or a line.

    ``type`` is an exception's last name, empty for a line. ``chain`` is the same number for exceptions that were raised
    while handling each other. ``handled`` marks what its program lived through.
    """

    text: str
    type: str = ""
    source: str = ""
    level: str = ""
    place: str = ""
    moment: float | None = None
    order: int = 0
    chain: int = 0
    handled: bool = False


@dataclass
class _Stream:
    """The unfinished lines of one process."""

    frames: bool = False
    frame: str = ""
    code: str = ""
    type: str = ""
    message: list[str] = field(default_factory=list)
    start: Line = Line("")
    order: int = 0
    chain: int = 0
    chained: bool = False
    handled: bool = False


def read_lines(raw: Iterable[str], now: float | None = None) -> Iterator[Line]:
    """
    Yield the lines without their prefixes.

    raw
        lines of a log, oldest first
    now
        seconds since the epoch; prefixes without a year are of the last twelve months before it
    """
    now = time.time() if now is None else now
    moment: float | None = None
    for each in raw:
        line = _line(each, now)
        moment = line.moment if line.moment is not None else moment
        yield Line(line.text, line.source, line.level, line.place, line.prefix, moment)


def read_events(raw: Iterable[str], handled: Iterable[re.Pattern[str]] = (), now: float | None = None) -> list[Event]:
    """
    Return what a log reports, in its order.

    raw, now
        as `read_lines`
    handled
        patterns of lines after which the program goes on: the traceback that belongs to them is no failure
    """
    reader = _Reader(tuple(handled))
    for line in read_lines(raw, now):
        reader.take(line)
    return reader.finish()


class _Reader:
    def __init__(self, handled: tuple[re.Pattern[str], ...]) -> None:
        self._handled = handled
        self._streams: dict[str, _Stream] = {}
        self._events: list[Event] = []
        self._chains = 0
        self._order = 0
        self._last = ""

    def take(self, line: Line) -> None:
        self._order += 1
        stream = self._streams.setdefault(line.source, _Stream())
        before = self._streams.get(self._last)
        if before and before is not stream and before.message and not line.prefix and line.text[:1].isspace():
            # A collector kept the prefix of a message's first line only.
            before.message.append(line.text)
            return
        self._last = line.source
        if stream.message and self._goes_on(stream, line):
            stream.message.append(line.text)
            return
        if stream.message:
            self._close(stream)
        if _CHAIN.match(line.text):
            stream.chained = True
        elif _TRACEBACK.match(line.text):
            self._open(stream, line)
        elif stream.frames and self._inside(stream, line):
            return
        elif _FRAME.match(line.text) or (stream.chained and line.text[:1].isspace()):
            # The log begins, or was cut, inside a traceback.
            self._open(stream, line)
            self._inside(stream, line)
        else:
            self._plain(stream, line)

    def finish(self) -> list[Event]:
        for stream in self._streams.values():
            if stream.message:
                self._close(stream)
        return sorted(self._events, key=lambda event: event.order)

    def _open(self, stream: _Stream, line: Line) -> None:
        if not stream.chained:
            self._chains += 1
            stream.chain = self._chains
            stream.handled = stream.handled or line.level in QUIET_LEVELS or self._marks_handled(line.text)
        stream.frames, stream.chained, stream.frame, stream.code = True, False, "", ""

    def _inside(self, stream: _Stream, line: Line) -> bool:
        """Take a line of a traceback; False for one that is none."""
        text = line.text.lstrip("| ") if line.text.startswith("  |") else line.text
        if not text.strip() or text[0] in " \t+":
            frame = _FRAME.match(text)
            if frame:
                stream.frame = f"{frame['file'].rpartition('/')[2]}, line {frame['line']}"
            elif text.strip().strip("~^"):
                stream.code = text.strip()
            return True
        raised = _RAISED.match(text)
        stream.frames = False
        if not raised:
            return False
        self._begin(stream, line, raised)
        return True

    def _begin(self, stream: _Stream, line: Line, raised: "re.Match[str]") -> None:
        stream.type = raised["type"]
        stream.message = [raised["message"] or ""]
        stream.start, stream.order = line, self._order

    def _goes_on(self, stream: _Stream, line: Line) -> bool:
        """Tell whether a line belongs to the message that is open."""
        if len(stream.message) >= MESSAGE_LINES or _TRACEBACK.match(line.text) or _CHAIN.match(line.text):
            return False
        if stream.start.level:
            # One call of a logger writes the same prefix before all its lines.
            return line.prefix == stream.start.prefix
        another = _WARNING.match(line.text) or (_EXCEPTION.match(line.text) and not line.text.startswith("nccl"))
        return not line.level and not another

    def _plain(self, stream: _Stream, line: Line) -> None:
        text = line.text.strip()
        if not text:
            return
        raised = _EXCEPTION.match(text) if line.place not in LIBRARIES else None
        last_words = _TERMINATE.match(text)
        if last_words:
            self._chains += 1
            stream.chain, stream.handled, stream.type = self._chains, False, "terminate"
            stream.message, stream.start, stream.order = [last_words["message"]], line, self._order
            return
        if raised and not stream.frames:
            if not stream.chained:
                self._chains += 1
                stream.chain, stream.handled = self._chains, line.level in QUIET_LEVELS
            stream.chained = False
            self._begin(stream, line, raised)
            return
        # What is said of the traceback that follows.
        stream.handled = self._marks_handled(text)
        stream.chained = False
        self._events.append(
            Event(text, "", line.source, line.level, line.place, line.moment, self._order, 0, stream.handled)
        )

    def _close(self, stream: _Stream) -> None:
        name = stream.type.rpartition(".")[2].partition("(")[0]
        text = _CPP_TRACE.sub("", "\n".join(stream.message)).rstrip()
        if name == "ValidationError":
            text = _validation_texts(text) or text
        if not text and stream.code:
            # An assertion without words: its condition is all there is.
            text = f"{stream.code} ({stream.frame})"
        start = stream.start
        self._events.append(
            Event(
                text,
                name,
                start.source,
                start.level,
                start.place,
                start.moment,
                stream.order,
                stream.chain,
                stream.handled,
            )
        )
        stream.message, stream.type = [], ""
        stream.frame, stream.code = "", ""

    def _marks_handled(self, text: str) -> bool:
        return any(pattern.match(text) for pattern in self._handled)


def _validation_texts(text: str) -> str:
    """Return what a validator reports of each field: `1 validation error for X` is only its heading."""
    found: list[str] = []
    location = ""
    for line in text.splitlines()[1:]:
        stripped = _TYPE_TAIL.sub("", line.strip())
        if not stripped or stripped.startswith("For further information"):
            continue
        if not line.startswith("  ") and line[:1] != " ":
            location = stripped
            continue
        raised = _VALIDATION.match(stripped)
        if raised:
            found.append(raised["text"])
        elif "[type=" in line:
            found.append(f"{location}: {stripped}" if location else stripped)
        elif found:
            # A message of several lines.
            found[-1] += f"\n{stripped}"
    return "\n".join(found)


def _line(raw: str, now: float) -> Line:
    text = _REPEATED.sub("", _ESCAPE.sub("", raw[:LINE_CHARACTERS]).rstrip("\r\n"))
    # A progress bar rewrites its line.
    text = text.rpartition("\r")[2]
    whole = text
    for pattern in _OUTSIDE:
        found = pattern.match(text)
        if found:
            text = text[found.end() :]
    source, level, place, moment = "", "", "", None
    while found := _PROCESS.match(text) or _RANK.match(text):
        source, text = found[1], text[found.end() :]
    for pattern in (_VLLM, _DATED, _TORCH, _NCCL, _ONECCL, _ROCM, _UVICORN):
        found = pattern.match(text)
        if not found:
            continue
        words = found.groupdict()
        level = _LEVELS.get(words["level"], words["level"])
        place = (words.get("place") or "").strip()
        source = source or (f"pid={words['pid']}" if words.get("pid") else "")
        if pattern is _NCCL or pattern is _ONECCL:
            # A library's own line, not the program's: its level is its own judgement.
            place = LIBRARIES[pattern is _ONECCL]
            source += f" {place}"
        moment = _moment(words, now)
        text = text[found.end() :]
        group = _GROUP.match(text) if pattern is _TORCH else None
        text = text[group.end() :] if group else text
        break
    return Line(text, source, level, place, whole[: len(whole) - len(text)], moment)


def _moment(words: dict[str, str | None], now: float) -> float | None:
    """Return when a line was written, by the node's own clock and time zone; None without a valid time."""
    if not words.get("clock"):
        return None
    numbers = (words.get("year") or time.localtime(now).tm_year, words["month"], words["day"])
    written = "{}-{}-{} {}".format(*numbers, words["clock"])
    try:
        parsed = time.strptime(written, "%Y-%m-%d %H:%M:%S")
        moment = time.mktime(parsed)
        if moment > now + 86400 and not words.get("year"):
            moment = time.mktime((parsed.tm_year - 1, *parsed[1:]))
    except (ValueError, OverflowError):
        return None
    return moment
