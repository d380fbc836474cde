"""The bench runner records a whole run, with a stand-in for the load generator and for the engine."""

import gzip
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import salt.client
from salt.exceptions import CommandExecutionError

from bottleneck.load.workload import load_of
from bottleneck.profile import find_profile
from bottleneck.runs.run_folder import load_run
from tests import sealing
from tests.by_file import load

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data" / "bench"

# Says how far it is the way the real one does, and saves what the real one saved once, moved to now.
GENERATOR = """#!{python}
import json, sys, time
arguments = dict(zip(sys.argv[1:], sys.argv[2:]))
assert "http_proxy" not in __import__("os").environ
if arguments["--seed"] == "13":
    print("ValueError: no tokenizer there", file=sys.stderr); sys.exit(1)
total = int(arguments["--num-prompts"])
begun = time.perf_counter()
for done in range(total + 1):
    print(f"\\r {{done}}%|| {{done}}/{{total}} [00:01<00:02, 1it/s]", end="", flush=True)
    if arguments["--seed"] == "14" and done == 1:
        time.sleep(60)
result = json.load(open({result!r}))
moved = begun - min(result["start_times"])
result["start_times"] = [start / 1e6 + begun for start in range(len(result["start_times"]))]
result["ttfts"] = [0.01 for _ in result["ttfts"]]
result["itls"] = [[0.001] * len(gaps) for gaps in result["itls"]]
if arguments["--seed"] == "15":
    result["errors"][3] = "Traceback:\\nConnectionError: refused"; result["failed"] = 1; result["completed"] -= 1
time.sleep(0.05)
json.dump(result, open(arguments["--result-dir"] + "/" + arguments["--result-filename"], "w"))
"""


class Engine(BaseHTTPRequestHandler):
    """Counts completions and shows the count as a metric."""

    completions: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._answer(f'vllm:request_success_total{{engine="0"}} {len(self.completions)}.0\n')

    def do_POST(self) -> None:
        self.completions.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer("{}")

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


class Local:
    """Stands in for Salt's client: what the nodes would answer."""

    stages: dict[str, str]

    def __init__(self, mopts: Any) -> None:
        pass

    def cmd(self, hosts: list[str], function: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        if function == "worker.status":
            return {host: {"tp2-0": {"stage": self.stages[host], "reason": "a cause"}} for host in hosts}
        return {host: {"engine.version": {"vllm": "0"}, "probe.machine": {"cores": 1}}[function] for host in hosts}


@pytest.fixture
def engine() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Engine,), {"completions": []}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: ThreadingHTTPServer) -> ModuleType:
    module = load("_runners/bench.py", "bench_runner")
    executable = tmp_path / "engine" / "bin" / "vllm"
    executable.parent.mkdir(parents=True)
    executable.write_text(GENERATOR.format(python=sys.executable, result=str(DATA / "result.json")))
    executable.chmod(0o755)
    # The engine's own Python, which is given the project's wrapper of `vllm` (tests/unit/test_reconnecting.py).
    python = executable.with_name("python")
    python.write_text('#!/bin/sh\n[ "$1" = -P ] && [ -e "$2" ] && shift 2 && exec "${0%/*}/vllm" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr("bottleneck.profile.types.EngineSpec.directory", lambda self: str(tmp_path / "engine"))
    sealing.nodes_answer(monkeypatch)
    monkeypatch.setattr(salt.client, "LocalClient", type("Client", (Local,), {}))
    salt.client.LocalClient.stages = {"node0": "ready", "node1": "ready"}
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    module.__opts__ = {"cluster_profile": str(find_profile("embedded")), "cluster_directory": str(tmp_path / "state")}
    head = {"head": True, "api_address": "127.0.0.1", "api_port": engine.server_address[1]}
    workers = [
        {"node": "node0", "name": "tp2-0", "replica": 0, "rank": 0, **head},
        {"node": "node1", "name": "tp2-0", "replica": 0, "rank": 1, "head": False},
    ]
    workers = [{**worker, "link": "direct"} for worker in workers]
    exported: list[tuple[float, float]] = []

    def export(start: float, end: float, path: str) -> None:
        exported.append((start, end))
        nodes = ("node0", "node1") if len(exported) > 1 else ("node0",)
        with gzip.open(path, "wt") as file:
            for node in nodes:
                file.write(json.dumps({"node": node, "boot": "b", "sequence": 1, "t0": start, "t1": end}) + "\n")

    record = {
        "deployment": "tp2",
        "overrides": {"max_num_seqs": 4},
        "settings": {"max_num_seqs": 4},
        "workers": workers,
    }
    probed: list[int] = []
    handler: Any = engine.RequestHandlerClass

    def fresh() -> dict[str, Any]:
        """Stand in for the probe: what it finds is on file before the run's copy is made."""
        completions = handler.completions
        probed.append(len(completions))
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "ceilings.json").write_text('{"schema": 1, "profile": "fresh"}')
        return {"measured": ["direct: node0, node1"], "left": [], "seconds": 3.0}

    module.__salt__ = {"cluster.deployment_record": lambda: record, "telemetry.export": export, "probe.fresh": fresh}
    module.record, module.exported, module.state, module.probed = record, exported, tmp_path / "state", probed
    return module


