"""Read a run's folder, as much of it as there is: what is missing or broken is named in `Run.problems`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bottleneck.json_numbers import number
from bottleneck.load.client import ClientResult, client_result
from bottleneck.load.workload import Load, WorkloadError, load_of
from bottleneck.plan.nodes import deployment_record
from bottleneck.plan.workers import DeploymentRecord
from bottleneck.profile.loading import load_interfaces
from bottleneck.profile.paths import ENGINE_INTERFACES, repository_directory
from bottleneck.profile.yaml_lines import ProfileError
from bottleneck.runs.ceilings import SCHEMA as CEILINGS_SCHEMA
from bottleneck.runs.ceilings import Ceilings
from bottleneck.runs.reading import lenient, read_json, read_object
from bottleneck.runs.run import Run, with_deployment, with_readings
from bottleneck.telemetry.batches import Batch, read_batches
from bottleneck.telemetry.prometheus_text import MetricsText

if TYPE_CHECKING:
    from bottleneck.profile.types import Profile

SCHEMA = 2


class RunError(Exception):
    """The folder is not a run at all."""


def _dictionary(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_engine(folder: Path, stem: str, problems: list[str]) -> dict[str, MetricsText]:
    found: dict[str, MetricsText] = {}
    for path in sorted(folder.glob(f"{stem}*.prom")):
        head = path.name.removeprefix(stem).removesuffix(".prom").removeprefix(".")
        found[head] = MetricsText.parse(path.read_text(encoding="utf-8", errors="replace"))
    if not found:
        problems.append(f"{stem}.prom: missing; the readings inside the samples stand in for it")
    return found


def _read_load(head: dict[str, Any], problems: list[str]) -> Load | None:
    try:
        return load_of(_dictionary(head.get("workload")))
    except WorkloadError as error:
        problems.append(f"run.json: workload: {error}")
        return None


def client_files(folder: Path) -> list[Path]:
    """Return the load generator's results in a run's folder: one, or one for each load of a sweep.

    Parameters
    ----------
    folder : Path
        Folder of the run.

    Returns
    -------
    list[Path]
        Plain or compressed files; the loads of a sweep in the order of their names, those of numbers in the order of
        these.
    """
    single = [path for path in (folder / "client.json", folder / "client.json.gz") if path.exists()]
    several = [*(folder / "client").glob("*.json"), *(folder / "client").glob("*.json.gz")]
    return single[:1] or sorted(several, key=lambda path: (len(path.name), path.name))


def _read_client(folder: Path, problems: list[str]) -> ClientResult | None:
    paths = client_files(folder)
    if not paths:
        problems.append("client.json: missing")
    documents = [document for path in paths if (document := read_json(path, problems)) is not None]
    if not documents:
        return None
    found = client_result(documents)
    if found.broken:
        problems.append(f"{paths[0].name}: {found.broken} requests have times or tokens that are not numbers")
    return found


def _read_ceilings(path: Path, problems: list[str]) -> Ceilings:
    document = read_object(path, problems)
    if document is None:
        return Ceilings()
    if document.get("schema") != CEILINGS_SCHEMA:
        problems.append(f"{path.name}: schema {document.get('schema')!r}, expected {CEILINGS_SCHEMA}; not used")
        return Ceilings()
    found, trouble = lenient(Ceilings, document, path.name)
    problems += trouble
    return found or Ceilings()


def _read_profile(folder: Path, problems: list[str]) -> Profile | None:
    path = folder / "profile.yaml"
    if not path.exists():
        problems.append("profile.yaml: missing")
        return None
    try:
        from bottleneck.profile import load_profile

        return load_profile(path)
    except Exception as error:  # a run outlives the profile's schema: analyse what is left
        problems.append(f"profile.yaml: cannot be read ({error})")
        return None


_BESIDE = ("versions.json", "verdict.json")
_FILES = ("run.json", "samples.jsonl.gz", "client.json", "client.json.gz")


def is_run(folder: Path) -> bool:
    """Return whether a folder holds anything of a run.

    Parameters
    ----------
    folder : Path
        Any folder.
    """
    return any((folder / name).exists() for name in _FILES) or any(folder.glob("engine_after*.prom"))


def load_run(folder: Path | str) -> Run:
    """Return the run in a folder, as much of it as there is.

    Parameters
    ----------
    folder : Path or str
        Folder of the run. A file that is missing or cannot be read is a sentence in `Run.problems`, no error.

    Raises
    ------
    RunError
        When the folder does not exist or holds no file of a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; list them with: cluster run list")
    if not is_run(folder):
        raise RunError(f"{folder}: not a run folder: none of {', '.join(_FILES)} is in it; see cluster run list")
    problems: list[str] = []
    found = read_object(folder / "run.json", problems)
    _check_schema(folder / "run.json", found)
    head = found or {}
    samples = folder / "samples.jsonl.gz"
    batches, trouble = read_batches(samples) if samples.exists() else ([], ["samples.jsonl.gz: missing"])
    problems += trouble
    start = head.get("kind") == "start"
    profile = _read_profile(folder, problems)
    record = _read_record(folder, head, profile, problems)
    client = None if start else _read_client(folder, problems)
    ceilings = _read_ceilings(folder / "ceilings.json", problems)
    versions, verdict = (read_object(folder / name, problems, needed=False) for name in _BESIDE)
    stems = ("engine_before", "engine_after")
    before, after = ({} if start else _read_engine(folder, stem, problems) for stem in stems)
    run = Run(
        id=str(head.get("id", folder.name)),
        kind="start" if start else "recorded",
        deployment=str(head.get("deployment", "")),
        interval=_interval(head, batches, problems),
        profile=profile,
        workload=None if start or not head else _read_load(head, problems),
        status=str(head.get("status", "partial")),
        note=str(head.get("note", "")),
        versions=versions or {},
        ceilings=ceilings,
        batches=tuple(batches),
        engine_before=before,
        engine_after=after,
        client=client,
        verdict=verdict,
        problems=tuple(problems),
        folder=folder,
    )
    if record is not None:
        version = _engine_version(versions or {}, record.settings.engine)
        settings = record.settings.model_copy(update={"engine_version": version})
        run = replace(with_deployment(run, record), settings=settings)
    return with_readings(run)


