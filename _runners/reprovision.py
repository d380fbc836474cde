"""
Boot nodes into another image or profile, one at a time, and put the deployment back.

The sequence is ``netboot.reprovision.sequence``; carrying it out is ``control.reprovisioning``.
"""

import json
import logging
from typing import TYPE_CHECKING, Any

from control import records, reprovisioning
from control.nodes import Nodes
from netboot.reprovision import sequence

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

PROFILE_FILE = "/etc/cluster/profile.json"

log = logging.getLogger(__name__)


def run(nodes: str | list[str] | None = None, force: bool = False, test: bool = False) -> dict[str, Any]:
    """
    Reprovision nodes, the canary first; stop at the first failure, and go back to the image before if that is to blame.

    CLI Example:

    .. code-block:: bash

        salt-run reprovision.run '[node0]'
        salt-run reprovision.run test=True

    nodes
        names of nodes; every node of the profile when left out
    force
        cut off requests that do not end in the profile's ``boot.drain``
    test
        return what would be done, and do nothing
    """
    found = Nodes(__opts__)
    names = [nodes] if isinstance(nodes, str) else list(nodes or found.names)
    with reprovisioning.alone(records.path_of(__opts__, "reprovision.lock")):
        deployed = __salt__["cluster.deployment_record"]() or reprovisioning.unfinished(__opts__)
        state, target = reprovisioning.prepare(found, __salt__, names, deployed or None)
        if test:
            return {**sequence.to_document(state), "image": target, "test": True}
        carrier = reprovisioning.Carrier(found, __salt__, target, bool(force))
        state = reprovisioning.run(state, carrier, __opts__)
    return {**sequence.to_document(state), "image": carrier.target, "summary": sequence.summary(state)}


def due() -> dict[str, list[str]]:
    """
    Return the nodes that run another image than the active one or were configured under another profile, and why.

    CLI Example:

    .. code-block:: bash

        salt-run reprovision.due
    """
    found = Nodes(__opts__)
    active = __salt__["image.active"]()["digest"]
    applied = {name: _digest(text) for name, text in found.ask("file.read", [PROFILE_FILE], timeout=5).items()}
    reasons: dict[str, list[str]] = {}
    for name in found.names:
        image = __salt__["boot.status"](name)["image"]
        digest = applied[name]
        if image and active and image != active:
            reasons.setdefault(name, []).append(f"it runs image {image}; active is {active}")
        if digest and digest != found.profile.digest:
            reasons.setdefault(name, []).append(f"configured under profile {digest}; now {found.profile.digest}")
    return reasons


def changed() -> dict[str, Any]:
    """
    Reprovision the nodes that are due, if the master allows it (called by the reactor; trusts nothing in its event).

    CLI Example:

    .. code-block:: bash

        salt-run reprovision.changed

    The master's option ``cluster_reprovision_on_change`` has to be true; otherwise it is only noted who is due.
    """
    reasons = due()
    if not reasons:
        return {"due": {}}
    if not __opts__.get("cluster_reprovision_on_change", False):
        log.warning("nodes are due to be reprovisioned (cluster reprovision --due): %s", "; ".join(sorted(reasons)))
        return {"due": reasons, "started": False, "reason": "cluster_reprovision_on_change is off"}
    return {"due": reasons, "started": True, **run(sorted(reasons))}


def status() -> dict[str, Any]:
    """
    Return where reprovisioning is, or how it ended.

    CLI Example:

    .. code-block:: bash

        salt-run reprovision.status
    """
    return records.read(__opts__, records.REPROVISION)


def _digest(text: Any) -> str | None:
    """Return the digest in a node's record of its profile; None when it has none, or does not answer."""
    try:
        return str(json.loads(text)["digest"])
    except (TypeError, ValueError, KeyError):
        return None
