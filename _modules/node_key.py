"""
Take over the key with which this node seals what it sends.

The control node made it; it is in this node's pillar alone, and in a file that only root can read.
"""

import os
import sys
from typing import TYPE_CHECKING

import node_files
import node_seal
from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

PILLAR = "node_key"


def __virtual__() -> str | tuple[bool, str]:
    return "node_key" if sys.platform == "linux" else (False, "nodes are Linux machines")


def seal(text: str) -> str:
    """
    Return this node's seal of an answer.

    CLI Example:

    .. code-block:: bash

        salt-call node_key.seal text

    text
        the answer, as it is sent
    """
    try:
        key = node_seal.read_key(_key_file())
    except node_seal.NodeKeyError as error:
        raise CommandExecutionError(str(error)) from error
    return node_seal.seal(key, node_seal.ANSWER, __opts__["id"], text)


def learn(test: bool = False) -> bool:
    """
    Fetch this node's pillar anew and keep the key in it; return whether it is another one than before.

    CLI Example:

    .. code-block:: bash

        salt node0 node_key.learn

    test
        change nothing
    """
    # Of the master, as it is now: what the minion has in memory may be from before the key.
    text = __salt__["pillar.items"](unmask=True).get(PILLAR)
    if not isinstance(text, str):
        raise CommandExecutionError("this node's pillar has no key: is it in the profile? (cluster apply)")
    path = _key_file()
    try:
        before = node_seal.read_key(path).hex()
    except node_seal.NodeKeyError:
        before = None
    if before == text or test:
        return before != text
    os.makedirs(os.path.dirname(path), exist_ok=True)
    node_files.write_text(path, text + "\n", mode=0o600, durable=True)
    return True


def _key_file() -> str:
    return str(__opts__.get("cluster_node_key", node_seal.KEY_FILE))
