"""
Keep a model's checkpoint in place.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

# Sources of a checkpoint that the node makes itself.
MADE = ("generate", "dummy")


def __virtual__() -> str:
    return "model"


def present(
    name: str, model: Mapping[str, Any], engine_directory: str, maker: str, server: str | None = None
) -> dict[str, Any]:
    """
    Make sure that the checkpoint is at ``name``.

    name
        directory of the checkpoint
    model
        the profile's model section: ``source`` is ``generate``, ``dummy``, a folder of the node, or a hub name
    engine_directory
        the engine's environment
    maker
        path of make_model.py on the node
    server
        where the control node has models; what it has under this name is fetched from there and not made
    """
    source = model["source"]
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True, "comment": f"{model['name']} is in place"}
    if __salt__["model.present"](name):
        return ret
    if server and not __opts__["test"]:
        try:
            if __salt__["model.fetch"](name, server):
                return {**ret, "changes": {"checkpoint": name}, "comment": f"{model['name']} was fetched from {server}"}
        except RuntimeError as error:
            return {**ret, "result": False, "comment": str(error)}
    if source.startswith("/"):
        return {**ret, "result": False, "comment": f"{name} has no config.json: put the checkpoint there first"}
    if __opts__["test"]:
        verb = "made" if source in MADE else f"fetched from {source}"
        return {
            **ret,
            "result": None,
            "changes": {"checkpoint": name},
            "comment": f"{model['name']} would be {verb}",
        }
    try:
        if source in MADE:
            changed = __salt__["model.make"](name, model, engine_directory, maker)
        else:
            changed = __salt__["model.download"](name, source, engine_directory)
    except RuntimeError as error:
        return {**ret, "result": False, "comment": str(error)}
    if changed:
        ret["changes"] = {"checkpoint": name}
        ret["comment"] = f"{model['name']} was put in place"
    return ret


def converted(name: str, conversion: Mapping[str, Any], scripts: str, server: str | None = None) -> dict[str, Any]:
    """
    Make sure that the model is at ``name`` in the form that an engine loads.

    name
        folder of the converted model
    conversion
        what it is made of and by which steps, from the engine's interface
    scripts
        folder with this project's scripts for models
    server
        where the control node has models; what it has under this name is fetched from there and not made
    """
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True, "comment": f"{name} is in place"}
    if __salt__["model.converted"](name):
        return ret
    if __opts__["test"]:
        return {**ret, "result": None, "changes": {"model": name}, "comment": f"{name} would be made"}
    try:
        if server and __salt__["model.fetch"](name, server):
            return {**ret, "changes": {"model": name}, "comment": f"{name} was fetched from {server}"}
        changed = __salt__["model.convert"](name, conversion, scripts)
    except RuntimeError as error:
        return {**ret, "result": False, "comment": str(error)}
    if changed:
        ret["changes"] = {"model": name}
        ret["comment"] = f"{name} was made for {conversion['engine']['engine']}"
    return ret
