"""Tell the gateway which heads take requests, by its own commands: none touches what other heads have under way.

The gateway is HAProxy on the control node, in front of every node that may be a head (`bottleneck.plan.gateway`). Heads
that answer its health check take requests. What is said here is on top of that: maintenance, no new requests, and
whether a head is to come back, for which new requests wait.
"""

from __future__ import annotations

import csv
import io
import logging
import re
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

from bottleneck.plan import gateway as plan
from control import engine_key
from control.records import Options

# The master's option for where the gateway takes commands.
OPTION = "cluster_gateway_socket"
ANSWER_SECONDS = 2.0
NEXT = "cluster doctor; in a lab: cluster lab status"
LONGEST_ANSWER = 1 << 20

log = logging.getLogger(__name__)


class GatewayError(CommandExecutionError):  # type: ignore[misc]  # Salt is not typed
    """The gateway does not answer, or refuses a command; the text says which, and what to look at."""


def serve(opts: Options, nodes: Iterable[str]) -> str | None:
    """Have heads take requests, and others be awaited when they end; return why that failed, or None.

    The key is given to the gateway anew: a person may have put another in its place.
    """
    states = [f"set server heads/{node} state ready" for node in nodes]
    return _apply(opts, [*states, "set server awaited/head state ready"], renewed_key=engine_key.key(opts))


def expect(opts: Options) -> str | None:
    """Have new requests wait for a head that is about to start; return why that failed, or None."""
    return _apply(opts, ["set server awaited/head state ready"])


def drain(opts: Options, nodes: Iterable[str]) -> str | None:
    """Have heads take nothing new while requests under way end; return why that failed, or None."""
    states = [f"set server heads/{node} state drain" for node in nodes]
    return _apply(opts, ["set server awaited/head state maint", *states])


def withdraw(opts: Options, nodes: Iterable[str], awaited: bool) -> str | None:
    """End what heads have under way, and have them take nothing until they `serve`; return why that failed, or None.

    awaited
        whether they are to come back: new requests wait for it, and are refused at once otherwise
    """
    commands = [f"set server awaited/head state {'ready' if awaited else 'maint'}"]
    for node in nodes:
        commands += [f"set server heads/{node} state maint", f"shutdown sessions server heads/{node}"]
    return _apply(opts, commands)


def status(opts: Options) -> dict[str, Any]:
    """Return each head's state as the gateway sees it, with what it has under way; or the reason that it is not known.

    ``heads`` maps a node to ``state`` (``UP``, ``DOWN``, ``MAINT``, ``DRAIN``) and ``requests``.
    """
    try:
        (text,) = _ask(opts, ["show stat heads 4 -1"])
        rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
        found = {row["svname"]: {"state": row["status"].split()[0], "requests": int(row["scur"])} for row in rows}
    except (GatewayError, KeyError, ValueError, IndexError) as error:
        return {"up": False, "reason": f"{error}", "heads": {}}
    return {"up": True, "reason": None, "heads": found}


def _apply(opts: Options, commands: Sequence[str], renewed_key: str | None = None) -> str | None:
    """Give commands, which are silent where they succeed; return what failed, which is in the master's log as well."""
    try:
        if renewed_key is not None:
            commands = [*_key_commands(opts, renewed_key), *commands]
        # A key is shown to nobody.
        failed = [
            f"{command.partition(' #')[0]}: {answer}"
            for command, answer in zip(commands, _ask(opts, commands), strict=True)
            if answer
        ]
        problem = "; ".join(failed)
    except GatewayError as error:
        problem = str(error)
    if problem:
        log.warning("%s", problem)
    return problem or None


def _key_commands(opts: Options, key: str) -> list[str]:
    """Return the commands that put a key in the place of the one before, in whatever file that was read from."""
    (text,) = _ask(opts, ["show acl"])
    found = re.search(r"^(\d+) \(\S+\)", text, re.MULTILINE)
    if found is None:
        raise GatewayError(
            f"the gateway has no list of keys, but {text!r}; expected one with a file's name; next: {NEXT}"
        )
    escaped = re.sub(r"([\\;])", r"\\\1", key)
    return [f"clear acl #{found[1]}", f"add acl #{found[1]} {escaped}"]


def _ask(opts: Options, commands: Sequence[str]) -> list[str]:
    """Return the answer to each command."""
    path = str(opts.get(OPTION, plan.SOCKET))
    try:
        return [_answer(path, command) for command in commands]
    except OSError as error:
        raise GatewayError(f"the gateway does not answer at {path}: {error}; next: {NEXT}") from error


def _answer(path: str, command: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(path)
        connection.sendall(command.encode() + b"\n")
        answer = b""
        while len(answer) < LONGEST_ANSWER and (piece := connection.recv(65536)):
            answer += piece
    return answer.decode("utf-8", "replace").strip()
