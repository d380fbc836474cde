"""Trace runs with torch's profiler on every rank, and keep what a judge of the ledger needs of each trace."""

from __future__ import annotations

import json
import lzma
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run_folder import RunError, load_run
from cli.control import Control, ControlError
from cli.gpu_lab.cases import Cases, Device, Trace
from cli.gpu_lab.rank_traces import ENDING, RankTrace, TraceError, reduced
from cli.gpu_lab.steps import Steps
from cli.gpu_lab.trials import DEPLOY_SECONDS, RUN_SECONDS, put_in
from cli.output import console
from cli.verify.faults import FaultError, injected
from cli.verify.generator import GENERATOR_SOCKET, generator
from cli.verify.pace import Measured
from lab import LabError
from lab.namespaces import on_host

SCHEMA = 1
# Below the folder that engines write into (salt/engine/user.sls), which all nodes of a lab share.
FOLDER = "/var/cache/cluster/engine/traces"
# Stacks and tables would take minutes to write; the process in front of the engine is no rank.
PROFILER = {
    "profiler": "torch",
    "torch_profiler_dir": FOLDER,
    "torch_profiler_with_stack": False,
    "torch_profiler_dump_cuda_time_total": False,
    "ignore_frontend": True,
}
# To write a trace of some seconds.
STOP_SECONDS, FILE_SECONDS, POLL_SECONDS = 300.0, 60.0, 0.5
# Run on the control node, with the API's key on its input.
_POST = """
import http.client, sys
from urllib.parse import urlsplit
place = urlsplit(sys.argv[1])
connection = http.client.HTTPConnection(place.netloc, timeout=float(sys.argv[2]))
connection.request("POST", place.path, b"", {"Authorization": "Bearer " + sys.stdin.read().strip()})
answer = connection.getresponse()
if answer.status != 200:
    sys.exit(f"{sys.argv[1]}: {answer.status} {answer.read().decode(errors='replace')[:300]}; expected 200")
"""


def record_of(folder: Path, name: str) -> Path:
    """Return where the record of a trace is in a folder of records."""
    return folder / "traces" / f"{name}.json.xz"


