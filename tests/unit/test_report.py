"""The report: what is on the page, what is said to be missing, and that data stay data."""

from __future__ import annotations

import gzip
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from bottleneck.runs.run import Run
from bottleneck.runs.run_folder import load_run
from bottleneck.telemetry.samples import Steps, node_samples
from cli import main as program
from cli.report import page as page_module
from cli.report.command import report, write_report
from cli.report.drawing import chart_picture, line_path, nice_step, ticks, time_ticks
from cli.report.figures import client_figures
from cli.report.ledger import RESOURCES, ledger_picture
from cli.report.page import render, with_commands
from cli.report.quantity import quantity
from cli.report.series import GROUPS, Chart, Line, Reference, node_chart, rates, run_charts, time_edges
from cli.report.usage import usage
from tests.run_builder import Shape, build_run

runner = CliRunner()
app = typer.Typer()
app.command()(report)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(build_run(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def page(whole: Run) -> str:
    return render([whole])


def text_of(html: str) -> str:
    """The words of a page, without scripts, styles and tags."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", bare)))


def test_verdict_comes_first_with_evidence_confidence_gain_and_advice(page: str) -> None:
    words = text_of(page)
    assert re.search(r'<h1 id="verdict-title">Bandwidth of link direct</h1>', page)
    for part in (
        "86 % strong",
        "Runners-up: prefill compute 21 % of an output token's time, straggler 4 % of an output token's time",
        "152 ms less per token",
        "moving bytes over direct takes 60% of an output token's time 60.1 %, ledger",
        "19.7 Mbit/s, samples of node0, ceilings.json",
        "cluster probe --links direct",
    ):
        assert part in re.sub(r"\s+,", ",", words), part
    places = [page.index(f'id="{name}"') for name in ("verdict", "evidence", "ledger", "ceilings", "time", "latency")]
    assert places == sorted(places)


def test_page_opens_without_a_connection(page: str) -> None:
    assert not re.search(r"(?:https?:)?//[\w.-]+\.\w+", page)
    assert not re.search(r"<(?:link|script|img|iframe)[^>]+(?:src|href)=\"(?!data:)", page)
    assert "default-src 'none'" in page
    assert page.count("<script>") == 1


def test_ledger_parts_fill_the_bar(whole: Run) -> None:
    assert whole.verdict
    picture = ledger_picture(whole.verdict["ledger"])
    assert picture
    assert sum(item["share"] for item in picture["whole"]) == pytest.approx(1.0)
    assert picture["whole"][-1]["tone"] == "unexplained"
    assert sum(row["share"] for row in picture["rows"]) == pytest.approx(1.0)
    decode = next(phase for phase in picture["phases"] if phase["name"] == "decode")
    assert decode["before"] + decode["width"] == pytest.approx(100.0)
    assert picture["small"] == ["waiting to start 127 us"]


def test_a_resource_nobody_knows_is_shown_all_the_same() -> None:
    ledger = {"total": 2.0, "entries": [{"phase": "verify", "resource": "draft_model", "seconds": 2.0, "share": 1.0}]}
    picture = ledger_picture(ledger)
    assert picture
    assert picture["rows"][0]["words"] == "draft model"
    assert picture["rows"][0]["tone"] == "other"


def test_ceilings_beside_use(whole: Run) -> None:
    rows = {
        (use.resource, use.where): use for use in usage(whole, node_samples(whole.batches), time_edges(*whole.interval))
    }
    link = rows["link", "direct: node0 sends"]
    assert link.ceiling == pytest.approx(2.5e6)
    assert link.mean_share == pytest.approx(0.836, abs=0.02)
    assert link.peak_share == pytest.approx(0.99, abs=0.02)
    assert rows["CPU", "node1"].mean_share == pytest.approx(0.31, abs=0.03)
    assert rows["sequences", "node0"].ceiling == 16
    # A probe without a measurement of the use: the ceiling is shown, no share is made up.
    assert rows["arithmetic", "node0"].ceiling == pytest.approx(95e9)
    assert rows["arithmetic", "node0"].mean_share is None


def test_no_client_no_ceilings_lost_batches_still_a_report_that_says_so(tmp_path: Path) -> None:
    words = text_of(render([load_run(build_run(tmp_path, degraded=True))]))
    for part in (
        "Inconclusive",
        "ceilings.json: missing",
        "client.json: missing",
        "Measure them: cluster probe",
        "No ledger",
        "No client timings were recorded",
        "5 batches of node0 never came",
        "samples of node1 cover 0% of the interval",
        "the run is marked partial",
        "Shaded: no sample.",
        "profile, not measured",
    ):
        assert part in words, part


def test_a_run_with_nothing_but_its_head_gives_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "20260101T000000Z-x-0000"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"schema": 2, "id": folder.name, "deployment": "x"}))
    words = text_of(render([load_run(folder)]))
    assert "No samples were recorded" in words
    assert "Neither ceilings nor samples were recorded" in words


def test_data_cannot_become_markup_or_script(tmp_path: Path) -> None:
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    folder = build_run(tmp_path, note=evil)
    verdict = json.loads((folder / "verdict.json").read_text())
    verdict |= {"title": evil, "meaning": evil, "advice": [f"{evil} cluster probe"], "notes": [evil]}
    verdict["evidence"][0] |= {"statement": evil, "source": evil, "unit": evil}
    verdict["ledger"]["entries"][1] |= {"link": evil, "resource": evil, "source": evil, "phase": evil}
    (folder / "verdict.json").write_text(json.dumps(verdict))
    (folder / "versions.json").write_text(json.dumps({evil: evil}))
    with gzip.open(folder / "samples.jsonl.gz", "rt") as stream:
        batches = [json.loads(line) for line in stream]
    for batch in batches:
        batch["node"] = evil
        for sample in batch["samples"]:
            sample["links"][evil] = sample["links"]["direct"]
    with gzip.open(folder / "samples.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(batch) + "\n" for batch in batches)
    html = render([load_run(folder)])
    assert "<img" not in html
    assert html.count("<script>") == 1
    assert html.count("<script") == 2  # the data block and the page's own
    assert "alert(" in unescape(html)


def test_comparison_marks_what_is_beyond_noise(tmp_path: Path, whole: Run) -> None:
    fast = build_run(tmp_path, identity="20261123T223000Z-tp2-beef", shape=Shape(prefill=1.4), note="link restored")
    words = text_of(render([whole, load_run(fast)]))
    assert "20261123T223000Z-tp2-beef: tp2, “link restored”" in words
    assert re.search(
        r"time to first token 6\.4\d s 6\.\d+ to 6\.\d+ s 1\.4\d s .*? -78\.\d % better, beyond noise", words
    )
    assert re.search(r"time between two tokens .*? within noise", words)


def test_sweep_has_a_table_of_its_points(tmp_path: Path) -> None:
    folder = build_run(tmp_path)
    result = json.loads((folder / "client.json").read_text())
    results = [{**result, "max_concurrency": number, "median_ttft_ms": 1000.0 * number} for number in (1, 4)]
    (folder / "client.json").write_text(json.dumps({"results": results}))
    words = text_of(render([load_run(folder)]))
    assert "Points of the sweep" in words
    assert re.search(r"4 inf 16 15\.5 tokens/s 4 s – –", words)


def test_rates_have_a_gap_where_samples_were_lost() -> None:
    moments = np.array([0.0, 0.5, 1.0, 4.0, 4.5, 5.0])
    steps = Steps(moments[:-1], moments[1:], np.array([1.0, 1.0, 6.0, 1.0, 1.0]))
    found = rates(steps, np.arange(0.0, 5.5, 0.5))
    assert found == [2.0, 2.0, None, None, None, None, None, None, 2.0, 2.0]


def test_many_cores_are_a_mean_over_faint_lines() -> None:
    samples = [
        {"t": float(second), "cpu": {str(core): [second * core / 4, 0, 0, 0, 0, 0] for core in range(4)}}
        for second in range(5)
    ]
    series = node_samples([{"node": "n", "boot": "b", "sequence": 1, "t0": 0, "t1": 4, "samples": samples}])["n"]
    chart = node_chart("n", series, time_edges(0.0, 4.0))
    assert [line.faint for line in chart.lines] == [True] * 4 + [False]
    assert chart.lines[-1].known == pytest.approx([0.375] * 8)


def test_a_far_ceiling_is_reported_and_not_drawn() -> None:
    lines = [Line("up", "node0", [1e6, 2e6]), Line("down", "node1", [None, 1e6], down=True)]
    far = chart_picture(Chart("c", "links", "l", "bytes/s", lines, [Reference("ceiling", 1e9)], mirrored=True))
    assert far["references"] == []
    assert far["asides"] == ["Ceiling 8 Gbit/s, off the scale: 500 times the highest use."]
    near = chart_picture(Chart("c", "links", "l", "bytes/s", lines, [Reference("ceiling", 2.5e6)], mirrored=True))
    assert [round(item["percent"]) for item in near["references"]] == [96, 4]
    assert near["gaps"] == []


def test_axes_and_paths() -> None:
    assert nice_step(1.0, 5) == pytest.approx(0.2)
    # 2.7 MB/s are 21.6 Mbit/s: the marks are round in the unit that is shown.
    assert [tick.text for tick in ticks(0.0, 2.7e6, "bytes/s")] == ["0", "10 Mbit/s", "20 Mbit/s"]
    assert [tick.text for tick in ticks(0.0, 4.3, "count")] == ["0", "2", "4"]
    assert [tick.text for tick in time_ticks(33.0)][-1] == "30 s"
    assert [tick.text for tick in time_ticks(900.0)][1] == "2 min"
    assert line_path([1.0, None, 0.5], 0.0, 1.0) == "M0.0 0.0H333.3M666.7 50.0H1000.0"
    assert time_ticks(0.0) == []


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.601, "1", "60.1 %"),
        (0.0004, "1", "under 0.1 %"),
        (0.152, "s", "152 ms"),
        (2.5e6, "B/s", "20 Mbit/s"),
        (69.02e6, "B", "69 MB"),
        (256 * 2**20, "bytes", "256 MiB"),
        (95e9, "FLOP/s", "95 GFLOP/s"),
        (12345.0, "requests", "12,345 requests"),
        (1.0, "cores", "1 core"),
        (None, "s", ""),
        (float("nan"), "s", "unknown"),
    ],
)
def test_quantities_as_people_read_them(value: object, unit: str, words: str) -> None:
    assert quantity(value, unit) == words


def test_commands_are_found_in_advice() -> None:
    line = "Confirm it: cluster lab throttle node0 --cpu 80%, then --restore."
    assert with_commands(line) == [
        ("text", "Confirm it: "),
        ("command", "cluster lab throttle node0 --cpu 80%"),
        ("text", ", then --restore."),
    ]
    assert with_commands("the cluster is idle") == [("text", "the cluster is idle")]


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_command_of_the_program_is_found(name: str) -> None:
    assert with_commands(f"Next: cluster {name} --json.")[1] == ("command", f"cluster {name} --json")


def test_a_chart_of_no_group_of_the_report_is_an_error_and_every_tone_has_a_colour(whole: Run) -> None:
    with pytest.raises(ValueError, match="chart x: group 'disks'; expected one of nodes, links, engine"):
        Chart("x", "disks", "x", "share", [])
    charts = run_charts(whole, node_samples(whole.batches), time_edges(*whole.interval))
    assert {chart.group for chart in charts} == set(GROUPS)
    colours = (Path(page_module.__file__).parent / "report.css").read_text(encoding="utf-8")
    tones = {line.tone for chart in charts for line in chart.lines} | set(RESOURCES)
    assert {tone for tone in tones if f".tone-{tone} " not in colours and f".tone-{tone}," not in colours} == set()


def test_figures_leave_failed_requests_out(whole: Run) -> None:
    figures = client_figures(whole.client)
    assert figures
    assert (figures.requests, figures.failed, figures.output_tokens) == (16, 0, 512)
    assert figures.output_tokens_per_second == pytest.approx(15.5, abs=0.1)
    first = figures.latency("TTFT")
    assert first
    assert first.percentile(50) <= first.percentile(95) <= first.percentile(99)


def test_command_writes_beside_the_run_or_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_RUNS", str(tmp_path / "runs"))
    folder = build_run(tmp_path / "runs")
    done = runner.invoke(app, ["--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["path"] == str(folder / "report.html")
    target = tmp_path / "new" / "page.html"
    done = runner.invoke(app, [folder.name[:10], "--output", str(target)])
    assert done.exit_code == 0, done.output
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_write_report_of_folders(tmp_path: Path) -> None:
    folders = [build_run(tmp_path), build_run(tmp_path, identity="20261123T223000Z-tp2-beef")]
    page = write_report(folders, tmp_path / "out" / "report.html")
    assert "Compared with other runs" in page.read_text()


def test_command_says_what_to_do_without_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_RUNS", str(tmp_path))
    done = runner.invoke(app, [])
    assert done.exit_code == 1
    assert "cluster bench" in done.stderr
