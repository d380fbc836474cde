"""
Start, stop and report vLLM workers on this node.

A worker is one ``vllm serve`` process tree: the head of a deployment, which serves
the OpenAI API and ``/metrics``, or a follower (``--headless``). What to start is
worked out on the control node and handed over as a worker specification.
"""

import http.client
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import engine_environment
import exposition
import failure_reasons
import node_files
import vllm_failures

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

WORKER_FILE = "/run/cluster/worker.json"
UNIT_PREFIX = "vllm-"
# The engine's metric -> what it counts.
REQUESTS = {"vllm:num_requests_running": "running", "vllm:num_requests_waiting": "waiting"}

# What the engine's log says when a stage begins; the last one that matches holds.
STAGES = (
    ("loading", re.compile(r"Starting to load model|Loading weights|Initializing a V1 LLM engine|init_process_group")),
    ("warming", re.compile(r"Loading weights took|Warming up|KV cache size|init engine|for KV cache on node")),
)
# A failure's cause is often far above what every rank then reported of it.
FAILURE_LINES, FAILURE_BYTES = 20000, 4 * 1024 * 1024
LOG_BYTES = 200 * 1024
# A shell's way to say that a signal ended a program.
SIGNALLED = 128


def __virtual__() -> str | tuple[bool, str]:
    return "vllm" if sys.platform == "linux" else (False, "workers run on Linux")


def start(worker: Mapping[str, Any], engine: Mapping[str, Any]) -> dict[str, Any]:
    """
    Start a worker unless it runs already; return its status at once.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.deploy tp2    # works out the specifications and calls this on every node

    worker
        specification: ``name``, ``argv`` after the ``vllm`` command, ``environment``, ``head``,
        ``api_address``, ``api_port``, ``link_address``
    engine
        the accelerator's entry of the engine map, with ``directory`` and ``preload``
    """
    directory = engine["directory"]
    if not __salt__["engine.installed"](directory):
        raise RuntimeError(f"the engine is not installed at {directory}: run state.apply first")
    _forget_other(worker["name"])
    taken = [f"{address}:{port}" for address, port in _ports(worker) if _listening(address, port)]
    unit = UNIT_PREFIX + worker["name"]
    if taken and not __salt__["supervise.status"](unit)["running"]:
        raise RuntimeError(f"{', '.join(taken)} is taken by another process on this node")
    environment = {**worker["environment"], **engine_environment.preload(engine)}
    environment["PATH"] = f"{directory}/bin:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}"
    os.makedirs(os.path.dirname(WORKER_FILE), exist_ok=True)
    record = {key: worker[key] for key in ("name", "head", "api_address", "api_port")}
    node_files.write_json(WORKER_FILE, record)
    __salt__["supervise.start"](
        unit,
        [os.path.join(directory, "bin/vllm"), *worker["argv"]],
        environment,
        f"/var/log/cluster/vllm-{worker['name']}.log",
    )
    return status(worker["name"])


def stop(name: str | None = None) -> dict[str, dict[str, Any]]:
    """
    End a worker's whole process tree, or every worker's.

    CLI Example:

    .. code-block:: bash

        salt '*' vllm.stop
    """
    names = [name] if name else _workers()
    for each in names:
        __salt__["supervise.stop"](UNIT_PREFIX + each)
    record = node_files.read_json(WORKER_FILE)
    if record and record["name"] in names:
        node_files.remove(WORKER_FILE)
    return {each: _status(each) for each in names}


def status(name: str | None = None) -> dict[str, Any]:
    """
    Return the stage of a worker: installing, loading, warming, ready, failed or stopped.

    CLI Example:

    .. code-block:: bash

        salt '*' vllm.status

    A follower has no health of its own; it is ``ready`` once its weights and KV cache are in
    place. ``reason`` is one sentence from the log when the stage is ``failed``; ``failure`` tells
    how near to the cause it is (``rank``, 0 is a cause) and when it was logged (``moment``, by
    this node's clock).
    """
    if name is None:
        return {each: _status(each) for each in _workers()}
    return _status(name)


def log(name: str | None = None, lines: int = 50) -> dict[str, list[str]]:
    """
    Return the last lines of a worker's log.

    CLI Example:

    .. code-block:: bash

        salt node0 vllm.log lines=100
    """
    names = [name] if name else _workers()
    return {each: _tail(f"/var/log/cluster/vllm-{each}.log", int(lines)) for each in names}


