"""Make the faults one after another under load, and note after each what was seen, how soon, and what was not right."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bottleneck.plan.master import ENGINE_KEY_FILE
from lab import operations
from lab.campaign import invariants
from lab.campaign import load as load_program
from lab.campaign.faults import KINDS, Fault
from lab.campaign.site import STATE_DIRECTORY, Site, wait_for
from lab.layout import CONTROL, LabError

# An engine starts in 40 to 90 s on two cores; the rest is room for a slow machine.
RESTART_SECONDS = 400.0
# What is outlived is over by then: a node is missed after some seconds, and looked after.
OUTLIVED_SECONDS = 150.0
SERVES_SECONDS = 120.0
CLIENTS = 2
LOAD_FILE = "/var/lib/cluster/campaign-load.jsonl"
API_KEY_FILE = f"{STATE_DIRECTORY}/{ENGINE_KEY_FILE}"


@dataclass(frozen=True)
class Result:
    """One fault and its outcome.

    Attributes
    ----------
    hit
        What it hit, in words.
    detected_seconds, stopped_seconds
        From the fault until the control node knew that the deployment did not serve, and until the last of the old
        ranks was gone; None where nothing is restarted.
    failed_seconds
        Until the last of the requests that were under way had failed; None where none did.
    serving_seconds
        Until a request that was sent after the fault was answered.
    cause
        What is on record as the cause.
    violations
        What was not as it must be.
    """

    kind: str
    hit: str
    detected_seconds: float | None
    stopped_seconds: float | None
    failed_seconds: float | None
    serving_seconds: float | None
    cause: str
    violations: tuple[str, ...]


def chosen(seed: int, count: int, kinds: Sequence[str]) -> list[str]:
    """Return the kinds of a campaign in their order: all of them, shuffled, again and again."""
    chance = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        found += chance.sample(list(kinds), len(kinds))
    return found[:count]


def conduct(
    name: str, seed: int, count: int, kinds: Sequence[str], report: Callable[[str], None] = lambda _: None
) -> Iterator[Result]:
    """Make the faults and yield the outcome of each.

    Raises
    ------
    LabError
        When the lab is not up, serves nothing, or a kind is not known.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise LabError(f"no kind of fault {unknown[0]!r}; expected some of: {', '.join(KINDS)}", code=2)
    site = Site(name)
    if not site.deployment():
        raise LabError(f"nothing is deployed in lab {name}", f"cluster deploy --lab {name}", code=4)
    with load(site) as outcomes:
        if wait_for(lambda: any(each["error"] is None for each in outcomes()), SERVES_SECONDS) is None:
            raise LabError("the deployment does not answer", "cluster status")
        before = invariants.footprint(site)
        for number, kind in enumerate(chosen(seed, count, kinds)):
            report(f"{number + 1}/{count}: {kind}")
            yield _one(site, KINDS[kind], random.Random(f"{seed}/{number}"), before, outcomes)


@contextmanager
def load(site: Site) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Send requests for as long as this lasts; gives a function that returns the outcomes so far."""
    head = next(each for each in site.deployment()["workers"] if each["head"])
    url = f"http://{head['api_address']}:{head['api_port']}"
    program = str(load_program.__file__)
    path = site.path(CONTROL, LOAD_FILE)
    path.unlink(missing_ok=True)
    path.touch()
    argv = [sys.executable, "-I", program, url, site.profile.model.name, API_KEY_FILE, LOAD_FILE, str(CLIENTS)]
    process = subprocess.Popen(
        operations.command(site.name, CONTROL, argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def outcomes() -> list[dict[str, Any]]:
        found = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # it is being written
        return found

    try:
        yield outcomes
    finally:
        # `nsenter` passes no signal on: what it started is ended by name of its program, in the lab's own group.
        for each in site.processes(CONTROL):
            if program in each.command:
                site.signal([each], 9)
        process.kill()
        process.wait()
        path.unlink(missing_ok=True)


def _one(
    site: Site,
    fault: Fault,
    chance: random.Random,
    before: invariants.Footprint,
    outcomes: Callable[[], list[dict[str, Any]]],
) -> Result:
    entries, since = len(site.audit()), invariants.telemetry(site)
    ranks = _ranks(site)
    if fault.restarts:
        # Those of the faults before are not of this one, and after three in an hour nothing is started again.
        site.runner("recover.forget_restarts")
    began = time.time()
    try:
        hit = fault.act(site, chance)
    except (LabError, OSError, subprocess.SubprocessError) as error:
        return Result(fault.kind, "", None, None, None, None, "", (f"it could not be made: {error}",))
    violations: list[str] = []
    detected = stopped = None
    cause = ""
    if fault.restarts:
        gone = wait_for(lambda: not ranks & _ranks(site), RESTART_SECONDS)
        stopped = None if gone is None else time.time() - began
        if fault.undo:
            fault.undo(site)
        wait_for(lambda: bool(_restarts(site, entries)), RESTART_SECONDS)
        found = _restarts(site, entries)
        if not found:
            violations.append(f"no restart on record in {RESTART_SECONDS:.0f} s")
        else:
            detected, cause = float(found[0].get("detected", found[0]["time"])) - began, str(found[0]["cause"])
            if found[-1]["result"] != "serves again":
                violations.append(f"the restart {found[-1]['result']}")
            if not any(word in cause for word in fault.causes):
                violations.append(f"the cause on record names none of {', '.join(fault.causes)}: {cause}")
    serving = wait_for(lambda: _served(outcomes(), began) is not None, SERVES_SECONDS)
    served = _served(outcomes(), began)
    if serving is None or served is None:
        violations.append(f"no request was answered in {SERVES_SECONDS:.0f} s")
    violations += _settled(site, since, before)
    if not fault.restarts and _restarts(site, entries):
        violations.append(f"ranks were started again: {_restarts(site, entries)[0]['cause']}")
    return Result(
        fault.kind,
        hit,
        _rounded(detected),
        _rounded(stopped),
        _rounded(_failed(outcomes(), began)),
        _rounded(None if served is None else served - began),
        cause,
        tuple(violations),
    )


def _settled(site: Site, since: invariants.Telemetry, before: invariants.Footprint) -> list[str]:
    """Wait until all is as it must be; return what is not when the time is up."""
    found: list[str] = ["not looked at"]

    def is_settled() -> bool:
        found[:] = invariants.arrives(site, since)
        if not found:
            found[:] = invariants.leaks(before, invariants.footprint(site))
        return not found

    wait_for(is_settled, OUTLIVED_SECONDS)
    status: list[str] = []

    def shows_it() -> bool:
        status[:] = invariants.status_problems(site)
        return not status

    wait_for(shows_it, SERVES_SECONDS)
    return [*found, *status]


def _ranks(site: Site) -> set[int]:
    return {each.pid for node in site.nodes for each in site.processes(node) if "VLLM::" in each.command}


def _restarts(site: Site, entries: int) -> list[dict[str, Any]]:
    return [each for each in site.audit()[entries:] if each["action"] in ("restart", "give up")]


def _served(outcomes: list[dict[str, Any]], since: float) -> float | None:
    """Return when the first request that began after a moment was answered."""
    return min((each["ended"] for each in outcomes if each["began"] > since and each["error"] is None), default=None)


def _failed(outcomes: list[dict[str, Any]], moment: float) -> float | None:
    """Return after how long the last of the requests that were under way at a moment had failed."""
    ended = [each["ended"] for each in outcomes if each["began"] < moment < each["ended"] and each["error"] is not None]
    return max(ended) - moment if ended else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
