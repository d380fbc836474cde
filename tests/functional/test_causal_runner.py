"""The causal runner drives a whole experiment, with stand-ins for the nodes and for the bursts."""

import json
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import salt.client
from salt.exceptions import CommandExecutionError

from bottleneck.load.workload import Load, load_of
from bottleneck.plan.nodes import deployment_record
from bottleneck.profile import find_profile, load_profile
from bottleneck.runs.run import Run
from cli.bottleneck import load_of as load_of_run
from tests import sealing
from tests.by_file import load

REPOSITORY = Path(__file__).parents[2]
SHARES = {"link_rate": 0.6, "cpu_speed": 0.3}


class Nodes:
    """Both nodes of the cluster as the runner sees them: what is slowed, and what was asked."""

    def __init__(self) -> None:
        self.slowed: dict[str, list[dict[str, Any]]] = {}
        self.calls: list[str] = []
        self.silent: set[str] = set()
        self.ranks: dict[str, list[str]] = {}

    def cmd(self, hosts: Any, function: str, arguments: Any = (), **_: Any) -> dict[str, Any]:
        hosts = [hosts] if isinstance(hosts, str) else hosts
        self.calls.append(function)
        answers: dict[str, Any] = {}
        for host in hosts:
            if host in self.silent:
                continue
            if function == "actuator.look":
                answers[host] = {"cores": 1, "quota_cores": None, "rate_bytes_per_second": 5e6, "delay_seconds": None}
                answers[host]["ranks"] = self.ranks.get(host, [])
            elif function == "perturb.set":
                self.slowed[host] = list(arguments[0].get(host, []))
                answers[host] = {"armed": True, "applied": self.slowed[host]}
            elif function == "perturb.undo":
                answers[host] = self.slowed.pop(host, [])
            else:
                answers[host] = True
        return answers

    def waited_for(self) -> float:
        """The factor by which a burst takes longer while node1, the rank that is waited for, is paused."""
        share = max((change["share"] for change in self.slowed.get("node1", []) if "share" in change), default=0.0)
        return float(1.0 / (1.0 - share))

    def slowdown(self, actuator: str) -> float:
        """The factor by which an actuator slows the slowest node."""
        changes = [change for each in self.slowed.values() for change in each if change["actuator"] == actuator]
        if actuator == "link_rate":
            return max([5e6 / change["bytes_per_second"] for change in changes], default=1.0)
        return max([change.get("slowdown", 1.0) for change in changes], default=1.0)


@pytest.fixture
def causal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("_runners/causal.py", "causal_runner")
    nodes = Nodes()
    sealing.nodes_answer(monkeypatch)
    monkeypatch.setattr(salt.client, "LocalClient", lambda mopts: nodes)
    clock = {"now": 1000.0}
    # In this module alone: another thread's event loop that read this clock would sleep for the difference.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock["now"]))
    profile = load_profile(find_profile("embedded"))
    module.__opts__ = {"cluster_profile": str(find_profile("embedded")), "cluster_directory": str(tmp_path)}
    record = deployment_record(profile, "tp2")

    def send(heads: list[str], model: str, vocabulary: int, requests: int, *lengths: int, **load: Any) -> Any:
        assert heads == ["10.77.0.10:8000"] and requests == 4
        module.lengths = lengths
        slots = load.get("slots")
        # The cache holds two: with fewer at a time the others wait.
        waiting = module.waiting_share * max(0.0, 2 / slots - 1) if slots else 0.0
        seconds = 1.0 + waiting + sum(share * (nodes.slowdown(name) - 1) for name, share in SHARES.items())
        begun, clock["now"] = clock["now"], clock["now"] + seconds
        seconds *= nodes.waited_for()
        # A little noise that is the same every time.
        seconds *= 1 + 0.01 * ((load["seed"] * 7) % 5 - 2)
        times = [begun + seconds * (number + 1) / 8 for number in range(8)]
        return [{"sent": begun, "token_times": times, "error": module.failing} for _ in range(requests)]

    module._metrics = lambda head: module.metrics
    module.metrics, module.waiting_share = "", 0.0
    module.__salt__ = {
        "cluster.deployment_record": lambda: module.record,
        "probe.fresh": lambda: {"measured": [], "left": []},
        "burst_load.send": send,
    }
    module.nodes, module.record, module.failing = nodes, record, None
    return module


