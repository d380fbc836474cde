"""From configured nodes to a first token: deploy, send load, ask for the bottleneck, look at units and firewall."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bottleneck.plan.engines.rendering import API_PORT
from bottleneck.profile.types import Profile
from netboot.control_node import PUBLISH_PORT, REQUEST_PORT
from rehearsal import trace
from rehearsal.laptop import CommandError, Laptop

MINUTE = 60.0
# Salt's own 5 s of patience are short for emulated machines.
PATIENCE = ("-t", "300")
# Of the control node, on the cluster's interface: nothing for a node to reach.
CLOSED = {"ssh": 22, "Prometheus": 9090}
# Of a node's units, those that are this project's.
OWN_UNITS = re.compile(r"(?:cluster|salt)-\S+\.service")
WORKER_UNITS = "cluster-worker-"
_SCORE = re.compile(r"^(?P<unit>\S+\.service)\s+(?P<exposure>\d+\.\d)\s+(?P<word>\S+)")
# Run on a node: which of the ports it is given can be connected to.
_CONNECT = """
import json, socket, sys
found = {}
for port in map(int, sys.argv[2:]):
    try:
        socket.create_connection((sys.argv[1], port), 8).close()
        found[port] = "open"
    except OSError as error:
        found[port] = type(error).__name__
print(json.dumps(found))
"""


def scores(text: str) -> dict[str, float]:
    """Return unit -> exposure (0 to 10) of this project's units, from what `systemd-analyze security` lists."""
    found = (_SCORE.match(line.strip()) for line in text.splitlines())
    return {seen["unit"]: float(seen["exposure"]) for seen in found if seen and OWN_UNITS.fullmatch(seen["unit"])}


def port_problems(seen: Mapping[str, str], open_ports: Mapping[str, int], closed: Mapping[str, int]) -> list[str]:
    """Return what a node could not reach of what it has to, and what it reached of what it must not."""
    problems = [
        f"{what} (port {port}): {seen.get(str(port), 'not tried')}; expected open"
        for what, port in open_ports.items()
        if seen.get(str(port)) != "open"
    ]
    problems += [f"{what} (port {port}) is open" for what, port in closed.items() if seen.get(str(port)) == "open"]
    return problems


