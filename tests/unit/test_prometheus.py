"""Prometheus and Grafana are given only what is exported."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bottleneck.plan import prometheus
from bottleneck.profile import ProfileError, find_profile, load_profile
from bottleneck.runs.scenario import read_document
from bottleneck.telemetry import exporter
from cli.prometheus import app
from tests import run_builder

DATA = Path(__file__).parents[1] / "data" / "h200"
NAME = re.compile(r"\b((?:cluster|vllm)[_:][a-z_:]+)\b")
# Of vLLM's own metrics that the trimmed recordings do not hold; seen in vLLM 0.24 to 0.32.
ALSO = {"vllm:time_to_first_token_seconds_bucket"}


def exported() -> set[str]:
    recorded = read_document(DATA / "scenario_kv_preempt.json.xz")["metrics_after"]
    return (
        {metric.name for metric in exporter.METRICS} | {line.partition("{")[0] for line in recorded.splitlines()} | ALSO
    )


def test_the_scrape_configuration_names_the_exporter_and_every_head() -> None:
    profile = load_profile(run_builder.PROFILE)
    jobs = {job["job_name"]: job for job in prometheus.configuration(profile)["scrape_configs"]}
    assert jobs["cluster"]["static_configs"] == [{"targets": ["10.77.0.1:9477"], "labels": {"cluster": "embedded"}}]
    assert jobs["gateway"]["static_configs"][0]["targets"] == ["10.77.0.1:8000"]
    assert [config["targets"] for config in jobs["engine"]["static_configs"]] == [
        ["10.77.0.10:8000"],
        ["10.77.0.11:8000"],
    ]
    assert jobs["engine"]["static_configs"][0]["labels"] == {"node": "node0", "cluster": "embedded"}


def test_the_boot_service_is_scraped_where_nodes_boot() -> None:
    arc = load_profile(find_profile("arc-a770/v0.1"))
    job = next(job for job in prometheus.configuration(arc)["scrape_configs"] if job["job_name"] == "cluster")
    assert arc.boot
    wanted = [f"{arc.control.address}:{port}" for port in (arc.telemetry.exporter_port, arc.boot.port)]
    assert [config["targets"] for config in job["static_configs"]] == [[target] for target in wanted]


def test_one_deployment_has_its_own_heads_only() -> None:
    profile = load_profile(run_builder.PROFILE)
    assert [target["targets"] for target in prometheus.targets(profile, "tp2")] == [["10.77.0.10:8000"]]
    assert len(prometheus.targets(profile, "replicas")) == 2
    with pytest.raises(ProfileError):
        prometheus.targets(profile, "absent")


def test_the_alert_rules_use_only_what_is_exported() -> None:
    rules = [rule for group in yaml.safe_load(prometheus.rules_text())["groups"] for rule in group["rules"]]
    assert len(rules) >= 7
    for rule in rules:
        names = set(NAME.findall(rule["expr"])) - {"cluster"}
        assert names <= exported(), rule["alert"]
        assert names or "up{" in rule["expr"]
        assert {"summary", "description"} <= set(rule["annotations"])
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert label in exporter.LABELS


def test_the_dashboard_uses_only_what_is_exported() -> None:
    dashboard = json.loads(prometheus.dashboard_text())
    shown = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in dashboard["panels"]}
    assert len(shown) == len(dashboard["panels"]) >= 10
    shown |= {each["name"]: [each["expr"]] for each in dashboard["annotations"]["list"]}
    for title, expressions in shown.items():
        for expression in expressions:
            names = set(NAME.findall(expression))
            assert names and names <= exported(), f"{title}: {expression}"
    places = [tuple(panel["gridPos"][key] for key in "xy") for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_counters_are_never_shown_raw() -> None:
    counters = {metric.name for metric in exporter.METRICS if metric.kind == "counter"}
    for panel in json.loads(prometheus.dashboard_text())["panels"]:
        for target in panel["targets"]:
            for name in set(NAME.findall(target["expr"])) & counters:
                assert re.search(rf"(rate|increase)\({name}", target["expr"]), target["expr"]


def test_files_are_written_once(tmp_path: Path) -> None:
    profile = load_profile(run_builder.PROFILE)
    assert prometheus.write(profile, tmp_path / "made") == ["prometheus.yml", "rules.yml", "dashboard.json"]
    assert prometheus.write(profile, tmp_path / "made") == []
    assert prometheus.write(profile, tmp_path / "made", "tp2") == ["prometheus.yml"]


def test_the_command_prints_or_writes(tmp_path: Path) -> None:
    runner = CliRunner()
    printed = runner.invoke(app, ["config", "--profile", "embedded"])
    assert printed.exit_code == 0
    assert yaml.safe_load(printed.stdout)["rule_files"] == ["rules.yml"]
    assert yaml.safe_load(runner.invoke(app, ["rules"]).stdout)["groups"]
    assert json.loads(runner.invoke(app, ["dashboard"]).stdout)["panels"]
    path = tmp_path / "rules.yml"
    assert runner.invoke(app, ["rules", "--output", str(path)]).exit_code == 0
    assert path.read_text() == prometheus.rules_text()
    assert runner.invoke(app, ["rules", "--output", str(tmp_path / "no" / "x.yml")]).exit_code == 1
    assert runner.invoke(app, ["config", "--deployment", "absent"]).exit_code == 2
    assert runner.invoke(app, ["config", "--profile", "absent"]).exit_code == 2
