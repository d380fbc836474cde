"""Keep the key of the engines' API: made once on this control node, and brought by all who ask an engine from here.

It is in a file that root alone can read, and in the pillar of the nodes, which hand it to their engines. It stands on
no command line, in no job's arguments and in no record.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bottleneck.plan.master import ENGINE_KEY_FILE
from control import engine, records, shared_secrets
from control.nodes import Options

# The load generator's own name for it.
GENERATOR_VARIABLE = "OPENAI_API_KEY"


def path(opts: Options) -> Path:
    """Return the file that the key is in; `opts` are the master's."""
    return records.path_of(opts, ENGINE_KEY_FILE)


def key(opts: Options) -> str:
    """Return the key, made at its first use.

    Raises
    ------
    RecordError
        When its file holds something else.
    """
    found = shared_secrets.kept(path(opts), lambda: shared_secrets.derived(opts, "engine API").hex().encode() + b"\n")
    text = found.decode("ascii", "replace").strip()
    if len(text) < shared_secrets.LEAST_CHARACTERS or not text.isprintable() or " " in text:
        raise records.RecordError(
            f"{path(opts)}: expected one word of {shared_secrets.LEAST_CHARACTERS} characters or more; take it away,"
            " then cluster undeploy and cluster deploy"
        )
    return text


def asking(opts: Options) -> Callable[[str, Mapping[str, Any] | None, float], str]:
    """Return `engine.ask` that brings the key."""
    return functools.partial(engine.ask, key=key(opts))
