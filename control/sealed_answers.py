"""Ask nodes by a job of Salt's, and take only answers that the asked node has sealed with its own key.

Salt takes a return for that of whatever minion it names: an accepted node can name another, in a list of events or as
a resource. So everything on the control node that acts on an answer asks here. What does not hold is counted, named in
the log and waited past: it neither stands for the node's answer nor keeps that from being taken.
"""

from __future__ import annotations

import base64
import collections
import logging
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import salt.payload
import salt.utils.event
from salt.exceptions import SaltDeserializationError

from bottleneck import node_seal
from control import node_keys, records, refused_answers
from control.records import Options

log = logging.getLogger(__name__)

EXECUTOR = "sealed"
# Until the master has published a job.
PUBLISH_SECONDS = 15
# How long a node may take to say whether it still works on a job.
STILL_WORKS_SECONDS = 10.0
# What a node that works on nothing has sent arrives within this.
SETTLE_SECONDS = 1.0
LONGEST_TEXT = 64 * 2**20
# Of a node that has not proven its key: until it has taken over our modules and the key, and answered with it.
INTRODUCTION_SECONDS = 60.0
# A minion loads what was just synchronised while the next job comes: it is asked again this soon.
FIRST_SEALED_SECONDS = 15.0


class AnswerError(ValueError):
    """An answer is not the asked node's own; the text says why."""


@dataclass(frozen=True)
class Answer:
    """An answer as its node sealed it; `failed` when its function raised or said so."""

    minion: str
    content: Any
    failed: bool


def opened(opts: Options, minion: str, returned: object) -> dict[str, Any]:
    """Return what a node sealed, when a return is its own.

    Parameters
    ----------
    minion : str
        The node that it is said to be of.
    returned : object
        A job's return, as the bus had it.

    Returns
    -------
    dict
        `minion`, `job`, `nonce`, `function`, `content` and `failed`.

    Raises
    ------
    AnswerError
        When it has no seal of that node.
    """
    parts = returned.split(":", 2) if isinstance(returned, str) and len(returned) <= LONGEST_TEXT else []
    if len(parts) != 3 or parts[0] != EXECUTOR:
        raise AnswerError("without a seal: it is another's, or the node is not configured (cluster apply)")
    try:
        if not node_keys.seal_holds(opts, node_seal.ANSWER, minion, parts[2], parts[1]):
            raise AnswerError("with a wrong seal")
    except (OSError, records.RecordError) as error:
        raise AnswerError(f"whose seal cannot be checked: {error}") from error
    try:
        found = salt.payload.loads(base64.b64decode(parts[2], validate=True))
    except (ValueError, SaltDeserializationError) as error:
        raise AnswerError(f"that cannot be read: {error}") from None
    if not isinstance(found, dict) or found.get("minion") != minion:
        raise AnswerError("that names another node")
    return found


def ask(
    opts: Options,
    client: Any,
    minions: Iterable[str],
    function: str,
    arguments: Sequence[Any] = (),
    *,
    keywords: Mapping[str, Any] | None = None,
    timeout: float = 15,
    patient: bool = True,
    longest: float | None = None,
    on_progress: Callable[[str, Mapping[str, Any]], None] | None = None,
    refused: collections.Counter[tuple[str, str]] | None = None,
) -> Generator[Answer, None, None]:
    """Call a function on nodes; yield each one's answer as it comes. Those of whom none comes are silent.

    Parameters
    ----------
    client
        Salt's client on this master.
    timeout : float
        Seconds without an answer after which a node is asked whether it still works on the job.
    patient : bool
        Whether it is waited for such a node.
    longest : float, optional
        Seconds after which nobody is waited for.
    on_progress : callable, optional
        Called with a minion's id and an event of its progress, which anyone can have sent: for the eye.
    refused : Counter, optional
        Takes up how many answers in a minion's name were refused, and why.
    """
    nonce = secrets.token_hex(16)
    refused = collections.Counter() if refused is None else refused
    end = float("inf") if longest is None else time.monotonic() + longest
    with salt.utils.event.get_event("master", sock_dir=opts["sock_dir"], opts=opts, listen=True) as bus:
        job = client.run_job(
            sorted(minions),
            function,
            list(arguments),
            tgt_type="list",
            kwarg=dict(keywords) if keywords else None,
            timeout=PUBLISH_SECONDS,
            listen=False,
            module_executors=[EXECUTOR],
            executor_opts={"nonce": nonce},
        )
        try:
            yield from _collected(
                opts, client, bus, job or {}, _Question(function, nonce), timeout, patient, end, on_progress, refused
            )
        finally:
            _tell(opts, function, refused)


@dataclass(frozen=True)
class _Question:
    function: str
    nonce: str


