"""
Start, stop and report an inference engine's workers on this node.

A worker is one process tree of the engine: the head of a deployment, which serves
the OpenAI API and its metrics, or a follower. What to start, and what it is watched by, is
worked out on the control node and handed over as a worker specification.
"""

import dataclasses
import http.client
import importlib
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import api_key
import engine_environment
import engine_names
import exposition
import failure_reasons
import node_files
import rank_links
import signal_failures
import unit_keeper
import unit_sandbox

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

LOG_DIRECTORY = "/var/log/cluster"
WORKER_FILE = "/run/cluster/worker.json"
UNIT_PREFIX = "worker-"
# The engine's metric, under the name that the analysis has for it -> what it counts.
REQUESTS = dict(zip(engine_names.REQUESTS, ("running", "waiting"), strict=True))
# A failure's cause is often far above what every rank then reported of it.
FAILURE_LINES, FAILURE_BYTES = 20000, 4 * 1024 * 1024
LOG_BYTES = 200 * 1024
# A shell's way to say that a signal ended a program.
SIGNALLED = 128
# The kernel's table of IPv4 sockets of this node, and its number for one that listens.
SOCKETS, LISTENING = "/proc/self/net/tcp", "0A"
# What any process may say of its end, for an engine without rules of its own.
COMMON_RULES = "common_failures"
KEY_PILLAR = "engine_api_key"
# Results of a unit by systemd's name -> what that means of a worker.
RESULTS = {
    "oom-kill": "its processes took more memory than memory_share of the deployment gives them, or the node has",
    "watchdog": "its keeper gave no sign of life",
}


def __virtual__() -> str | tuple[bool, str]:
    return "worker" if sys.platform == "linux" else (False, "workers run on Linux")


def start(worker: Mapping[str, Any], engine: Mapping[str, Any]) -> dict[str, Any]:
    """
    Start a worker unless it runs already; return its status at once.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.deploy tp2    # works out the specifications and calls this on every node

    worker
        specification: ``name``, ``program`` and its ``argv``, ``environment``, ``head``, ``api_address``,
        ``api_port``, ``link_address``, and ``watch``: how is seen that it is ready, its log's stages, rules for its
        failures, its metrics
    engine
        the engine map's entry, with ``directory`` and ``preload``
    """
    directory = engine["directory"]
    if not __salt__["engine.installed"](directory):
        raise RuntimeError(f"the engine is not installed at {directory}: run state.apply first")
    _forget_other(worker["name"])
    taken = [f"{address}:{port}" for address, port in _ports(worker) if _listening(address, port)]
    unit = UNIT_PREFIX + worker["name"]
    if taken and not __salt__["supervise.status"](unit)["running"]:
        raise RuntimeError(f"{', '.join(taken)} is taken by another process on this node")
    who = engine_environment.account()
    environment = {
        **worker["environment"],
        **engine_environment.preload(engine),
        **engine_environment.of_account(who),
        "PATH": engine_environment.path(engine),
    }
    if worker["watch"].get("guards"):
        # Before there is a port to protect; without the rules nothing is started.
        __salt__["engine.guard"](worker["watch"]["guards"])
    os.makedirs(os.path.dirname(WORKER_FILE), exist_ok=True)
    api_key = worker["watch"].get("api_key") if worker["head"] else None
    if api_key:
        environment.update(_give_key(api_key, who))
    record = {
        key: worker[key] for key in ("name", "head", "api_address", "api_port", "link_address", "engine", "watch")
    }
    node_files.write_json(WORKER_FILE, record)
    confined = os.path.isdir(unit_keeper.SYSTEMD)
    root = engine["directory"] if engine.get("root_folder") else None
    if confined and root:
        engine_environment.make_mount_points(unit_sandbox.seen_in_root(root).values(), root)
    __salt__["supervise.start"](
        unit,
        engine_environment.command_as(who, engine, worker["program"], worker["argv"], confined),
        environment,
        os.path.join(LOG_DIRECTORY, worker["log_name"]),
        unit_sandbox.engine(worker["memory_share"], [who.home], root),
    )
    return status(worker["name"])


