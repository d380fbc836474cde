"""
Run this node's sampler, look at what it does, take one sample.

The sampler (``salt/sampler/files``) is a process of its own beside the minion; this module
starts and stops it through ``supervise`` and hands it what the control node has stored.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import node_commands
import node_files
import node_processes
import unit_sandbox

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

UNIT = "sampler"
PROGRAM = "/opt/cluster/sampler/sampler.py"
CONFIG = "/etc/cluster/sampler.json"
LOG = "/var/log/cluster/sampler.log"
SAMPLE_SECONDS = 30.0
# Every interval it asks and writes its status; a few of them without a word are no accident.
SILENT_INTERVALS = 3.0
DIRECTORY = "/run/cluster/telemetry"  # unless the minion's `cluster_telemetry_directory` names another


def __virtual__() -> str | tuple[bool, str]:
    return "telemetry" if sys.platform == "linux" else (False, "the sampler reads /proc")


def start(config: str = CONFIG) -> dict[str, Any]:
    """
    Start the sampler unless it runs already; return its status.

    CLI Example:

    .. code-block:: bash

        salt '*' telemetry.start
    """
    for path in (PROGRAM, config):
        if not os.path.exists(path):
            raise RuntimeError(f"{path} is missing: run state.apply sampler first")
    # Its own folder stays as the state wrote it: no byte code beside the program.
    started: dict[str, Any] = __salt__["supervise.start"](
        UNIT, [sys.executable, PROGRAM, config], {"PYTHONDONTWRITEBYTECODE": "1"}, LOG, unit_sandbox.SAMPLER
    )
    return started


def stop() -> dict[str, Any]:
    """
    Stop the sampler; what it has measured is sent before it ends.

    CLI Example:

    .. code-block:: bash

        salt '*' telemetry.stop
    """
    stopped: dict[str, Any] = __salt__["supervise.stop"](UNIT)
    return stopped


def restart(config: str = CONFIG) -> dict[str, Any]:
    """
    Stop the sampler and start it again, with the configuration as it is now.

    CLI Example:

    .. code-block:: bash

        salt '*' telemetry.restart
    """
    stop()
    return start(config)


def revive(config: str = CONFIG) -> dict[str, Any]:
    """
    Start the sampler when it does not run, or runs and has sent nothing for long; return its status.

    CLI Example:

    .. code-block:: bash

        salt node0 telemetry.revive

    ``revived`` says why it was started: ``ended`` or ``silent``; None where it runs and sends.
    """
    found = status()
    if not found["running"]:
        return {**start(config), "revived": "ended"}
    settings = node_files.read_json(config) or {}
    patience = SILENT_INTERVALS * float(settings.get("acknowledge_interval_seconds", 10.0))
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    # By the time since boot, as the sampler writes it: the clock of the day may have been set. A status that is not
    # there is as silent as an old one, once the sampler had the time to write it.
    sent, began = found.get("sent_uptime"), node_processes.start_ticks(found["pid"])
    young = began is not None and now - began / os.sysconf("SC_CLK_TCK") < patience
    if young or (sent is not None and now - sent < patience):
        return {**found, "revived": None}
    return {**restart(config), "revived": "silent"}


def status() -> dict[str, Any]:
    """
    Return whether the sampler runs, what it has sent, and what it costs.

    CLI Example:

    .. code-block:: bash

        salt '*' telemetry.status

    ``acknowledged`` is the batch up to which the control node has everything, ``waiting`` how
    many are kept for it, ``dropped`` how many were given up, ``cpu_ratio`` the share of one core.
    """
    unit = __salt__["supervise.status"](UNIT)
    own = node_files.read_json(os.path.join(_directory(), "status.json")) if unit["running"] else None
    result = {"running": unit["running"], "pid": unit["pid"], "started": unit["started"], "log": unit["log"]}
    # A file of an earlier life is not about this one.
    if own and own["time"] >= unit["started"]:
        result.update(own)
        result["cpu_ratio"] = round(own["cpu_s"] / max(1.0, own["time"] - unit["started"]), 5)
    return result


def sample(config: str = CONFIG) -> dict[str, Any]:
    """
    Take one complete sample of this node now and return it.

    CLI Example:

    .. code-block:: bash

        salt node0 telemetry.sample
    """
    found: dict[str, Any] = json.loads(
        node_commands.output_of([sys.executable, "-B", PROGRAM, config, "--once"], timeout=SAMPLE_SECONDS)
    )
    return found


def acknowledge(stored: Mapping[str, Any]) -> bool:
    """
    Hand the sampler what the control node has stored (called by the control node).

    CLI Example:

    .. code-block:: bash

        salt node0 telemetry.acknowledge '{"node0": {"boot": "...", "sequence": 120, "missing": []}}'

    stored
        by minion id: ``boot`` is the sampler's life, everything up to ``sequence`` is stored,
        ``missing`` names numbers after it that are not
    """
    own = stored.get(__opts__["id"])
    if own is None:
        return False
    os.makedirs(_directory(), exist_ok=True)
    node_files.write_json(os.path.join(_directory(), "acknowledged.json"), own)
    return True


def _directory() -> str:
    return str(__opts__.get("cluster_telemetry_directory", DIRECTORY))