def test_a_run_is_recorded_whole(bench: Any, engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    bench.state.mkdir(exist_ok=True)
    (bench.state / "ceilings.json").write_text('{"schema": 1}')
    before = time.time()
    result = bench.run(note="hello")
    folder = Path(result["folder"])
    assert result["status"] == "complete" and result["problems"] == [] and result["failed"] == 0
    assert folder.name == result["run"] and folder.parent == bench.state / "runs"
    assert "-tp2-" in result["run"] and result["run"][8] == "T" and result["run"][15] == "Z"
    assert sorted(path.name for path in folder.iterdir()) == [
        "ceilings.json",
        "client.json",
        "engine_after.node0.prom",
        "engine_before.node0.prom",
        "engines.yaml",
        "plan.json",
        "profile.yaml",
        "run.json",
        "samples.jsonl.gz",
        "versions.json",
    ]
    run = load_run(folder)
    assert run.problems == ()
    assert run.profile is not None and run.profile.name == "embedded"
    assert run.deployment == "tp2" and run.note == "hello"
    assert run.ceilings.profile == "fresh" and bench.probed == [0], "measured before any request"
    assert run.status == "complete" and run.workload == load_of({}, run.profile.workload)
    assert run.client is not None and len(run.client.good) == 16
    assert before < run.interval[0] < run.interval[1] < time.time(), "unix time, not the generator's clock"
    assert run.seconds == pytest.approx(0.01 + 31 * 0.001, abs=0.002), "from the first request to the last answer"
    nodes = run.versions["nodes"]
    assert isinstance(nodes, dict) and nodes["node1"]["engine"] == {"vllm": "0"}
    # The first export did not reach the end on both nodes, so it was asked again.
    assert len(bench.exported) == 2 and {batch["node"] for batch in run.batches} == {"node0", "node1"}
    assert bench.exported[0][0] < run.interval[0] and bench.exported[0][1] > run.interval[1]
    # Warm-up requests are of the same lengths, and over before the counters are read.
    sent = engine.RequestHandlerClass.completions
    assert [len(request["prompt"]) for request in sent] == [256, 256] and sent[0]["max_tokens"] == 32
    assert run.engine_before["node0"].points[0].value == 2.0
    reported = [
        json.loads(line.split(" ", 1)[1]) for line in capfd.readouterr().err.splitlines() if "@progress" in line
    ]
    assert [each["run"] for each in reported if "run" in each] == [result["run"]]
    assert any(each.get("total") == 16 for each in reported)


def test_a_link_that_cannot_be_measured_is_reported_and_the_run_goes_on(bench: Any) -> None:
    def fresh() -> None:
        raise CommandExecutionError("2 requests are under way")

    bench.__salt__["probe.fresh"] = fresh
    result = bench.run(warmup=False)
    assert result["status"] == "complete"
    (problem,) = result["problems"]
    assert "2 requests are under way" in problem and "older ceiling" in problem
    assert json.loads((Path(result["folder"]) / "run.json").read_text())["problems"] == [problem]


def test_pairs_that_time_did_not_allow_are_named(bench: Any) -> None:
    bench.__salt__["probe.fresh"] = lambda: {"measured": [], "left": ["direct: node0, node1"]}
    assert "no time for direct: node0, node1" in bench.run(warmup=False)["problems"][0]


def test_left_out_the_probe_is_not_called_and_that_is_reported(bench: Any) -> None:
    result = bench.run(warmup=False, probe=False)
    assert bench.probed == [] and "left out on request" in result["problems"][0]


def test_replicas_exchange_nothing_so_no_link_is_measured(bench: Any) -> None:
    for replica, worker in enumerate(bench.record["workers"]):
        worker |= {"replica": replica, "rank": 0}
    result = bench.run(warmup=False)
    assert bench.probed == [] and result["problems"] == []


def test_a_sweep_keeps_each_point(bench: Any) -> None:
    result = bench.run(concurrency=[1, 8], requests=16, warmup=False)
    folder = Path(result["folder"])
    assert sorted(path.name for path in (folder / "client").iterdir()) == ["1.json", "2.json"]
    points = json.loads((folder / "run.json").read_text())["points"]
    assert [(point["concurrency"], point["client"]) for point in points] == [(1, "client/1.json"), (8, "client/2.json")]
    assert points[0]["ended"] <= points[1]["started"]
    assert all(point["headline"]["output_tokens_per_second"] > 0 for point in points)
    run = load_run(folder)
    assert run.interval == (points[0]["started"], points[1]["ended"])
    assert run.client is not None and len(run.client.requests) == 32


def test_failing_requests_are_counted_and_named(bench: Any) -> None:
    result = bench.run(seed=15, warmup=False)
    assert result["status"] == "complete"
    assert result["failed"] == 1 and result["first_error"] == "ConnectionError: refused"


def test_a_generator_that_dies_leaves_a_partial_run_and_its_last_word(bench: Any) -> None:
    with pytest.raises(
        CommandExecutionError, match="tp2-0: the load generator ended with status 1: ValueError: no tok"
    ):
        bench.run(seed=13, warmup=False)
    (folder,) = (bench.state / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["status"] == "partial"
    assert (folder / "generator" / "1.tp2-0.log").exists() and (folder / "engine_after.node0.prom").exists()


def test_interrupted_it_keeps_what_it_has_and_ends_the_generator(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    real = bench.Generator

    def generator(*arguments: Any, **keywords: Any) -> Any:
        started.append(real(*arguments, **keywords))
        return started[-1]

    monkeypatch.setattr(bench, "Generator", generator)
    pause = time.sleep
    interrupted: list[bool] = []

    def sleep(seconds: float) -> None:
        pause(0.02)
        if not interrupted and any(each.requests_done() == 1 for each in started):
            interrupted.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(bench.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        bench.run(concurrency=[2, 4], seed=14, warmup=False)
    (folder,) = (bench.state / "runs").iterdir()
    assert not folder.name.endswith(".partial")
    document = json.loads((folder / "run.json").read_text())
    assert document["status"] == "partial" and document["points"] == []
    assert (folder / "samples.jsonl.gz").exists()
    assert [each.is_running for each in started] == [False]


def test_without_a_deployment_it_says_what_to_run(bench: Any) -> None:
    bench.__salt__["cluster.deployment_record"] = dict
    with pytest.raises(CommandExecutionError, match="nothing is deployed; deploy it first: cluster deploy pp2"):
        bench.run(deployment="pp2")
    assert not (bench.state / "runs").exists()


def test_another_deployment_is_named(bench: Any) -> None:
    with pytest.raises(CommandExecutionError, match="tp2 is deployed, not pp2: cluster undeploy"):
        bench.run(deployment="pp2")
    with pytest.raises(CommandExecutionError, match="no deployment tp9 in profile embedded: expected tp2"):
        bench.run(deployment="tp9")


def test_a_worker_that_is_not_ready_is_named_with_its_reason(bench: Any) -> None:
    salt.client.LocalClient.stages["node1"] = "failed"
    with pytest.raises(CommandExecutionError, match=r"tp2-0 on node1 is failed \(a cause\)"):
        bench.run()


def test_an_engine_that_does_not_answer_leaves_no_run(bench: Any, engine: Any) -> None:
    bench.record["workers"][0]["api_port"] = 1
    with pytest.raises(CommandExecutionError, match="Connection refused"):
        bench.run()
    assert list((bench.state / "runs").iterdir()) == []


def test_old_runs_make_room(bench: Any) -> None:
    for number in range(25):
        (bench.state / "runs" / f"2025{number:02}").mkdir(parents=True)
    result = bench.run(warmup=False)
    left = sorted(path.name for path in (bench.state / "runs").iterdir())
    assert len(left) == 20 and left[-1] == result["run"] and left[0] == "202506"