def stop(name: str | None = None, at_once: bool = False) -> dict[str, dict[str, Any]]:
    """
    End a worker's whole process tree, or every worker's.

    CLI Example:

    .. code-block:: bash

        salt '*' worker.stop
        salt '*' worker.stop at_once=True

    at_once
        kill it: requests that it will never answer fail now, not after the seconds in which it may end by itself
    """
    names = [name] if name else _workers()
    for each in names:
        __salt__["supervise.stop"](UNIT_PREFIX + each, at_once)
    record = node_files.read_json(WORKER_FILE)
    if record and record["name"] in names:
        node_files.remove(WORKER_FILE)
        watch = record.get("watch") or {}
        if watch.get("api_key"):
            node_files.remove(watch["api_key"]["file"])
        if watch.get("guards"):
            __salt__["engine.guard"]([])
    return {each: _status(each) for each in names}


def status(name: str | None = None) -> dict[str, Any]:
    """
    Return the stage of a worker: installing, loading, warming, ready, failed or stopped.

    CLI Example:

    .. code-block:: bash

        salt '*' worker.status

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

        salt node0 worker.log lines=100
    """
    names = [name] if name else _workers()
    logs = {each: __salt__["supervise.status"](UNIT_PREFIX + each)["log"] for each in names}
    return {each: _tail(path, int(lines)) if path else [] for each, path in logs.items()}


def failure(lines: Sequence[str], rules: str) -> str | None:
    """
    Return the reason of a failure in one sentence, from the lines of a log, or None.

    CLI Example:

    .. code-block:: bash

        salt node0 worker.failure '["RuntimeError: no"]' vllm_failures

    What messages mean is data: the module ``rules``, which the engine's interface names, and the files it names.
    """
    found = failure_reasons.reason(lines, _rules(rules))
    return found.sentence if found else None


def requests(worker: Mapping[str, Any] | None = None) -> dict[str, float]:
    """
    Return how many requests the head's engine runs and how many wait.

    CLI Example:

    .. code-block:: bash

        salt node0 worker.requests
    """
    worker = worker or node_files.read_json(WORKER_FILE)
    if not worker or not worker["head"]:
        return {}
    path = (worker.get("watch") or {}).get("metrics", {}).get("path", "/metrics")
    text = _get(worker, path) or ""
    found: dict[str, float] = {}
    for sample in exposition.raw_samples(text):
        key = REQUESTS.get(engine_names.present_name(sample.name))
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
        "stopped_processes": unit["stopped_processes"],
        "cut_links": [],
    }
    if unit["running"]:
        result["stage"] = _stage(lines, current)
        if current.get("link_address"):
            result["cut_links"] = rank_links.cut(current["link_address"])
    elif unit["known"] and not unit["stopped"]:
        result["stage"] = "failed"
        rules = (current.get("watch") or {}).get("failures")
        ended = RESULTS.get(unit.get("result") or "")
        result.update({"reason": ended} if ended else _failed(name, unit, rules))
    if result["stage"] == "ready" and current.get("head"):
        result["requests"] = requests(current)
    return result


def _rules(name: str | None) -> failure_reasons.Rules:
    """Return the rules of an engine's failures; without a name, those of any process."""
    # Salt's loader has this folder on Python's path while it loads a module, and no more when a function is called.
    folder = os.path.dirname(failure_reasons.__file__)
    if folder not in sys.path:
        sys.path.append(folder)
    rules: failure_reasons.Rules = importlib.import_module(name or COMMON_RULES).ENGINE_RULES
    return rules