def test_an_experiment_finds_what_the_bursts_depend_on_and_puts_everything_back(causal: Any) -> None:
    found = causal.run(budget=60, resources=["link_rate:direct", "cpu"], upgrades={"link_rate:direct": 4})
    assert found["conclusion"]["class"] == "link_bandwidth" and found["conclusion"]["confirmed"]
    shares = {row["resource"]: row["metrics"]["time"]["share"] for row in found["sensitivity"]}
    assert shares["link_rate:direct"]["value"] == pytest.approx(0.6, abs=0.05)
    assert shares["cpu"]["value"] == pytest.approx(0.3, abs=0.05)
    (upgrade,) = found["upgrades"]
    # A link four times as fast really saves 0.6 * 3 / 4 here: the stand-in computes it, the prediction does not know.
    assert upgrade["metrics"]["time"]["real"]["saved"]["value"] == pytest.approx(0.45, abs=0.03)
    assert abs(upgrade["metrics"]["time"]["error_points"]) < 5
    assert causal.nodes.slowed == {} and causal.nodes.calls[-1] == "perturb.undo"
    assert found["problems"] == [] and found["deployment"] == "tp2"
    assert causal.lengths == (256, 32)


@pytest.mark.parametrize(("blocks", "named"), [(40, "kv_cache_capacity"), (400, "")])
def test_where_the_cache_holds_fewer_requests_than_are_under_way_fewer_stand_for_fewer_blocks(
    causal: Any, blocks: int, named: str
) -> None:
    # 288 tokens of a request are 18 blocks: 40 hold two of the four that are under way.
    causal.metrics = f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{blocks}"}} 1.0\n'
    causal.waiting_share = 0.8
    found = causal.run(budget=20, resources=["sequences"])
    (resource,) = found["resources"]
    assert resource["amount"] == (2 if named else 4)
    assert (found["conclusion"]["class"] == "kv_cache_capacity") == bool(named)
    assert (causal.lengths == (256, 32)) == bool(named), "shorter requests would fit"


def test_ranks_are_paused_one_at_a_time_and_the_one_that_is_waited_for_is_named(causal: Any) -> None:
    causal.nodes.ranks = {node: [f"tp2-0/VLLM::Worker_TP{node[-1]}"] for node in ("node0", "node1")}
    found = causal.run(budget=120, resources=["rank"])
    slack = {each["rank"]: each["slack"] for each in found["slack"]}
    assert set(slack) == {"rank:node0", "rank:node1"} and found["waited_for"] == "rank:node1"
    assert slack["rank:node1"]["value"] == pytest.approx(0.0, abs=0.25)
    assert slack["rank:node0"]["value"] == pytest.approx(1.0, abs=0.25)
    assert found["conclusion"]["class"] == "straggler" and found["sensitivity"] == []
    assert causal.nodes.slowed == {} and causal.nodes.calls[-1] == "perturb.undo"
    with pytest.raises(CommandExecutionError, match="no resource rank:node1"):
        causal.run(resources=["rank:node1"], upgrades={"rank:node1": 2})


def test_bursts_too_long_for_the_budget_are_cut_alike(causal: Any) -> None:
    found = causal.run(budget=20, resources=["link_rate:direct"])
    # A burst of one second, of which 40 are to fit into 20 s.
    assert found["burst"] == {"input_tokens": 128, "output_tokens": 16} and causal.lengths == (128, 16)
    assert "stand for 256 and 32" in found["problems"][0]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, CommandExecutionError])
