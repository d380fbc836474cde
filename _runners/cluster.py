"""
Configure the cluster's nodes, deploy a model across them, show how it is.

Works out ranks and addresses from the profile (``bottleneck.plan``) and calls the
nodes' modules; measures and decides nothing itself.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from salt.exceptions import CommandExecutionError

from bottleneck.plan import gateway as gateway_plan
from bottleneck.plan.engines import model_directory
from bottleneck.plan.nodes import deployment_record as plan_deployment
from bottleneck.profile import ProfileError
from bottleneck.profile.hardware_checks import refuse_open
from control import engine_key, gateway, locks, node_starts, readiness, records, state_apply
from control.nodes import Nodes, engine_slice, progress
from control.readiness import Spec
from netboot.boot import command_queue

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

    from bottleneck.profile import Profile

log = logging.getLogger(__name__)


def nodes() -> dict[str, Any]:
    """
    Return the profile's nodes and whether their minion answers.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.nodes
    """
    nodes = Nodes(__opts__)
    answering = nodes.answering(timeout=5)
    return {name: {"hostname": nodes.minion(name), "up": name in answering} for name in nodes.names}


def apply(test: bool = False, states: str | None = None, only: list[str] | None = None) -> dict[str, Any]:
    """
    Apply the states to every node, or to ``only`` these, or with ``test`` return what that would change.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.apply test=True
    """
    nodes = Nodes(__opts__)
    if not test:
        _refuse_open(nodes.profile)
    names = list(only or nodes.names)
    if test:
        return state_apply.apply(__opts__, nodes, names, True, states)
    # The reactor may be configuring a node that has just come up: that is waited for.
    with node_starts.alone(__opts__, names):
        results = state_apply.apply(__opts__, nodes, names, False, states)
        for name in names:
            if states is None and not results[name]["failed"]:
                node_starts.note_applied(__opts__, name, nodes.profile)
    return results


def node_started(minion: str) -> dict[str, Any]:
    """
    Configure a node that has just come up (called by the reactor; touches no keys).

    The event is any minion's to send: the node is configured once after each boot that the
    boot service has on record, and where it keeps none, at most three times in ten minutes.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.node_started node0
    """
    nodes = Nodes(__opts__)
    names = [name for name in nodes.names if nodes.minion(name) == minion]
    if not names:
        return {"applied": False, "reason": f"{minion} is not a node of this profile"}
    if not __opts__.get("cluster_apply_on_start", True):
        return {"applied": False, "reason": "cluster_apply_on_start is off"}
    (name,) = names

    def apply() -> dict[str, Any]:
        results = state_apply.apply(__opts__, nodes, names, False, None)
        return {"failed": [name for name, result in results.items() if result["failed"]]}

    outcome = node_starts.act_on(__opts__, name, nodes.profile, time.time(), apply)
    if not outcome["applied"]:
        log.info("A start of %s led to nothing: %s", name, outcome["reason"])
    return dict(outcome)


def deploy(
    deployment: str | None = None,
    overrides: dict[str, Any] | None = None,
    timeout: float = 600,
    again: float | None = None,
) -> dict[str, Any]:
    """
    Start a deployment's workers on their nodes and wait until it serves.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.deploy tp2 overrides='{"max_num_seqs": 4}'

    again
        ``started`` of the deployment on record: it is deployed only if that one still is (``recover``)
    """
    nodes = Nodes(__opts__)
    _refuse_open(nodes.profile)
    deployment = deployment or nodes.profile.default_deployment
    # Of two at once the second would fail on the first one's ports, and stop the workers of both.
    with locks.exclusive(__opts__, locks.DEPLOYMENT, f"a deploy of {deployment}"):
        if again is not None and deployment_record().get("started") != again:
            raise CommandExecutionError(f"{deployment} is not deployed any more as it was: it is left alone")
        return _deploy(nodes, deployment, overrides, float(timeout), again is not None)


def _deploy(
    nodes: Nodes, deployment: str, overrides: dict[str, Any] | None, timeout: float, tried_again: bool
) -> dict[str, Any]:
    profile = nodes.profile
    planned = _planned(profile, deployment, overrides)
    specs = planned["workers"]
    _check_free(deployment, overrides)
    _install_further(nodes, deployment)
    started, moments = time.monotonic(), {"began": time.time()}
    _queue_boot(profile, specs, "deploy")
    # What a start waits for can be asked while it lasts, and of one that failed (start_recording.record).
    starting = {**planned, "began": moments["began"]}
    records.write(__opts__, records.STARTING, starting)
    heads = [spec["node"] for spec in specs if spec["head"]]
    gateway.expect(__opts__)
    try:
        _start(nodes, specs, started, timeout)
        moments["ready"] = time.time()
        readiness.warm(profile, specs, started, engine_key.key(__opts__))
        moments["first_token"] = time.time()
    except BaseException:
        # Nothing half-done stays: not after a failure, nor after Ctrl-C.
        gateway.withdraw(__opts__, heads, awaited=tried_again)
        nodes.ask("worker.stop", names=[spec["node"] for spec in specs], timeout=60)
        _queue_boot(profile, specs, "undeploy")
        records.write(__opts__, records.STARTING, {**starting, "ended": time.time()})
        raise
    # A boot's record ends with the moments: from power-on to the first token.
    record = {**planned, "started": time.time(), **moments}
    records.write(__opts__, records.DEPLOYMENT, record)
    records.forget(__opts__, records.STARTING)
    if problem := gateway.serve(__opts__, heads):
        progress("gateway", "", problem, started)
    return {**record, "seconds": round(time.monotonic() - started, 1)}


def endpoint() -> dict[str, Any]:
    """
    Return where what is deployed serves, its heads themselves, and the file on the control node with its API's key.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.endpoint
    """
    record = deployment_record()
    if not record:
        raise CommandExecutionError("nothing is deployed; deploy it first: cluster deploy")
    heads = [worker for worker in record["workers"] if worker["head"]]
    return {
        "deployment": record["deployment"],
        "url": Nodes(__opts__).profile.control.gateway_url,
        "heads": [f"http://{head['api_address']}:{head['api_port']}/v1" for head in heads],
        "gateway": gateway.status(__opts__),
        "key_file": str(engine_key.path(__opts__)),
    }


def undeploy() -> dict[str, Any]:
    """
    Stop every worker of every node.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.undeploy
    """
    with locks.exclusive(__opts__, locks.DEPLOYMENT, "an undeploy"):
        nodes = Nodes(__opts__)
        gateway.withdraw(__opts__, gateway_plan.heads(nodes.profile), awaited=False)
        answers = nodes.ask("worker.stop", timeout=90)
        stopped = {node: sorted(answer) for node, answer in answers.items() if isinstance(answer, dict)}
        silent = sorted(set(answers) - set(stopped))
        for name in (records.DEPLOYMENT, records.STARTING, records.RECOVERY):
            records.forget(__opts__, name)
    if silent:
        raise CommandExecutionError(f"{', '.join(silent)} did not answer: its workers may still run")
    return {"stopped": stopped}


def status() -> dict[str, Any]:
    """
    Return the nodes, the deployment and its workers.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.status
    """
    nodes = Nodes(__opts__)
    return {
        "profile": {"name": nodes.profile.name, "version": nodes.profile.version},
        "deployment": deployment_record(),
        "recovery": __salt__["recover.status"](),
        "gateway": {"url": nodes.profile.control.gateway_url, **gateway.status(__opts__)},
        "nodes": {
            name: {"hostname": nodes.minion(name), "up": workers is not None, "workers": workers or {}}
            for name, workers in nodes.ask_workers(timeout=10).items()
        },
    }


def logs(node: str, lines: int = 50, worker: str | None = None) -> dict[str, Any]:
    """
    Return the last lines of a node's worker logs.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.logs node0 lines=100
    """
    found: dict[str, Any] = Nodes(__opts__).call(node, "worker.log", [worker, int(lines)])
    return found


def deployment_record() -> dict[str, Any]:
    """
    Return what is deployed, or an empty dict.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.deployment_record
    """
    return records.read(__opts__, records.DEPLOYMENT)


def starting_record() -> dict[str, Any]:
    """
    Return the deployment that is starting, or that failed to; an empty dict when there is none.

    CLI Example:

    .. code-block:: bash

        salt-run cluster.starting_record

    ``began`` is when it was ordered, ``ended`` when it was given up.
    """
    return records.read(__opts__, records.STARTING)


def _planned(profile: "Profile", deployment: str, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return plan_deployment(profile, deployment, overrides)
    except (ProfileError, KeyError) as error:
        raise CommandExecutionError(str(error)) from error


def _queue_boot(profile: "Profile", specs: Sequence[Spec], what: Literal["deploy", "undeploy"]) -> None:
    """Have the boot service expect nodes to serve, so that it names the one whose engine does not come up."""
    if profile.boot is None:
        return
    directory = records.path_of(__opts__, records.BOOT)
    for node in dict.fromkeys(spec["node"] for spec in specs):
        command_queue.give(directory, command_queue.Command(what, node))


def _refuse_open(profile: "Profile") -> None:
    try:
        refuse_open(profile)
    except ProfileError as error:
        raise CommandExecutionError(f"{error} (cluster profile check --deploy)") from error


def _check_free(deployment: str, overrides: Mapping[str, Any] | None) -> None:
    record = deployment_record()
    if record and (record["deployment"] != deployment or record["overrides"] != (overrides or {})):
        raise CommandExecutionError(f"{record['deployment']} is deployed: run `cluster undeploy` first")


def _install_further(nodes: Nodes, name: str) -> None:
    """Install the engine that a deployment names, and the model in its form, on nodes that lack either.

    The engine of a node's accelerator comes with its other states; another one only when it is wanted.
    """
    profile = nodes.profile
    deployment = profile.deployments[name]
    if deployment.engine is None:
        return
    engine = profile.engines[deployment.engine]
    wanted = [[engine.directory(), engine.kind], [model_directory(profile, engine)]]
    made = engine.interface.conversion is not None
    functions = ["engine.installed", "model.converted"][: 1 + made]
    found = nodes.ask(functions, wanted[: 1 + made], deployment.nodes)
    lacking = [node for node in deployment.nodes if not found[node] or not all(found[node].values())]
    if not lacking:
        return
    for node, result in state_apply.apply(__opts__, nodes, lacking, False, "engine.further,model.further").items():
        if result["failed"]:
            first = result["failed"][0]
            text = f"{node}: {engine.interface.title} could not be installed: {first['comment']}"
            raise CommandExecutionError(f"{text}; next: cluster apply engine.further,model.further")


def _start(nodes: Nodes, specs: Sequence[Spec], started: float, timeout: float) -> None:
    """Start the workers and wait until all are ready; those of one turn are ready before the next one is started."""
    profile = nodes.profile
    deadline = started + timeout
    for start_turn in sorted({spec.get("start_turn", 0) for spec in specs}):
        group = [spec for spec in specs if spec.get("start_turn", 0) == start_turn]
        for spec in group:
            progress("starting", spec["node"], spec["name"], started)
            engine = profile.engine_for(profile.deployments[spec["deployment"]], spec["node"])
            nodes.call(spec["node"], "worker.start", [spec, engine_slice(engine)])
        readiness.wait_ready(nodes, group, started, max(deadline - time.monotonic(), readiness.POLL_SECONDS))