def failure(lines: Sequence[str]) -> str | None:
    """
    Return the reason of a failure in one sentence, from the lines of a log, or None.

    CLI Example:

    .. code-block:: bash

        salt node0 vllm.failure '["RuntimeError: no"]'

    What messages mean is data: ``vllm_failures`` and the files it names.
    """
    found = failure_reasons.reason(lines, vllm_failures.VLLM)
    return found.sentence if found else None


def requests(worker: Mapping[str, Any] | None = None) -> dict[str, float]:
    """
    Return how many requests the head's engine runs and how many wait.

    CLI Example:

    .. code-block:: bash

        salt node0 vllm.requests
    """
    worker = worker or node_files.read_json(WORKER_FILE)
    if not worker or not worker["head"]:
        return {}
    text = _get(worker, "/metrics") or ""
    found: dict[str, float] = {}
    for sample in exposition.raw_samples(text):
        key = REQUESTS.get(sample.name)
        if key:
            found[key] = found.get(key, 0.0) + sample.value
    return found


def _status(name: str) -> dict[str, Any]:
    unit = __salt__["supervise.status"](UNIT_PREFIX + name)
    record = node_files.read_json(WORKER_FILE) or {}
    current = record if record.get("name") == name else {}
    log = unit["log"]
    lines = _tail(log, 400) if log else []
    result = {
        "name": name,
        "stage": "stopped",
        "head": bool(current.get("head")),
        "pid": unit["pid"],
        "started": unit["started"],
        "log": log,
        "reason": None,
        "failure": None,
        "processes": unit["processes"],
    }
    if unit["running"]:
        result["stage"] = _stage(lines, current)
    elif unit["known"] and not unit["stopped"]:
        result["stage"] = "failed"
        result.update(_failed(name, log, unit["exit_code"]))
    if result["stage"] == "ready" and current.get("head"):
        result["requests"] = requests(current)
    return result


def _failed(name: str, log: str | None, exit_code: int | None) -> dict[str, Any]:
    """Return the reason of a worker's failure, and where it stands among others'."""
    lines = _tail(log, FAILURE_LINES, FAILURE_BYTES) if log else []
    signal = -exit_code if exit_code is not None and exit_code < 0 else (exit_code or 0) - SIGNALLED
    if signal > 0:
        lines.append(f"Process {name} terminated (exit code: -{signal})")
    found = failure_reasons.reason(lines, vllm_failures.VLLM)
    if found is None:
        return {"reason": f"the worker ended with exit code {exit_code} and reported nothing", "failure": None}
    words = {"MINION": __opts__["id"], "DEPLOYMENT": name.rpartition("-")[0] or name}
    sentence = re.sub("|".join(words), lambda word: words[word[0]], found.sentence)
    return {"reason": sentence, "failure": found.as_dict()}


def _stage(lines: Iterable[str], worker: Mapping[str, Any]) -> str:
    if worker.get("head") and _get(worker, "/health") is not None:
        return "ready"
    stage = "installing" if not lines else "loading"
    for line in lines:
        for name, pattern in STAGES:
            if pattern.search(line):
                stage = name
    if stage == "warming" and not worker.get("head"):
        return "ready"
    return stage


def _get(worker: Mapping[str, Any], path: str) -> str | None:
    connection = http.client.HTTPConnection(worker["api_address"], worker["api_port"], timeout=2)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        return body if answer.status == 200 else None
    except OSError:
        return None
    finally:
        connection.close()


def _ports(worker: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    if worker["head"]:
        yield worker["api_address"], int(worker["api_port"])
        if worker.get("world", 1) > 1:
            address, _, port = worker["coordinator"].rpartition(":")
            yield address, int(port)


def _listening(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((address, port)) == 0


def _workers() -> list[str]:
    units = __salt__["supervise.units"]()
    return [name.removeprefix(UNIT_PREFIX) for name in units if name.startswith(UNIT_PREFIX)]


def _forget_other(name: str) -> None:
    """Refuse to start beside another deployment's worker: they would share the node's memory."""
    for each in _workers():
        if each != name and __salt__["supervise.status"](UNIT_PREFIX + each)["running"]:
            raise RuntimeError(f"worker {each} runs on this node: stop it first (cluster undeploy)")


def _tail(path: str, lines: int, size: int = LOG_BYTES) -> list[str]:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
