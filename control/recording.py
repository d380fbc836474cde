"""Make a run's folder on the control node: what is deployed, the samples, and its name, which it gets last."""

import json
import platform
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import salt.version
from salt.exceptions import CommandExecutionError

from bottleneck.profile.local_overrides import copy_profile
from bottleneck.profile.paths import commit, find_engine_map
from bottleneck.runs import ceilings
from bottleneck.runs.run_folder import SCHEMA
from bottleneck.telemetry.batches import read_batches
from control import records
from control.nodes import Nodes, Options

KEPT_RUNS = 20
# On every node, where its own engine is.
CURRENT_ENGINE = "/opt/cluster/engine"
# Batches a little outside the interval, so that the first and last step can be cut at its border.
MARGIN_SECONDS = 3.0
# How late samples may be beyond the time from one sending to the next.
SAMPLES_DEADLINE_SECONDS = 5.0


class Recording:
    """A run while it is made.

    Parameters
    ----------
    opts : mapping
        The master's options.
    nodes : Nodes
        The profile's nodes.
    record : mapping
        What is deployed, or being deployed: a `DeploymentRecord`.
    what : str
        What is recorded, where it is no load: the last part of the run's id but one.
    """

    def __init__(self, opts: Options, nodes: Nodes, record: Mapping[str, Any], what: str = "") -> None:
        self._opts, self._nodes, self._record = opts, nodes, record
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = "-".join(part for part in (record["deployment"], what) if part)
        self.id = f"{stamp}-{name}-{random.getrandbits(16):04x}"
        runs = records.path_of(opts, "runs")
        self.folder, self.final = runs / f"{self.id}.partial", runs / self.id

    def open(self) -> None:
        """Make the folder, in the place of the oldest run that is kept."""
        _prune(self.folder.parent)
        self.folder.mkdir(parents=True)

    def drop(self) -> None:
        """Remove what there is: nothing was recorded that counts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write_static(self) -> None:
        """Write what is known beforehand: profile, plan, versions, ceilings."""
        source = Path(self._opts["cluster_profile"])
        copy_profile(source, self.folder / "profile.yaml")
        shutil.copy(find_engine_map(source), self.folder / "engines.yaml")
        plan = {key: self._record[key] for key in ("deployment", "overrides", "settings", "workers")}
        write_json(self.folder / "plan.json", {"schema": SCHEMA, **plan})
        write_json(self.folder / "versions.json", self._versions())
        self._write_ceilings(records.path_of(self._opts, records.CEILINGS))

    def _write_ceilings(self, source: Path) -> None:
        """Keep what was measured of the profile's own accelerators; a broken file goes as it is, to be said later."""
        try:
            found = ceilings.load(source, self._nodes.profile)
        except ceilings.CeilingsError:
            shutil.copy(source, self.folder)
            return
        if found is not None:
            write_json(self.folder / source.name, found.to_json())

    def _versions(self) -> dict[str, Any]:
        names = list(dict.fromkeys(worker["node"] for worker in self._record["workers"]))
        profile = self._nodes.profile
        deployment = profile.deployments[self._record["deployment"]]
        engine = profile.engine_for(deployment, names[0])
        directory = engine.directory() if deployment.engine else CURRENT_ENGINE
        packages = [*engine.interface.version_of, *engine.interface.versions]
        asked = ["engine.version", "probe.machine"], [[directory, packages], []]
        found = self._nodes.ask(*asked, names, timeout=30)
        return {
            "schema": SCHEMA,
            "salt": salt.version.__version__,
            "python": platform.python_version(),
            "control_kernel": platform.release(),
            "commit": commit(),
            "nodes": {
                name: {"engine": answer.get("engine.version"), "machine": answer.get("probe.machine")}
                for name, answer in found.items()
                if isinstance(answer, dict)
            },
        }

    def export_samples(
        self, export: Callable[[float, float, str], Any] | None, started: float, ended: float
    ) -> list[str]:
        """Have the store's batches written, again until every node's reach the end or it takes too long.

        Parameters
        ----------
        export : callable
            The runner `telemetry.export`; None where it is not there.

        Returns
        -------
        list of str
            What is missing.
        """
        path = self.folder / "samples.jsonl.gz"
        if export is None:
            return ["samples: the telemetry runner is not there"]
        expected = {worker["node"] for worker in self._record["workers"]}
        patience = self._nodes.profile.sampler.send_interval_seconds + SAMPLES_DEADLINE_SECONDS
        deadline = time.monotonic() + patience
        while True:
            try:
                export(started - MARGIN_SECONDS, ended + MARGIN_SECONDS, str(path))
            except CommandExecutionError as error:
                return [f"samples: {error}"]
            batches, _ = read_batches(path)
            reached = {batch.get("node") for batch in batches if float(batch.get("t1") or 0) >= ended}
            if expected <= reached:
                return []
            if time.monotonic() > deadline:
                late = ", ".join(sorted(expected - reached))
                return [f"samples of {late} do not reach the end of the run"]
            time.sleep(0.5)

    def close(self, document: Mapping[str, Any]) -> None:
        """Write run.json; the folder gets its name last, so that it is never seen half-made."""
        profile = self._nodes.profile
        head = {
            "schema": SCHEMA,
            "id": self.id,
            "profile": {name: getattr(profile, name) for name in ("name", "version", "digest")},
            "deployment": self._record["deployment"],
            "overrides": self._record.get("overrides") or {},
        }
        write_json(self.folder / "run.json", {**head, **document})
        self.folder.rename(self.final)


def write_json(path: Path, content: object, indent: int | None = 1) -> None:
    """Write a document of a run; without an indent on one line, for what nobody reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    separators = None if indent else (",", ":")
    path.write_text(json.dumps(content, indent=indent, separators=separators) + "\n", encoding="utf-8")


def _prune(runs: Path) -> None:
    """Keep the newest runs here; the laptop that asked has its own copies."""
    if runs.is_dir():
        for old in sorted(path for path in runs.iterdir() if path.is_dir())[: -(KEPT_RUNS - 1)]:
            shutil.rmtree(old, ignore_errors=True)