def test_whatever_ends_it_everything_is_put_back(causal: Any, failure: type[BaseException]) -> None:
    sent = causal.__salt__["burst_load.send"]

    def send(*arguments: Any, **load: Any) -> Any:
        if any(causal.nodes.slowed.values()):
            raise failure
        return sent(*arguments, **load)

    causal.__salt__["burst_load.send"] = send
    with pytest.raises(failure):
        causal.run(budget=60)
    assert causal.nodes.slowed == {} and causal.nodes.calls[-1] == "perturb.undo"


def test_a_node_that_does_not_answer_ends_it_and_is_named(causal: Any) -> None:
    looked = causal.nodes.cmd

    def cmd(hosts: Any, function: str, *arguments: Any, **keywords: Any) -> Any:
        if function == "perturb.set":
            causal.nodes.silent.add("node1")
        return looked(hosts, function, *arguments, **keywords)

    causal.nodes.cmd = cmd
    with pytest.raises(CommandExecutionError, match="node1 is silent"):
        causal.run(budget=60)
    assert causal.nodes.calls[-1] == "perturb.undo", "the other one is put back"


def test_a_burst_that_fails_measures_nothing(causal: Any) -> None:
    causal.failing = "connection refused"
    with pytest.raises(CommandExecutionError, match=r"4 of 4 failed: connection refused.*cluster logs"):
        causal.run(budget=60)


def test_what_is_asked_for_must_be_there(causal: Any) -> None:
    with pytest.raises(CommandExecutionError, match="no resource link_rate:token-ring under tp2: expected link_rate"):
        causal.run(resources=["link_rate:token-ring"])
    causal.record = {}
    with pytest.raises(CommandExecutionError, match="nothing is deployed"):
        causal.run()


# Every field of a load another than the profile's; where the burst shows it: a key of what `burst_load.send` is given.
CLOSED = Load(input_tokens=100, output_tokens=20, requests=11, seed=77, temperature=0.5, concurrency=3)
OPEN = replace(CLOSED, concurrency=None, rate_per_second=0.25, requests=3)


@pytest.mark.parametrize("sent", [CLOSED, OPEN], ids=["closed", "open"])
def test_every_field_of_a_load_reaches_the_bursts(causal: Any, sent: Load) -> None:
    bursts: list[dict[str, Any]] = []

    def send(heads: Any, model: str, vocabulary: int, requests: int, *lengths: int, **load: Any) -> Any:
        bursts.append({"requests": requests, "lengths": lengths, **load})
        return [{"sent": 0.0, "token_times": [0.1, 0.2], "error": None} for _ in range(requests)]

    causal.__salt__["burst_load.send"] = send
    # As a run has it on record, and as the command hands it on.
    recorded = Run(workload=load_of(json.loads(json.dumps(sent.to_json()))))
    found = causal.run(budget=20, resources=["cpu"], load=load_of_run(recorded))
    defaults = load_profile(find_profile("embedded")).workload.model_dump()
    for field in fields(Load):
        value = getattr(sent, field.name)
        assert value is None or value != defaults.get(field.name), f"{field.name}: expected another than the default"
        assert found["workload"].get(field.name) == value, field.name
    first = bursts[0]
    assert first["lengths"] == (sent.input_tokens, sent.output_tokens)
    assert (first["concurrency"], first["rate"]) == (sent.concurrency, sent.rate_per_second)
    assert (first["temperature"], first["seed"]) == (sent.temperature, sent.seed)
    # A closed loop sends one round of its concurrency at a time, an open one a few arrivals.
    assert first["requests"] == (sent.concurrency or sent.requests)


def test_a_load_that_is_not_understood_is_refused(causal: Any) -> None:
    with pytest.raises(CommandExecutionError, match=r"load: burst; expected input_tokens, .*rate_per_second"):
        causal.run(load={"burst": 4})
