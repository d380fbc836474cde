"""
Boot nodes into another image or profile, one at a time, and put the deployment back.

The sequence is ``netboot.reprovision.sequence``; carrying it out is ``control.reprovisioning``.
"""

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from control import audit, locks, node_starts, records, reprovision_attempts, reprovisioning
from control.nodes import Nodes
from netboot.reprovision import sequence

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

BUSY = "nodes are being reprovisioned already (salt-run reprovision.status)"

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
    with locks.exclusive(__opts__, locks.REPROVISION, "a reprovisioning", BUSY):
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
    attempts, now = reprovision_attempts.read(__opts__), time.time()
    reasons: dict[str, list[str]] = {}
    for name in found.names:
        # What was given and applied, by the boot service and by us. No node is asked: it could have itself, and with
        # it the deployment, taken down again and again.
        image = __salt__["boot.status"](name)["image"]
        digest = node_starts.read(__opts__, name).profile
        if image and active and image != active:
            reasons.setdefault(name, []).append(f"it runs image {image}; active is {active}")
        if digest and digest != found.profile.digest:
            reasons.setdefault(name, []).append(f"configured under profile {digest}; now {found.profile.digest}")
        refusal = reprovision_attempts.refusal(name, attempts.get(name, ()), now)
        if name in reasons and refusal:
            reasons[name].append(refusal)
    return reasons


def changed() -> dict[str, Any]:
    """
    Reprovision the nodes that are due, if the master allows it (called by the reactor; trusts nothing in its event).

    CLI Example:

    .. code-block:: bash

        salt-run reprovision.changed

    The master's option ``cluster_reprovision_on_change`` has to be true; otherwise it is only noted who is due.
    A node is tried three times, with ten and twenty minutes between; then it is left to a person.
    """
    reasons = due()
    # A node that is not due any more has been mended, by whatever.
    reprovision_attempts.forget(__opts__, set(Nodes(__opts__).names) - set(reasons))
    if not reasons:
        return {"due": {}}
    if records.path_of(__opts__, records.PAUSED).exists():
        return {"due": reasons, "started": False, "reason": "the cluster is paused (cluster resume)"}
    if not __opts__.get("cluster_reprovision_on_change", False):
        log.warning("nodes are due to be reprovisioned (cluster reprovision --due): %s", "; ".join(sorted(reasons)))
        return {"due": reasons, "started": False, "reason": "cluster_reprovision_on_change is off"}
    attempts, now = reprovision_attempts.read(__opts__), time.time()
    ready = sorted(name for name in reasons if reprovision_attempts.refusal(name, attempts.get(name, ()), now) is None)
    if not ready:
        log.warning("nodes are due and not reprovisioned now (cluster reprovision --due): %s", reasons)
        return {"due": reasons, "started": False, "reason": "every node that is due has been tried"}
    # Before: an attempt that ends this process is one, too.
    reprovision_attempts.note(__opts__, ready, now)
    done = run(ready)
    why = "; ".join(f"{name}: {', '.join(reasons[name])}" for name in ready)
    audit.note(__opts__, "reprovision", why, str(done.get("summary", "")), nodes=ready)
    return {"due": reasons, "started": True, **done}


def clear(node: str) -> dict[str, Any]:
    """
    Forget the attempts to reprovision a node by itself, and its starts: it is tried again when it is due.

    CLI Example:

    .. code-block:: bash

        salt-run reprovision.clear node0
    """
    Nodes(__opts__).minion(node)
    with node_starts.alone(__opts__, [node]):
        known = node_starts.read(__opts__, node)
        node_starts.write(__opts__, node, replace(known, moments=()))
    return {"node": node, "cleared": bool(reprovision_attempts.forget(__opts__, [node]) or known.moments)}


def status() -> dict[str, Any]:
    """
    Return where reprovisioning is, or how it ended.

    CLI Example:

    .. code-block:: bash

        salt-run reprovision.status
    """
    return records.read(__opts__, records.REPROVISION)
