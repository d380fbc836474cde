"""Puts a run on one page: everything the template shows is worked out here, nothing in the template."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bottleneck.diagnosis.verdict import analyse
from bottleneck.json_numbers import number
from bottleneck.runs.run import Run
from bottleneck.telemetry.samples import node_samples
from bottleneck.units import duration_text
from cli.main import COMMANDS
from cli.report.comparison import comparison_table
from cli.report.drawing import cdf_picture, chart_picture, hover_data, time_ticks
from cli.report.figures import Figures, client_figures
from cli.report.ledger import ledger_picture
from cli.report.quantity import quantity
from cli.report.series import GROUPS, run_charts, time_edges
from cli.report.usage import usage

_HERE = Path(__file__).parent
# A sentence may have the next command to type in it.
_COMMAND = re.compile(rf"\b(cluster (?:{'|'.join(COMMANDS)})(?![\w-])(?: [\w<>./%=:*-]+)*)")


def verdict_of(run: Run, again: bool = False) -> dict[str, Any]:
    """Return the verdict that was recorded with the run, or analyse it now."""
    if run.verdict is not None and not again:
        return run.verdict
    return analyse(run).to_json()


def confidence_word(confidence: float) -> str:
    """Say how far a confidence carries."""
    return "strong" if confidence >= 0.75 else "fair" if confidence >= 0.5 else "weak"


def with_commands(text: str) -> list[tuple[str, str]]:
    """Cut a sentence into plain parts and the `cluster` commands inside it."""
    parts = _COMMAND.split(text)
    found = []
    for index, part in enumerate(parts):
        if not part:
            continue
        stop = part[-1] if index % 2 and part[-1] in ".:" else ""
        found.append(("command" if index % 2 else "text", part.removesuffix(stop)))
        if stop:
            found.append(("text", stop))
    return found


def when(moment: float) -> str:
    """Return unix seconds as a date for people."""
    return datetime.fromtimestamp(moment, UTC).strftime("%-d %B %Y, %H:%M:%S UTC") if moment > 0 else "unknown"


def render(runs: Sequence[Run]) -> str:
    """Return the report of the first run, compared with the others, as one HTML document.

    The page allows itself one script (by its hash) and no connection of any kind.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"quantity": quantity, "commands": with_commands}
    script = (_HERE / "hover.js.j2").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    context = page(runs)
    context["style"] = Markup((_HERE / "report.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    context["script"] = Markup(script)  # noqa: S704 - our own file, no data in it
    context["script_digest"] = digest
    return environment.get_template("report.html.j2").render(context)


def page(runs: Sequence[Run]) -> dict[str, Any]:
    """Return everything the template shows."""
    run = runs[0]
    verdict = verdict_of(run)
    figures = client_figures(run.client)
    samples = node_samples(run.batches)
    edges = time_edges(*run.interval)
    charts = run_charts(run, samples, edges)
    pictures = [chart_picture(chart) for chart in charts]
    confidence = float(verdict.get("confidence") or 0.0)
    return {
        "run": run,
        "title": f"{verdict.get('title') or 'No verdict'}: {run.deployment} on {_profile_name(run)}",
        "started": when(run.interval[0]),
        "length": duration_text(run.seconds) if run.seconds > 0 else "unknown length",
        "profile_name": _profile_name(run),
        "verdict": verdict,
        "confidence": confidence,
        "confidence_word": confidence_word(confidence),
        "evidence": verdict.get("evidence") or [],
        "runners_up": verdict.get("runners_up") or [],
        "advice": [str(line) for line in verdict.get("advice") or []],
        "gain": verdict.get("gain"),
        "cards": _cards(figures),
        "ledger": ledger_picture(verdict.get("ledger") or {}),
        "usage": usage(run, samples, edges),
        "groups": [
            {"name": name, "title": title, "note": note, "pictures": [p for p in pictures if p["chart"].group == name]}
            for name, (title, note) in GROUPS.items()
        ],
        "time_ticks": time_ticks(run.seconds) if len(edges) > 1 else [],
        "hover": hover_data(charts, edges),
        "latencies": [cdf_picture(item) for item in figures.latencies] if figures else [],
        "points": _points(run),
        "comparison": comparison_table(runs) if len(runs) > 1 else None,
        "settings": configuration(run),
        "workers": run.workers,
        "notes": missing_notes(run, verdict, [chart.note for chart in charts]),
    }


def _profile_name(run: Run) -> str:
    return f"{run.profile.name} {run.profile.version}" if run.profile else "an unknown profile"


def _cards(figures: Figures | None) -> list[dict[str, str]]:
    if figures is None:
        return []
    speed = figures.output_tokens_per_second
    cards = [
        {
            "name": "Output",
            "value": quantity(speed, "tokens/s") if speed else "unknown",
            "note": "all requests together",
        }
    ]
    for latency in figures.latencies:
        cards.append(
            {
                "name": latency.name,
                "value": quantity(latency.percentile(50), "s"),
                "note": f"median; p95 {quantity(latency.percentile(95), 's')}",
            }
        )
    good = figures.requests - figures.failed
    cards.append({"name": "Requests", "value": str(good), "note": f"{figures.failed} failed"})
    return cards


def _points(run: Run) -> list[dict[str, str]]:
    """Return a row for every point of a sweep; nothing for a single load."""
    points = run.client.points if run.client else []
    columns = {
        "at a time": ("max_concurrency", ""),
        "requests/s": ("request_rate", ""),
        "good": ("completed", ""),
        "output": ("output_throughput", "tokens/s"),
        "TTFT median": ("median_ttft_ms", "s"),
        "TTFT p99": ("p99_ttft_ms", "s"),
        "ITL median": ("median_itl_ms", "s"),
    }
    rows = []
    for point in points if len(points) > 1 else []:
        values = {title: (point.get(key), unit) for title, (key, unit) in columns.items()}
        rows.append(
            {
                title: quantity(number(value) / 1e3 if unit == "s" else value, unit) if value is not None else "–"
                for title, (value, unit) in values.items()
            }
        )
    return rows


def configuration(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the configuration as groups of names and values."""
    groups: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "Run",
            [
                ("id", run.id),
                ("status", run.status),
                ("started", when(run.interval[0])),
                ("length", duration_text(run.seconds) if run.seconds > 0 else "unknown"),
                ("note", run.note or "none"),
                ("profile", _profile_name(run)),
            ],
        )
    ]
    rows = [("name", run.deployment or "unknown")]
    if run.profile:
        shape = run.profile.model.shape
        rows += [("model", run.profile.model.name), ("shape", f"{shape.layers} layers of {shape.hidden_size}")]
    if run.workers:
        links = dict.fromkeys(worker.link for worker in run.workers if worker.link)
        rows += [
            ("nodes", ", ".join(dict.fromkeys(worker.node for worker in run.workers))),
            ("link between ranks", ", ".join(links) or "none"),
        ]
        known = run.settings.model_dump(exclude_none=True)
        rows += [(name.removesuffix("_bytes"), _plain(name, value)) for name, value in known.items()]
    rows += [(f"changed: {name}", _plain(name, value)) for name, value in run.overrides.items()]
    groups.append(("Deployment", rows))
    load = run.workload.to_json() if run.workload else {}
    groups.append(("Workload", [(name, _plain(name, value)) for name, value in load.items()]))
    groups.append(("Versions", [(name, _plain(name, value)) for name, value in run.versions.items()]))
    return [(name, rows) for name, rows in groups if rows]


def _plain(name: str, value: object) -> str:
    if name.endswith("_bytes"):
        return quantity(value, "bytes")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value)


def missing_notes(run: Run, verdict: dict[str, Any], chart_notes: Sequence[str]) -> list[str]:
    """Return, each once, what is missing, doubtful or must be read with care."""
    notes = [*run.problems, *(str(note) for note in verdict.get("notes") or [])]
    if not run.ceilings.known:
        notes.append("No ceilings: nothing tells how much more the links and nodes can do. Measure them: cluster probe")
    return list(dict.fromkeys([*notes, *(note for note in chart_notes if note)]))
