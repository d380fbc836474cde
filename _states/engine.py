"""
Keep an inference engine installed.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__


def __virtual__() -> str:
    return "engine"


def installed(name: str, requirements: str | None, engine: Mapping[str, Any]) -> dict[str, Any]:
    """
    Make sure that the environment at ``name`` is complete.

    name
        directory of the environment
    requirements
        lock file to install it from; None for what has none
    engine
        the accelerator's entry of the engine map
    """
    ret: dict[str, Any] = {
        "name": name,
        "changes": {},
        "result": True,
        "comment": f"{engine['engine']} is installed",
    }
    if __salt__["engine.installed"](name):
        return ret
    if __opts__["test"]:
        return {
            **ret,
            "result": None,
            "changes": {"installed": engine["engine"]},
            "comment": f"{engine['engine']} would be installed from {_origin(engine)}",
        }
    try:
        changed = __salt__["engine.install"](name, requirements, engine)
    except RuntimeError as error:
        return {**ret, "result": False, "comment": str(error)}
    if changed:
        ret["changes"] = {"installed": engine["engine"]}
        ret["comment"] = f"{engine['engine']} was installed from {_origin(engine)}"
    return ret


def _origin(engine: Mapping[str, Any]) -> str:
    if root := engine.get("root_folder"):
        return f"Debian {root['suite']}"
    if archive := engine.get("archive"):
        return str(archive["url"])
    return ", ".join(engine.get("node_packages") or [str(engine["lock"])])


def unavailable(name: str, reason: str) -> dict[str, Any]:
    """
    Fail with the reason why this engine cannot be installed, unless somebody has put it there.

    name
        directory of the environment
    reason
        what is missing, from the engine map
    """
    if __salt__["engine.installed"](name):
        return {"name": name, "changes": {}, "result": True, "comment": f"an engine is at {name}, put there by hand"}
    comment = f"this kind of accelerator has no engine that can be installed: {reason}"
    return {"name": name, "changes": {}, "result": False, "comment": comment}
