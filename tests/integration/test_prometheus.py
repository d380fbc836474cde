"""A real Prometheus scrapes the exporter and answers a PromQL query with the ledger; promtool accepts our files."""

import json
import math
import random
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import salt._logging
import yaml

from bottleneck.plan import prometheus
from bottleneck.profile import load_profile
from bottleneck.telemetry.store import Store
from tests import run_builder, sealing
from tests.by_file import load
from tests.waiting import free_port, wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")), reason="the Debian package prometheus is missing"
    ),
]

REPOSITORY = Path(__file__).parents[2]
SHAPE = run_builder.Shape()


def promtool(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, check=False, timeout=60)


class Exporter:
    """The engine's exporter without a bus, with a run in its store that ended just now."""

    def __init__(self, folder: Path) -> None:
        engine = load("_engines/telemetry.py", "telemetry_engine")
        salt._logging.shutdown_temp_handler()
        self.store = Store(folder / "store.db")
        self.collector = engine.Collector({"cluster_directory": folder}, load_profile(run_builder.PROFILE), self.store)
        self.collector.state = replace(
            self.collector.state, settings=replace(self.collector.state.settings, retention_seconds=math.inf)
        )
        for batch in run_builder.batches(SHAPE, "m", random.Random(1)):
            data = sealing.event(folder, batch["node"], [batch])
            self.collector.take(f"cluster/telemetry/batch/{batch['node']}", data)
        self.verdict = run_builder.verdict(SHAPE)
        self.renew()
        self.port = free_port()
        self.collector.listen("127.0.0.1", self.port)

    def renew(self) -> None:
        now = time.time()
        window = {"window": "1", "start": now - 10, "end": now, "deployment": "tp2"}
        self.store.put_verdict(window, self.verdict)

    def text(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    made = Exporter(tmp_path_factory.mktemp("exporter"))
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def query(
    exporter: Exporter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("prometheus")
    profile = load_profile(run_builder.PROFILE)
    prometheus.write(profile, folder)
    configuration = yaml.safe_load((folder / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{exporter.port}"]
    configuration["scrape_configs"][1]["static_configs"] = []
    configuration["scrape_configs"][2]["static_configs"] = []
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("wb"),
    )

    def ask(path: str, **parameters: str) -> Any:
        address = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return json.loads(answer.read())["data"]
        except OSError:
            return None

    def search(expression: str) -> list[dict[str, Any]]:
        found = ask("query", query=expression)
        return found["result"] if found else []

    query: Any = search
    query.ask = ask
    try:
        wait_for(lambda: query('up{job="cluster"} == 1'))
        yield query
    finally:
        process.terminate()
        process.wait(20)


def test_a_query_returns_the_ledger(query: Callable[[str], list[dict[str, Any]]], exporter: Exporter) -> None:
    exporter.renew()
    entries = exporter.verdict["ledger"]["entries"]
    (whole,) = wait_for(lambda: query("sum(cluster_ledger_output_token_seconds)"))
    assert float(whole["value"][1]) == pytest.approx(math.fsum(entry["seconds"] for entry in entries))
    top = query("topk(1, sum by (phase, resource, link) (cluster_ledger_output_token_seconds))")
    largest = max(entries, key=lambda entry: entry["seconds"])
    assert top[0]["metric"] == {key: largest[key] for key in ("phase", "resource", "link") if largest[key]}
    (named,) = query("cluster_verdict_confidence_ratio")
    assert named["metric"]["class"] == exporter.verdict["class"]
    assert named["metric"]["cluster"] == "embedded"


def test_node_labels_are_the_nodes_own(query: Callable[[str], list[dict[str, Any]]]) -> None:
    found = query("cluster_node_up")
    assert {row["metric"]["node"]: row["value"][1] for row in found} == {"node0": "1", "node1": "1"}
    assert not query('{__name__=~"cluster_.*", exported_node!=""}')


def test_every_rule_of_ours_is_evaluated(query: Any) -> None:
    def evaluated() -> bool:
        groups = (query.ask("rules") or {}).get("groups", [])
        rules = [rule for group in groups for rule in group["rules"]]
        return bool(rules) and all(rule["health"] == "ok" for rule in rules)

    wait_for(evaluated)


def test_promtool_accepts_configuration_rules_and_metrics(exporter: Exporter, tmp_path: Path) -> None:
    prometheus.write(load_profile(run_builder.PROFILE), tmp_path)
    checked = promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    checked = promtool("check", "metrics", text=exporter.text())
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_alerts_fire_on_what_they_are_for(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(prometheus.rules_text())
    labels = {"node": "node1", "link": "direct"}

    def case(alert: str, at: str, series: dict[str, str]) -> dict[str, Any]:
        return {
            "interval": "5s",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{"alertname": alert, "eval_time": at, "exp_alerts": [{}]}],
        }

    full = {
        f'cluster_link_transmit_bytes_total{{node="{labels["node"]}",link="{labels["link"]}"}}': "0+4900000x60",
        f'cluster_link_capacity_bytes_per_second{{node="{labels["node"]}",link="{labels["link"]}"}}': "1000000x60",
    }
    cases = [
        (case("ClusterLinkSaturated", "3m", full), True),
        (case("ClusterLinkSaturated", "3m", {**full, next(iter(full)): "0+1000000x60"}), False),
        (case("ClusterNodeLost", "2m", {'cluster_node_up{node="node1"}': "0x60"}), True),
        (case("ClusterNodeLost", "2m", {'cluster_node_up{node="node1"}': "1x60"}), False),
        (case("VllmPreemptions", "2m", {'vllm:num_preemptions_total{node="node0"}': "0+1x60"}), True),
        (case("VllmRequestsWaiting", "3m", {'vllm:num_requests_waiting{node="node0"}': "3x60"}), True),
        (
            case("ClusterBottleneck", "6m", {'cluster_verdict_confidence_ratio{class="link_latency"}': "0.8x100"}),
            True,
        ),
        (case("ClusterBottleneck", "6m", {'cluster_verdict_confidence_ratio{class="balanced"}': "0.9x100"}), False),
    ]
    for test, fires in cases:
        # promtool compares every label and annotation; that one fires or not is read from what it says it got.
        document = {"rule_files": ["rules.yml"], "evaluation_interval": "5s", "tests": [test]}
        (tmp_path / "test.yml").write_text(yaml.safe_dump(document))
        finished = promtool("test", "rules", str(tmp_path / "test.yml"))
        got = (finished.stdout + finished.stderr).partition("got:")[2]
        alert = test["alert_rule_test"][0]["alertname"]
        assert (f'alertname="{alert}"' in got) is fires, f"{alert}: {finished.stdout}{finished.stderr}"
