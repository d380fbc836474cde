"""Apply states to nodes and report every state as it ends."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

from control import sealed_answers
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

    def show(minion: str, event: Mapping[str, Any]) -> None:
        data = event.get("data")
        state = data.get("ret") if isinstance(data, Mapping) else None
        if minion in by_minion and isinstance(state, Mapping):
            progress("applying", by_minion[minion], str(state.get("__id__") or state.get("name") or ""), started)

    waiting = set(names)
    results: dict[str, Any] = {}
    answers = sealed_answers.ask(
        opts,
        nodes.client,
        by_minion,
        "state.apply",
        [states] if states else [],
        keywords=keywords,
        timeout=APPLY_SECONDS,
        longest=started + APPLY_SECONDS - time.monotonic(),
        on_progress=show,
    )
    for answer in answers:
        name = by_minion[answer.minion]
        waiting.discard(name)
        results[name] = _summary(answer.content)
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