def _failed(name: str, unit: Mapping[str, Any], rules: str | None) -> dict[str, Any]:
    """Return the reason of a worker's failure, and where it stands among others'."""
    log, exit_code = unit["log"], unit["exit_code"]
    lines = _tail(log, FAILURE_LINES, FAILURE_BYTES) if log else []
    signal = -exit_code if exit_code is not None and exit_code < 0 else (exit_code or 0) - SIGNALLED
    if signal > 0:
        lines.append(f"Process {name} terminated (exit code: -{signal})")
    if unit.get("oom_kills"):
        # Counted by its control group; the kernel's own words are in a log that a worker's is not.
        lines.append(f"oom-kill:constraint=CONSTRAINT_MEMCG,task={name},pid={unit['pid']}")
    known = _rules(rules)
    if unit.get("oom_kills") == 0:
        # Who was ended by signal 9 says nothing; that the kernel counted nobody says that it was not the kernel.
        known = dataclasses.replace(known, rules=signal_failures.without_memory_kills(known.rules))
    found = failure_reasons.reason(lines, known)
    if found is None:
        return {"reason": f"the worker ended with exit code {exit_code} and reported nothing", "failure": None}
    words = {"MINION": __opts__["id"], "DEPLOYMENT": name.rpartition("-")[0] or name}
    sentence = re.sub("|".join(words), lambda word: words[word[0]], found.sentence)
    return {"reason": sentence, "failure": found.as_dict()}


def _stage(lines: Iterable[str], worker: Mapping[str, Any]) -> str:
    watch = worker.get("watch") or {}
    ready = watch.get("ready") or {}
    if "path" in ready and _get(worker, ready["path"], ready["status"]) is not None:
        return "ready"
    if "listening" in ready and ready["listening"] in _listened():
        return "ready"
    stage = "installing" if not lines else "loading"
    patterns = [(each["name"], re.compile(each["pattern"])) for each in watch.get("stages", [])]
    for line in lines:
        for name, pattern in patterns:
            if pattern.search(line):
                stage = name
    return "ready" if stage == ready.get("stage") else stage


def _get(worker: Mapping[str, Any], path: str, status: int = 200) -> str | None:
    connection = http.client.HTTPConnection(worker["api_address"], worker["api_port"], timeout=2)
    try:
        connection.request("GET", path, headers=api_key.authorization(worker))
        answer = connection.getresponse()
        body = answer.read().decode()
        return body if answer.status == status else None
    except OSError:
        return None
    finally:
        connection.close()


def _give_key(api_key: Mapping[str, Any], who: engine_environment.Account) -> dict[str, str]:
    """Put the API's key where the engine, and none but it and root, can read it; return what its environment has."""
    # Of the master, as it is now: what the minion has in memory may be from before the key.
    key = __salt__["pillar.items"](unmask=True).get(KEY_PILLAR)
    if not isinstance(key, str) or not key:
        raise RuntimeError(f"this node's pillar has no {KEY_PILLAR}: is the node in the profile? (cluster apply)")
    path = api_key["file"]
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    node_files.write_text(path, key + "\n", mode=0o600)
    os.chown(path, who.user, who.group)
    return {api_key["variable"]: key} if api_key.get("variable") else {}


def _ports(worker: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    if worker["head"]:
        yield worker["api_address"], int(worker["api_port"])
        if worker.get("coordinator"):
            address, _, port = worker["coordinator"].rpartition(":")
            yield address, int(port)
    listening = worker["watch"]["ready"].get("listening")
    if listening:
        address, _, port = listening.rpartition(":")
        yield address, int(port)


def _listened() -> set[str]:
    """Return the addresses that this node listens on, without connecting: a server of one client would take notice."""
    found = set()
    with open(SOCKETS, encoding="ascii") as file:
        for line in file.read().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            if state == LISTENING:
                address, _, port = local.partition(":")
                # The kernel writes the four bytes as one number of the machine's own order.
                number = int(address, 16).to_bytes(4, sys.byteorder)
                found.add(f"{socket.inet_ntoa(number)}:{int(port, 16)}")
    return found


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
