"""
Run a job's function and seal its answer with this node's own key.

The control node asks for this executor with every job whose answer it acts on. Salt does not say who answered a job:
one node can answer in another's name. A sealed answer names the node, the job, the control node's nonce and the
function, and only this node and the control node can make it.
"""

import base64
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import salt.payload

if TYPE_CHECKING:
    from loader_dunders import __salt__

PREFIX = "sealed"
# Of a result that is a mapping, what says that it is a failure: as Salt's minion reads it.
OUTCOMES = ("result", "success")


def execute(
    opts: Mapping[str, Any],
    data: Mapping[str, Any],
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> str:
    """
    Call a function; return its answer packed and sealed, as text.

    A function that raises has an answer, too: the traceback, marked as a failure.
    """
    try:
        content = func(*args, **kwargs)
        failed = _is_failure(content)
    except Exception:  # whatever a function raises is what the control node wants to know
        content, failed = traceback.format_exc(), True
    return _sealed(opts, data, content, failed)


def _is_failure(content: Any) -> bool:
    return isinstance(content, Mapping) and not all(content.get(name, True) for name in OUTCOMES)


def _sealed(opts: Mapping[str, Any], data: Mapping[str, Any], content: Any, failed: bool) -> str:
    answer = {
        "minion": opts["id"],
        "job": data["jid"],
        "nonce": (data.get("executor_opts") or {}).get("nonce"),
        "function": data["fun"],
        "content": content,
        "failed": failed,
    }
    text = base64.b64encode(salt.payload.dumps(answer)).decode("ascii")
    # After the function: one that changes the key answers with the new one. By the module, since Salt's loader of
    # executors does not find what is in `_utils`.
    return f"{PREFIX}:{__salt__['node_key.seal'](text)}:{text}"
