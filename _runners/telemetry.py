"""
Turn windows of samples into verdicts, export them, show the present rates.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

from bottleneck import atomic_files
from bottleneck.diagnosis.causes import DECIDED
from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs import ceilings
from bottleneck.runs.run import window_run
from bottleneck.telemetry import batch_checks
from bottleneck.telemetry.batches import write_batches
from bottleneck.telemetry.database import StoreError
from bottleneck.telemetry.recent_rates import recent
from bottleneck.telemetry.store import Store
from control import records
from control.nodes import Nodes, profile_of

if TYPE_CHECKING:
    from loader_dunders import __context__, __opts__

    from bottleneck.profile import Profile

log = logging.getLogger(__name__)

# What is shown beyond the time from one sending to the next.
RECENT_SECONDS = 5.0
# Readings of the engine just outside a window bound what happened inside it.
MARGIN_SECONDS = 3.0
# Unix seconds of the year 9999.
LATEST = 253_402_300_800.0
# A window is as long as the profile says; one that was made under the profile before may be longer.
WIDEST_WINDOWS = 4.0
# No deploy waits longer: what is on record after that was left by one that was killed.
LONGEST_START_SECONDS = 900.0


def aggregate(window: Mapping[str, Any]) -> dict[str, Any]:
    """
    Make a window's batches into a ledger and a verdict, and store them (called by the reactor).

    CLI Example:

    .. code-block:: bash

        salt-run telemetry.aggregate '{"window": "1795469400", "start": 1795469400, "end": 1795469410}'

    window
        ``window`` (its id), ``start`` and ``end`` (unix seconds)
    """
    start, end = _moment(window, "start"), _moment(window, "end")
    _check_window(start, end, _profile().telemetry.window_seconds, time.time())
    with _store() as store:
        batches = store.batches(start - MARGIN_SECONDS, end + MARGIN_SECONDS)
        record, starting = records.read(__opts__, records.DEPLOYMENT), _starting(start, end)
        if starting:
            # A start is one thing from its order on: one window of it shows little.
            record, start = starting, float(starting["began"])
            batches = store.batches(start - MARGIN_SECONDS, end + MARGIN_SECONDS)
        elif not any(batch.get("engine") for batch in batches):
            return {"window": window.get("window"), "class": None, "reason": "no engine was read in this window"}
        run = window_run(
            batches,
            (start, end),
            profile=_profile(),
            ceilings=_ceilings(),
            record=records.deployment(record) if record else None,
            identity=f"window-{window.get('window')}",
            start=bool(starting),
        )
        verdict = analyse(run).to_json()
        if starting and verdict["class"] in DECIDED:
            return {"window": window.get("window"), "class": None, "reason": "the engine starts, and nothing slows it"}
        described = {
            "window": str(window.get("window")),
            "start": start,
            "end": end,
            "nodes": window.get("nodes") or [],
            "deployment": record.get("deployment"),
            **_change(store.latest_verdict(_soon()), verdict, start),
        }
        store.put_verdict(described, verdict)
    return {key: value for key, value in described.items() if key != "nodes"} | _named(verdict)


def _change(latest: Mapping[str, Any] | None, verdict: Mapping[str, Any], start: float) -> dict[str, Any]:
    """Return since when the bottleneck has been this one (unix seconds), and which one was before, if any."""
    if latest is None:
        return {"since": start, "before": None}
    if _named(latest["verdict"]) != _named(verdict):
        return {"since": start, "before": _named(latest["verdict"])}
    return {"since": latest["window"].get("since", start), "before": latest["window"].get("before")}


def _starting(start: float, end: float) -> dict[str, Any] | None:
    """Return what was starting all through a window, or None."""
    record = records.read(__opts__, records.STARTING)
    began = record.get("began", end)
    return record if began <= start and end - began <= LONGEST_START_SECONDS and not record.get("ended") else None


def revive(node: str) -> dict[str, Any]:
    """
    Start a silent node's sampler again (called by the reactor when a node is lost, and again while it stays so).

    CLI Example:

    .. code-block:: bash

        salt-run telemetry.revive node0

    A node falls silent when it is gone, when its minion is, or when only its sampler has ended.
    The last can be mended: the minion starts it again, also when it runs and sends nothing.
    """
    nodes = Nodes(__opts__)
    job = nodes.client.cmd_async(nodes.minion(node), "telemetry.revive")
    return {"node": node, "job": job or None}


def latest() -> dict[str, Any]:
    """
    Return the present rates of every node, link and engine, and the newest verdict.

    CLI Example:

    .. code-block:: bash

        salt-run telemetry.latest
    """
    with _store() as store:
        return _latest(store)


def watch(interval: float = 2.0) -> dict[str, Any]:
    """
    Report the present rates again and again, as progress lines, until interrupted.

    CLI Example:

    .. code-block:: bash

        salt-run telemetry.watch interval=2
    """
    with _store() as store:
        try:
            while True:
                print("@progress " + json.dumps(_latest(store)), file=sys.stderr, flush=True)
                time.sleep(max(0.2, float(interval)))
        except BrokenPipeError:
            # Nobody listens any more; the interpreter would complain at its end about what it could not flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return {}


def status() -> dict[str, Any]:
    """
    Return how far each node's record reaches, and where the record is.

    CLI Example:

    .. code-block:: bash

        salt-run telemetry.status
    """
    profile, now = _profile(), time.time()
    with _store() as store:
        seen, verdict = store.last_seen(), store.latest_verdict(_soon())
    deadline = profile.lost_after_seconds
    ages = {name: now - seen[name] if name in seen else None for name in profile.nodes}
    return {
        "time": now,
        "nodes": {
            name: {
                "last_seen": seen.get(name),
                "age_seconds": age,
                "up": age is not None and age <= deadline,
            }
            for name, age in ages.items()
        },
        "store": {"path": __opts__["cluster_store"], "bytes": os.path.getsize(__opts__["cluster_store"])},
        "exporter": {"address": profile.control.address, "port": profile.telemetry.exporter_port},
        "verdict": verdict and {"window": verdict["window"], **_named(verdict["verdict"])},
    }


def export(start: float, end: float, path: str) -> dict[str, Any]:
    """
    Write the batches of an interval, one a line, as ``samples.jsonl.gz`` of a run.

    CLI Example:

    .. code-block:: bash

        salt-run telemetry.export 1795469400 1795469460 /var/lib/cluster/runs/example/samples.jsonl.gz
    """
    with _store() as store:
        batches = store.batches(float(start), float(end))
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_files.replacing(Path(path)) as partial:
        write_batches(partial, batches)
    counts: dict[str, int] = {}
    for batch in batches:
        counts[batch["node"]] = counts.get(batch["node"], 0) + 1
    return {"path": path, "batches": len(batches), "nodes": counts}


def history(limit: int = 20) -> dict[str, Any]:
    """
    Return the verdicts of the last windows, the newest first.

    CLI Example:

    .. code-block:: bash

        salt-run telemetry.history limit=5
    """
    with _store() as store:
        return {"verdicts": store.verdict_history(limit=int(limit))}


def _latest(store: Store) -> dict[str, Any]:
    profile, now = _profile(), time.time()
    since = now - profile.sampler.send_interval_seconds - RECENT_SECONDS
    result = recent(store.batches(since, now + RECENT_SECONDS), profile, now)
    if any(node["age_seconds"] is None for node in result["nodes"].values()):
        for name, moment in store.last_seen().items():
            if name in result["nodes"] and result["nodes"][name]["age_seconds"] is None:
                result["nodes"][name]["age_seconds"] = now - moment
    return {**result, "verdict": store.latest_verdict(_soon())}


def _named(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes two verdicts the same: class and place."""
    where = verdict.get("where") or {}
    return {"class": verdict.get("class"), "node": where.get("node"), "link": where.get("link")}


