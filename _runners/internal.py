"""
Take the control node's own events from the reactor, and do what they ask for; no one else's.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from control import internal_events

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__


def take(tag: str, event: Mapping[str, Any]) -> Any:
    """
    Check an event's seal, then call the runner that its tag is for (called by the reactor).

    CLI Example:

    .. code-block:: bash

        salt-run internal.take cluster/node/lost '{"node": "node0"}'    # refused: it has no seal

    tag
        under which it came
    event
        what came; nothing of it is read but what the control node sealed
    """
    content = internal_events.opened(__opts__, tag, event)
    action = internal_events.ACTIONS[tag]
    arguments = [content] if action.whole else [content[name] for name in action.arguments]
    return __salt__[action.function](*arguments)
