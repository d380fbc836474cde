"""
Run this node's sampler, look at what it does, take one sample.

The sampler (``salt/sampler/files``) is a process of its own beside the minion; this module
starts and stops it through ``supervise`` and hands it what the control node has stored.
"""

import json
import os
import subprocess
import sys

UNIT = "sampler"
PROGRAM = "/opt/cluster/sampler/sampler.py"
CONFIG = "/etc/cluster/sampler.json"
LOG = "/var/log/cluster/sampler.log"
DIRECTORY = "/run/cluster/perf"  # unless the minion's `cluster_perf_directory` says otherwise


def __virtual__():
    return "perf" if sys.platform == "linux" else (False, "the sampler reads /proc")


def start(config=CONFIG):
    """
    Start the sampler unless it runs already; return its status.

    CLI Example:

    .. code-block:: bash

        salt '*' perf.start
    """
    for path in (PROGRAM, config):
        if not os.path.exists(path):
            raise RuntimeError(f"{path} is missing: run state.apply sampler first")
    # Its own folder stays as the state wrote it: no byte code beside the program.
    return __salt__["supervise.start"](UNIT, [sys.executable, PROGRAM, config], {"PYTHONDONTWRITEBYTECODE": "1"}, LOG)


def stop():
    """
    Stop the sampler; what it has measured is sent before it ends.

    CLI Example:

    .. code-block:: bash

        salt '*' perf.stop
    """
    return __salt__["supervise.stop"](UNIT)


def restart(config=CONFIG):
    """
    Stop the sampler and start it again, with the configuration as it is now.

    CLI Example:

    .. code-block:: bash

        salt '*' perf.restart
    """
    stop()
    return start(config)


def status():
    """
    Return whether the sampler runs, what it has sent, and what it costs.

    CLI Example:

    .. code-block:: bash

        salt '*' perf.status

    ``acknowledged`` is the batch up to which the control node has everything, ``waiting`` how
    many are kept for it, ``dropped`` how many were given up, ``cpu_ratio`` the share of one core.
    """
    unit = __salt__["supervise.status"](UNIT)
    told = _read(os.path.join(_directory(), "status.json")) if unit["running"] else None
    result = {"running": unit["running"], "pid": unit["pid"], "started": unit["started"], "log": unit["log"]}
    # A file of an earlier life says nothing about this one.
    if told and told["time"] >= unit["started"]:
        result.update(told)
        result["cpu_ratio"] = round(told["cpu_s"] / max(1.0, told["time"] - unit["started"]), 5)
    return result


def sample(config=CONFIG):
    """
    Take one complete sample of this node now and return it.

    CLI Example:

    .. code-block:: bash

        salt node0 perf.sample
    """
    finished = subprocess.run(
        [sys.executable, "-B", PROGRAM, config, "--once"], capture_output=True, text=True, timeout=30, check=False
    )
    if finished.returncode:
        raise RuntimeError(f"the sampler took no sample: {finished.stderr.strip().splitlines()[-1:]}")
    return json.loads(finished.stdout)


def acknowledge(told):
    """
    Hand the sampler what the control node has stored (called by the control node).

    CLI Example:

    .. code-block:: bash

        salt node0 perf.acknowledge '{"node0": {"boot": "...", "sequence": 120, "missing": []}}'

    told
        by minion id: ``boot`` is the sampler's life, everything up to ``sequence`` is stored,
        ``missing`` names numbers after it that are not
    """
    mine = told.get(__opts__["id"])
    if mine is None:
        return False
    os.makedirs(_directory(), exist_ok=True)
    path = os.path.join(_directory(), "acknowledged.json")
    partial = f"{path}.{os.getpid()}"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(mine, file)
    os.replace(partial, path)
    return True


def _directory():
    return __opts__.get("cluster_perf_directory", DIRECTORY)


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None
