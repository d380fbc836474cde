"""
Write Prometheus' configuration, rules and dashboard on the control node.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

from bottleneck.plan import prometheus
from bottleneck.profile import ProfileError
from control.nodes import profile_of

if TYPE_CHECKING:
    from loader_dunders import __opts__

DIRECTORY = "/etc/cluster/prometheus"


def write(directory: str = DIRECTORY, deployment: str | None = None) -> dict[str, Any]:
    """
    Write what Prometheus needs; return which files changed.

    CLI Example:

    .. code-block:: bash

        salt-run prometheus.write
    """
    try:
        changed = prometheus.write(profile_of(__opts__), Path(directory), deployment)
    except ProfileError as error:
        raise CommandExecutionError(str(error)) from error
    return {"directory": str(directory), "changed": changed}