def _soon() -> float:
    """Return until when a window may end and be of now."""
    return time.time() + batch_checks.AHEAD_SECONDS


def _check_window(start: float, end: float, width: float, now: float) -> None:
    """Refuse a window that the telemetry engine of this profile does not make: a wide one, or one of the future."""
    longest = WIDEST_WINDOWS * width
    if not 0 < end - start <= longest:
        raise CommandExecutionError(f"window from {start} to {end}: expected more than 0 and at most {longest:g} s")
    if end > now + batch_checks.AHEAD_SECONDS:
        raise CommandExecutionError(f"window from {start} to {end}: it ends {end - now:.0f} s after now ({now:.0f})")


def _moment(window: object, key: str) -> float:
    value = window.get(key) if isinstance(window, dict) else None
    # A whole number of JSON may be larger than any float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LATEST <= value <= LATEST:
        raise CommandExecutionError(f"window {window!r}: {key} is no moment, expected unix seconds")
    return float(value)


def _store() -> Store:
    try:
        return Store(__opts__["cluster_store"])
    except StoreError as error:
        raise CommandExecutionError(str(error)) from error


def _ceilings() -> ceilings.Ceilings | None:
    try:
        return ceilings.load(records.path_of(__opts__, records.CEILINGS), _profile())
    except ceilings.CeilingsError as error:
        raise CommandExecutionError(str(error)) from error


def _profile() -> "Profile":
    """Return the profile; it is read again when its file has changed, because a window comes every few seconds."""
    path = __opts__["cluster_profile"]
    changed = os.stat(path).st_mtime_ns
    if __context__.get("telemetry.profile", (None, None))[0] != (path, changed):
        __context__["telemetry.profile"] = ((path, changed), profile_of(__opts__))
    profile: Profile = __context__["telemetry.profile"][1]
    return profile
