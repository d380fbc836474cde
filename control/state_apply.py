"""Apply states to nodes and report every state as it ends."""

import time
from collections.abc import Sequence
from typing import Any

import salt.utils.event
from salt.exceptions import CommandExecutionError

from control.nodes import Nodes, Options, progress

# A minion beside a busy engine takes its time.
PING_SECONDS = 60
APPLY_SECONDS = 1800


def apply(opts: Options, nodes: Nodes, names: Sequence[str], test: bool, states: str | None) -> dict[str, Any]:
    """Run state.apply on nodes, reporting every state as it ends; return a summary by node."""
    started = time.monotonic()
    by_minion = {nodes.minion(name): name for name in names}
    # A job that is sent to a minion that does not listen is lost, and would be waited for to the end.
    silent = sorted(set(names) - nodes.answering(names, PING_SECONDS))
    if silent:
        raise CommandExecutionError(
            f"{', '.join(silent)} did not answer in {PING_SECONDS} s: is the minion up? (cluster status)"
        )
    # Another may have given the minion a state to apply, as a person with Salt's own command: wait for it, do not fail.
    keywords: dict[str, Any] = {"test": bool(test), "state_events": True, "queue": True}
    if states:
        # Only a highstate brings our modules to the node by itself.
        keywords["sync_mods"] = "all"
    with salt.utils.event.get_event("master", sock_dir=opts["sock_dir"], opts=opts, listen=True) as bus:
        bus.subscribe("salt/job/")
        job = nodes.client.run_job(
            list(by_minion),
            "state.apply",
            [states] if states else [],
            tgt_type="list",
            kwarg=keywords,
            timeout=15,
            listen=False,
        )
        if not job:
            raise CommandExecutionError("no node took the job: is the minion up? (cluster status)")
        waiting = set(names)
        results: dict[str, Any] = {}
        prefix = f"salt/job/{job['jid']}/"
        while waiting and time.monotonic() < started + APPLY_SECONDS:
            event = bus.get_event(wait=1.0, tag="salt/job/", full=True, auto_reconnect=True)
            if not event or not event["tag"].startswith(prefix):
                continue
            kind, _, rest = event["tag"].removeprefix(prefix).partition("/")
            name = by_minion.get(rest.partition("/")[0])
            if kind == "prog" and name:
                state = event["data"]["data"].get("ret", {})
                progress("applying", name, str(state.get("__id__") or state.get("name") or ""), started)
            elif kind == "ret" and name in waiting:
                waiting.discard(name)
                results[name] = _summary(event["data"].get("return"))
                progress("applied", name, f"{len(results[name]['changed'])} changes", started)
    if waiting:
        raise CommandExecutionError(f"{', '.join(sorted(waiting))} did not finish state.apply in {APPLY_SECONDS} s")
    return results


def _summary(returned: object) -> dict[str, Any]:
    """Fold what state.apply returned into what changed, what would, and what failed."""
    if not isinstance(returned, dict):
        errors = returned if isinstance(returned, list) else [str(returned)]
        return {"states": 0, "changed": [], "failed": [{"id": "compile", "comment": " ".join(map(str, errors))}]}
    ordered = sorted(returned.values(), key=lambda state: state.get("__run_num__", 0))
    return {
        "states": len(ordered),
        "changed": [
            {
                "id": state.get("__id__", state["name"]),
                "name": state["name"],
                "comment": state["comment"],
                "changes": state["changes"],
            }
            for state in ordered
            if (state["changes"] and state["result"] is not False) or state["result"] is None
        ],
        "failed": [
            {"id": state.get("__id__", state["name"]), "name": state["name"], "comment": state["comment"]}
            for state in ordered
            if state["result"] is False
        ],
    }
