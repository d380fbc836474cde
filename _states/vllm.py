"""
Keep a vLLM worker running or stopped on this node.
"""

import time

POLL_SECONDS = 1.0


def __virtual__():
    return "vllm"


def running(name, worker, engine, timeout=300):
    """
    Make sure that the worker runs and is ready.

    name
        of the worker
    worker
        its specification, as ``vllm.start`` takes it
    engine
        the accelerator's entry of the engine map
    timeout
        seconds until it must be ready
    """
    ret = {"name": name, "changes": {}, "result": True, "comment": f"worker {name} is ready"}
    seen = __salt__["vllm.status"](name)
    if seen["stage"] == "ready":
        return ret
    if __opts__["test"]:
        return {
            **ret,
            "result": None,
            "changes": {"worker": {"old": seen["stage"], "new": "ready"}},
            "comment": f"worker {name} would be started",
        }
    before = seen["stage"]
    try:
        __salt__["vllm.start"](worker, engine)
    except RuntimeError as error:
        return {**ret, "result": False, "comment": str(error)}
    deadline = time.monotonic() + float(timeout)
    while time.monotonic() < deadline:
        seen = __salt__["vllm.status"](name)
        if seen["stage"] == "ready":
            return {**ret, "changes": {"worker": {"old": before, "new": "ready"}}}
        if seen["stage"] == "failed":
            return {**ret, "result": False, "comment": f"{seen['reason']} (log: {seen['log']})"}
        time.sleep(POLL_SECONDS)
    return {
        **ret,
        "result": False,
        "comment": f"worker {name} is still {seen['stage']} after {timeout} s (log: {seen['log']})",
    }


def stopped(name):
    """
    Make sure that the worker does not run.

    name
        of the worker
    """
    ret = {"name": name, "changes": {}, "result": True, "comment": f"worker {name} is stopped"}
    seen = __salt__["vllm.status"](name)
    if seen["stage"] in ("stopped", "failed"):
        return ret
    ret["changes"] = {"worker": {"old": seen["stage"], "new": "stopped"}}
    if __opts__["test"]:
        return {**ret, "result": None, "comment": f"worker {name} would be stopped"}
    __salt__["vllm.stop"](name)
    return ret