def _check_schema(path: Path, document: dict[str, Any] | None) -> None:
    if document is not None and document.get("schema") != SCHEMA:
        raise RunError(
            f"{path}: schema {document.get('schema')!r}, expected {SCHEMA}: it is of another version of this program; "
            "record it anew with: cluster bench"
        )


def _read_record(
    folder: Path, head: dict[str, Any], profile: Profile | None, problems: list[str]
) -> DeploymentRecord | None:
    """Return what was deployed: from plan.json, else from the profile and what was changed of it."""
    path, record = folder / "plan.json", None
    document = read_object(path, problems, needed=False)
    _check_schema(path, document)
    if document is not None:
        record, trouble = lenient(DeploymentRecord, document, path.name)
        problems += trouble
        if record is not None and not trouble:
            return record
    name, overrides = str(head.get("deployment", "")), _dictionary(head.get("overrides"))
    if profile is None or name not in profile.deployments:
        return record
    try:
        return DeploymentRecord.model_validate(deployment_record(profile, name, overrides))
    except ProfileError as error:
        problems.append(f"run.json: overrides: {error}")
        return record


def _engine_version(versions: dict[str, Any], engine: str) -> str | None:
    """Return the version of the first node's engine."""
    interface = load_interfaces(repository_directory() / "profiles" / ENGINE_INTERFACES).get(engine)
    for node in _dictionary(versions.get("nodes")).values():
        found = _dictionary(_dictionary(node).get("engine"))
        names = interface.version_of if interface else []
        return next((str(found[name]) for name in names if name in found), None)
    return None


# No run lasts longer: what says so is broken.
_LONGEST_SECONDS = 7 * 86400.0


def _interval(head: dict[str, Any], batches: list[Batch], problems: list[str]) -> tuple[float, float]:
    """Return start and end as run.json has them, else those of the samples."""
    start, end = number(head.get("started")), number(head.get("ended"))
    if 0 <= end - start <= _LONGEST_SECONDS:
        return start, end
    if head:
        seen = f"started {head.get('started')!r:.40}, ended {head.get('ended')!r:.40}"
        problems.append(f"run.json: {seen}: not the bounds of a run; those of the samples stand in")
    times = [moment for batch in batches for moment in (number(batch.get("t0")), number(batch.get("t1")))]
    times = [moment for moment in times if math.isfinite(moment)]
    first, last = min(times, default=0.0), max(times, default=0.0)
    # What of the two can be right is kept.
    first, last = start if first <= start <= last else first, end if first <= end <= last else last
    return (first, last) if last - first <= _LONGEST_SECONDS else (first, first)