class Serving:
    """Stages that two configured nodes go through, from a deployment to its end."""

    def __init__(self, laptop: Laptop, profile: Profile) -> None:
        self._laptop, self._profile = laptop, profile
        self._run = ""

    def _nodes(self, function: str, *arguments: str, minutes: float = 15.0) -> dict[str, Any]:
        """Call a function on every node through `cluster salt`; return what each answered."""
        words = ("salt", "--", *PATIENCE, "--out=json", "--static", "*", function, *arguments)
        found: dict[str, Any] = json.loads(self._laptop.cluster(*words, timeout=minutes * MINUTE))
        silent = set(self._profile.nodes) - {name for name, answer in found.items() if not isinstance(answer, bool)}
        if silent:
            raise CommandError(f"{function}: no answer of {', '.join(sorted(silent))}")
        return found

    def firewall(self) -> str:
        """Nodes reach what they need of the control node and nothing else, and their samples are acknowledged."""
        profile = self._profile
        assert profile.boot
        wanted = {
            "Salt's events": PUBLISH_PORT,
            "Salt's answers": REQUEST_PORT,
            "the samplers' acknowledgements": profile.telemetry.exporter_port,
            "the boot service": profile.boot.port,
        }
        ports = [str(port) for port in (*wanted.values(), *CLOSED.values())]
        command = ["/usr/bin/python3", "-c", _CONNECT, profile.control.address, *ports]
        seen = self._nodes("cmd.run_stdout", json.dumps(command), "python_shell=False")
        problems = [
            f"{node}: {problem}"
            for node, text in seen.items()
            for problem in port_problems(json.loads(text), wanted, CLOSED)
        ]
        if problems:
            raise CommandError("; ".join(problems))
        samplers = self._nodes("telemetry.status")
        silent = [
            f"{node}: {json.dumps(status)}"
            for node, status in samplers.items()
            if not (status.get("acknowledged") or 0)
        ]
        if silent:
            raise CommandError(f"nothing of the sampler was acknowledged: {'; '.join(silent)}")
        batches = ", ".join(f"{node} {status['acknowledged']}" for node, status in sorted(samplers.items()))
        return f"{len(wanted)} ports open, {len(CLOSED)} closed; batches acknowledged: {batches}"

    def deploy(self) -> str:
        """The model is spread over both nodes, layer by layer."""
        name = self._profile.default_deployment
        found = self._laptop.cluster_json("deploy", name, timeout=60 * MINUTE)
        status = self._laptop.cluster_json("status", timeout=15 * MINUTE)["nodes"]
        stages = {
            f"{node} {worker}": seen["stage"]
            for node, state in status.items()
            for worker, seen in state["workers"].items()
        }
        if set(stages.values()) != {"ready"} or len(stages) != len(self._profile.nodes):
            raise CommandError(f"expected one ready worker on each node; seen: {json.dumps(stages)}")
        return f"{name}: {', '.join(sorted(stages))} ready after {found['seconds']:.0f} s"

    def units(self) -> str:
        """The workers are units of systemd that run, nothing has failed, and what each unit may do has a score."""
        active = self._nodes("cmd.run_stdout", "systemctl list-units --type=service --state=active --plain --no-legend")
        failed = self._nodes("cmd.run_stdout", "systemctl list-units --state=failed --plain --no-legend")
        problems = [f"{node}: failed: {' '.join(text.split())}" for node, text in failed.items() if text.strip()]
        for node, text in active.items():
            names = [line.split()[0] for line in text.splitlines() if line.split()]
            workers = [name for name in names if name.startswith(WORKER_UNITS)]
            if not workers:
                ours = ", ".join(name for name in names if OWN_UNITS.fullmatch(name))
                problems.append(f"{node}: no unit {WORKER_UNITS}* runs, only {ours}")
        if problems:
            raise CommandError("; ".join(problems))
        listed = self._nodes("cmd.run_stdout", "systemd-analyze security --no-pager")
        found = {node: scores(text) for node, text in sorted(listed.items())}
        empty = [node for node, each in found.items() if not any(unit.startswith(WORKER_UNITS) for unit in each)]
        if empty:
            raise CommandError(f"systemd-analyze security has no score of the worker on {', '.join(empty)}")
        return "exposure, 0 to 10: " + "; ".join(
            f"{node}: {', '.join(f'{unit} {score}' for unit, score in sorted(each.items()))}"
            for node, each in found.items()
        )

    def listens(self) -> str:
        """The head serves on the control node's network, the follower on the wire between the nodes alone."""
        deployment = self._profile.deployments[self._profile.default_deployment]
        head, *followers = deployment.nodes
        seen = self._nodes("cmd.run_stdout", "ss -Hltn")
        rules = self._nodes("cmd.run_stdout", "nft list ruleset")
        api = f"{self._profile.nodes[head].links[self._profile.control.network].address}:{API_PORT}"
        problems = [] if api in seen[head] else [f"{head} does not listen on {api}"]
        link, allowed = deployment.link, self._profile.nodes[head].links[deployment.link].address
        for node in followers:
            address = self._profile.nodes[node].links[link].address
            port = self._profile.engine_of(node).interface.peer_port
            if f"{address}:{port}" not in seen[node] or seen[node].count(f":{port} ") != 1:
                problems.append(f"{node} does not listen on {address}:{port} alone")
            # As nft lists it: with braces where there are several.
            guard = rf"tcp dport (\{{ )?{port}\b.* ip saddr != (\{{ )?{re.escape(allowed)}( \}})? .*drop$"
            if not any(re.search(guard, line.strip()) for line in rules[node].splitlines()):
                problems.append(f"{node} has no rule that lets only {allowed} in")
        if problems:
            raise CommandError("; ".join(problems))
        return f"the API on {api}, layers of {', '.join(followers)} on {link} alone"

    def bench(self) -> str:
        """`cluster bench` sends the profile's workload."""
        found = self._laptop.cluster_json("bench", timeout=60 * MINUTE)
        (point,) = found["points"]
        headline, asked = point["headline"], self._profile.workload.requests
        if headline["completed"] != asked or headline["failed"]:
            raise CommandError(f"{headline['completed']} of {asked} requests: {found.get('first_error')}")
        self._run = found["run"]
        problems = f"; {'; '.join(found['problems'])}" if found["problems"] else ""
        rate, first = headline["output_tokens_per_second"], headline["ttft_seconds"]["median"]
        return f"{asked} requests, {rate:.1f} tokens/s, first token after {first:.2f} s (median){problems}"

    def bottleneck(self) -> str:
        """`cluster bottleneck` names something, or says why it cannot."""
        verdict = self._laptop.cluster_json("bottleneck", self._run, timeout=20 * MINUTE)["verdict"]
        if not verdict["ledger"]["entries"]:
            raise CommandError("the ledger of the run is empty")
        return f"{verdict['class']} ({verdict['confidence']:.0%}): {verdict['title']}"

    def first_token(self) -> str:
        """The boot's record of each node goes on to the first token."""
        view = self._laptop.cluster_json("boot", "watch", timeout=10 * MINUTE)["nodes"]
        boots = {name: trace.stages(node["boot"] or {}) for name, node in view.items()}
        wrong = [name for name, found in boots.items() if not found or found[-1].name != "first_token"]
        if wrong:
            raise CommandError(
                f"the record of {', '.join(wrong)} does not end with the first token: "
                + json.dumps({name: [stage.name for stage in boots[name]] for name in wrong})
            )
        with self._laptop.log.open("a") as log:
            log.write(f"\n--- from power-on to the first token\n{trace.table(boots)}\n")
        return "; ".join(f"{name} {trace.total_seconds(found):.0f} s" for name, found in sorted(boots.items()))

    def undeploy(self) -> str:
        """`cluster undeploy` leaves no process of the engine."""
        self._laptop.cluster("undeploy", timeout=20 * MINUTE)
        left = {
            node: lines
            for node, text in self._nodes("cmd.run_stdout", "ps -eo args").items()
            if (lines := [line for line in text.splitlines() if re.search(r"llama-server|ggml-rpc-server", line)])
        }
        if left:
            raise CommandError(f"still there: {json.dumps(left)}")
        return "no process of the engine is left"
