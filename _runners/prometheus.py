"""
Prometheus' configuration, rules and dashboard on the control node.
"""

from pathlib import Path

from salt.exceptions import CommandExecutionError

from bottleneck.plan import prometheus
from bottleneck.profile import ProfileError
from control.nodes import profile_of

DIRECTORY = "/etc/cluster/prometheus"


def write(directory=DIRECTORY, deployment=None):
    """
    Write what Prometheus needs; say which files changed.

    CLI Example:

    .. code-block:: bash

        salt-run prometheus.write
    """
    try:
        changed = prometheus.write(profile_of(__opts__), Path(directory), deployment)
    except ProfileError as error:
        raise CommandExecutionError(str(error)) from error
    return {"directory": str(directory), "changed": changed}