class Tracing:
    """Traces runs in one lab.

    Parameters
    ----------
    steps
        Its folder gets `traces/NAME.json.xz`, and both runs of each trace: without the profiler, and under it.
    deadline
        Begin no further trace after it, by `time.monotonic`.
    """

    def __init__(self, control: Control, cases: Cases, device: Device, steps: Steps, deadline: float) -> None:
        self.control, self.cases, self.device, self.steps, self.deadline = control, cases, device, steps, deadline
        self._raw = steps.folder / "raw"

    def take(self, traces: Sequence[Trace]) -> list[Path]:
        """Take the traces that have no record yet, until the time is spent; return the records of this call."""
        found: list[Path] = []
        deployed: str | None = None
        wanted = [trace for trace in traces if not self._path(trace).exists()]
        try:
            with generator(self.control):
                for trace in wanted:
                    if time.monotonic() > self.deadline:
                        console.print("the time is spent; the next call goes on from here")
                        break
                    with suppress(ControlError), self.steps.step(trace.name) as current:
                        try:
                            if deployed != trace.deployment:
                                deployed = None
                                self._deploy(trace.deployment)
                                deployed = trace.deployment
                            current.result = self._trace(trace)
                            found.append(self._path(trace))
                        except (FaultError, LabError, RunError, TraceError, OSError, ControlError) as error:
                            # What is broken here is no reason to lose what comes after it.
                            console.print(f"[red]{trace.name}: {error}[/]", soft_wrap=True)
                            raise ControlError(str(error)) from error
        finally:
            with suppress(ControlError):
                self.control.runner("cluster.undeploy", timeout=DEPLOY_SECONDS)
            for folder in (on_host(FOLDER), self._raw):
                shutil.rmtree(folder, ignore_errors=True)
        return found

    def _path(self, trace: Trace) -> Path:
        return record_of(self.steps.folder, trace.name)

    def _deploy(self, deployment: str) -> None:
        self.control.runner("cluster.undeploy", timeout=DEPLOY_SECONDS)
        arguments = ["--profiler-config", json.dumps(PROFILER)]
        overrides = {
            "extra_arguments": [*self.control.profile.deployments[deployment].server.extra_arguments, *arguments]
        }
        began = time.monotonic()
        self.control.runner(
            "cluster.deploy", {"deployment": deployment, "overrides": overrides}, timeout=DEPLOY_SECONDS
        )
        console.print(f"{deployment} deployed with its profiler in {time.monotonic() - began:.0f} s")

    def _trace(self, trace: Trace) -> dict[str, Any]:
        """Run a load without the profiler and a short one under it; keep both and the reduced traces."""
        found = self.cases.load(trace.load, self.device)
        assert found is not None, "a trace whose load has no form here is not among them"
        load, requests = found
        nodes = self.control.profile.deployments[trace.deployment].nodes
        url, key = self._endpoint()
        shutil.rmtree(on_host(FOLDER), ignore_errors=True)
        runs, verdicts, costs = {}, {}, {}
        with injected(self.control, put_in(trace.put, trace.deployment, self.device, self.control)):
            for which, sent in (("plain", requests), ("traced", trace.requests_on(self.device))):
                traced = which == "traced"
                asked = {
                    **load.bench(sent, 1),
                    "generator": GENERATOR_SOCKET,
                    "warmup": not traced,
                    "probe": not traced,
                }
                with self._profiler(url, key) if traced else nullcontext():
                    result = self.control.runner("bench.run", asked, timeout=RUN_SECONDS)
                folder = self._raw / str(result["run"])
                self.control.fetch(str(result["folder"]), folder)
                self.steps.keep_run(folder)
                row = result["points"][0]
                measured = Measured.of(row["headline"])
                runs[which], verdicts[which] = result["run"], analyse(load_run(folder)).to_json()
                costs[which] = measured.seconds_per_token if measured else None
        base = float(int(row["started"]))
        ranks, sizes = self._reduced(len(nodes), base)
        document = {
            "schema": SCHEMA,
            "trace": trace.name,
            "device": self.device,
            "deployment": trace.deployment,
            "nodes": list(nodes),
            "load": load.to_json(),
            "put": trace.put.model_dump(mode="json", exclude_none=True) if trace.put else None,
            "runs": runs,
            "seconds_per_token": costs,
            "verdicts": verdicts,
            "base_seconds": base,
            "window": [row["started"], row["ended"]],
            "trace_bytes": sizes,
            "ranks": [rank.to_json() for rank in ranks],
        }
        self._path(trace).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, separators=(",", ":")).encode()
        self._path(trace).write_bytes(lzma.compress(text, preset=6))
        shutil.rmtree(on_host(FOLDER), ignore_errors=True)
        counts = [len(rank.collectives) for rank in ranks]
        console.print(f"{trace.name}: {' and '.join(map(str, counts))} collectives; {verdicts['traced']['class']}")
        return {"record": self._path(trace).name, "collectives": counts, "trace_bytes": sizes}

    def _endpoint(self) -> tuple[str, str]:
        """Return where the head's server is, and the key of its API."""
        found = self.control.runner("cluster.endpoint")
        read = self.control.run(["cat", found["key_file"]])
        if read.returncode:
            raise ControlError(f"{found['key_file']}: {read.stderr.strip()}", "cluster deploy")
        return str(found["urls"][0]).removesuffix("/v1"), read.stdout

    @contextmanager
    def _profiler(self, url: str, key: str) -> Iterator[None]:
        """Have the profiler of every rank on while the block runs; at its end every rank writes its trace."""
        self._post(f"{url}/start_profile", key)
        try:
            yield
        finally:
            self._post(f"{url}/stop_profile", key)

    def _post(self, url: str, key: str) -> None:
        asked = self.control.run(
            [sys.executable, "-c", _POST, url, str(STOP_SECONDS)], input=key, timeout=STOP_SECONDS + 30
        )
        if asked.returncode:
            raise ControlError(f"the profiler did not answer: {asked.stderr.strip()[-400:]}", "cluster logs")

    def _reduced(self, ranks: int, base: float) -> tuple[list[RankTrace], list[int]]:
        """Wait for every rank's trace to be whole, and reduce them."""
        deadline = time.monotonic() + FILE_SECONDS
        while True:
            paths = sorted(on_host(FOLDER).glob(f"*{ENDING}"))
            try:
                if len(paths) < ranks:
                    raise TraceError(
                        f"{len(paths)} traces in {FOLDER} of the nodes; expected one of each of {ranks} ranks"
                    )
                return [reduced(path, base) for path in paths], [path.stat().st_size for path in paths]
            except TraceError:
                # It is there before it is whole.
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)