def _collected(
    opts: Options,
    client: Any,
    bus: Any,
    job: Mapping[str, Any],
    question: _Question,
    timeout: float,
    patient: bool,
    end: float,
    on_progress: Callable[[str, Mapping[str, Any]], None] | None,
    refused: collections.Counter[tuple[str, str]],
) -> Iterator[Answer]:
    waiting, gone = set(job.get("minions", ())), set[str]()
    prefix = f"salt/job/{job.get('jid')}/"
    deadline, settled = time.monotonic() + timeout, 0.0
    while waiting - gone or (waiting and time.monotonic() < settled):
        now = time.monotonic()
        if now >= end:
            return
        if now >= deadline and waiting - gone:
            if not patient:
                return
            gone = waiting - _working(opts, client, waiting, job["jid"])
            settled = time.monotonic() + SETTLE_SECONDS
            deadline = time.monotonic() + timeout
        left = max(0.05, min(1.0, deadline - time.monotonic(), end - time.monotonic()))
        event = bus.get_event(wait=left, tag=prefix, full=True, auto_reconnect=True)
        if not event or not isinstance(event["data"], Mapping):
            continue
        kind, _, rest = event["tag"].removeprefix(prefix).partition("/")
        minion = rest.partition("/")[0]
        if kind == "prog" and on_progress is not None:
            on_progress(minion, event["data"])
        elif kind == "ret" and minion in waiting:
            try:
                answer = _of_question(opened(opts, minion, event["data"].get("return")), job["jid"], question)
            except AnswerError as error:
                refused[minion, str(error)] += 1
                continue
            waiting.discard(minion)
            yield answer


def _of_question(found: Mapping[str, Any], jid: str, question: _Question) -> Answer:
    """Return an answer when it is one to this job: a node's own older one could have been kept and sent again."""
    asked = {"job": jid, "nonce": question.nonce, "function": question.function}
    if any(found.get(name) != value for name, value in asked.items()) or "content" not in found:
        raise AnswerError("to another question")
    return Answer(str(found["minion"]), found["content"], bool(found.get("failed")))


def _working(opts: Options, client: Any, minions: Iterable[str], jid: str) -> set[str]:
    """Return which nodes still work on a job, by their own sealed word."""
    answers = ask(opts, client, minions, "saltutil.find_job", [jid], timeout=STILL_WORKS_SECONDS, patient=False)
    return {each.minion for each in answers if isinstance(each.content, Mapping) and each.content.get("jid") == jid}


def _tell(opts: Options, function: str, refused: Mapping[tuple[str, str], int]) -> None:
    if not refused:
        return
    for (minion, reason), count in refused.items():
        log.warning("Refused: %d answers to %s in the name of %s, %s", count, function, minion, reason)
    by_minion: collections.Counter[str] = collections.Counter()
    for (minion, _), count in refused.items():
        by_minion[minion] += count
    refused_answers.note(opts, by_minion)


def present(
    opts: Options,
    client: Any,
    minions: Iterable[str],
    timeout: float,
) -> set[str]:
    """Return which minions are there, by what they sealed.

    One that has not proven its key, or has lost it, is given it first, when something answers in its name.
    """
    wanted = set(minions)
    proven = {minion for minion in wanted if node_keys.is_proven(opts, minion)}
    refused: collections.Counter[tuple[str, str]] = collections.Counter()
    found = _pinged(opts, client, proven, timeout, refused=refused) if proven else set()
    there = {minion for minion, _ in refused} - found
    if wanted - proven:
        there |= _published(opts, client, wanted - proven, "test.ping", time.monotonic() + timeout)
    return found | introduce(opts, client, there, INTRODUCTION_SECONDS)


def may_be_up(opts: Options, client: Any, minion: str, timeout: float) -> bool:
    """Return whether a node may be up, for whoever would give its place to another machine.

    One that has proven its key is up when it has sealed an answer. Of one that has enrolled and is not configured yet,
    any answer in its name counts: it is better kept out a while by another than replaced while it runs.
    """
    if node_keys.is_proven(opts, minion):
        return minion in _pinged(opts, client, [minion], timeout)
    return minion in _published(opts, client, [minion], "test.ping", time.monotonic() + timeout)


def introduce(opts: Options, client: Any, minions: Iterable[str], timeout: float) -> set[str]:
    """Have minions take over our modules and their keys; return those that prove theirs within `timeout` seconds.

    The answers to the first two jobs are Salt's own and are not believed: they say when to go on. What counts is the
    ping after them.
    """
    missing, end = set(minions), time.monotonic() + timeout
    there, found = missing and _published(opts, client, missing, "saltutil.sync_all", end), set[str]()
    while there - found and time.monotonic() < end:
        _published(opts, client, there - found, "node_key.learn", end)
        patience = max(1.0, min(FIRST_SEALED_SECONDS, end - time.monotonic()))
        found |= _pinged(opts, client, there - found, patience, patient=False)
    return found


def _pinged(opts: Options, client: Any, minions: Iterable[str], timeout: float, **more: Any) -> set[str]:
    answers = ask(opts, client, minions, "test.ping", timeout=timeout, **more)
    return {each.minion for each in answers if each.content is True and not each.failed}


def _published(opts: Options, client: Any, minions: Iterable[str], function: str, end: float) -> set[str]:
    """Publish a job of Salt's own; return in whose names something came back until `end`, which anyone can send."""
    found: set[str] = set()
    with salt.utils.event.get_event("master", sock_dir=opts["sock_dir"], opts=opts, listen=True) as bus:
        wanted = sorted(minions)
        job = client.run_job(wanted, function, [], tgt_type="list", timeout=PUBLISH_SECONDS, listen=False) or {}
        prefix = f"salt/job/{job.get('jid')}/ret/"
        while found < set(job.get("minions", ())) and (left := end - time.monotonic()) > 0:
            event = bus.get_event(wait=min(left, 1.0), tag=prefix, full=True, auto_reconnect=True)
            if event:
                found.add(event["tag"].removeprefix(prefix))
    return found & set(wanted)
