"""
Prometheus' configuration, rules and dashboard on the control node.
"""

import logging
from pathlib import Path

from salt.exceptions import CommandExecutionError

from bottleneck import prometheus
from bottleneck.profile import ProfileError, load_profile

log = logging.getLogger(__name__)

DIRECTORY = "/etc/cluster/prometheus"


def write(directory=DIRECTORY, deployment=None):
    """
    Write what Prometheus needs; say which files changed.

    CLI Example:

    .. code-block:: bash

        salt-run prometheus.write
    """
    try:
        profile = load_profile(__opts__["cluster_profile"])
        changed = prometheus.write(profile, Path(directory), deployment)
    except ProfileError as error:
        raise CommandExecutionError(str(error)) from error
    return {"directory": str(directory), "changed": changed}
