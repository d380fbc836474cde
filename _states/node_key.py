"""
Keep the key with which this node seals what it sends.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__


def learnt(name: str) -> dict[str, Any]:
    """
    The node has the key that its pillar has now. The key itself is in no result.

    name
        what the key is for; it is shown only
    """
    changed = __salt__["node_key.learn"](test=__opts__["test"])
    result: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": "The key is the present one."}
    if changed and __opts__["test"]:
        return {**result, "result": None, "comment": "The key would be taken over."}
    if changed:
        return {**result, "changes": {"key": "taken over"}, "comment": "The key was taken over."}
    return result
