"""
Renew the keys with which nodes seal what they send.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from control import audit, node_keys
from control.nodes import Nodes

if TYPE_CHECKING:
    from loader_dunders import __opts__


def renew(nodes: str | Sequence[str] | None = None) -> dict[str, bool]:
    """
    Give nodes that are up new keys; return which of them answer with theirs.

    CLI Example:

    .. code-block:: bash

        salt-run node_key.renew node1

    nodes
        one or several; all of the profile when left out

    The former key of a node is good until the node has answered with the new one, so that what is under way is not
    refused. A node that is down gets its new key when it boots.
    """
    reached = Nodes(__opts__)
    names = [nodes] if isinstance(nodes, str) else list(nodes or reached.names)
    for name in names:
        node_keys.renew(__opts__, reached.minion(name), keep_former=True)
    proven = reached.introduce(names)
    for name in names:
        if name in proven:
            node_keys.settle(__opts__, reached.minion(name))
    now_used = f"new keys are in use on: {', '.join(sorted(proven)) or 'no node'}"
    audit.note(__opts__, "renew keys", "a person asked", now_used, nodes=names)
    return {name: name in proven for name in names}
