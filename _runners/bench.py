"""
Drive a workload against what is deployed and record everything about it in a run folder.

One load generator for each head, on this control node: that of the engine, of another engine of the
profile, or this project's own (``control/streaming_load.py``) where none of those is there. A run
that is cut short keeps what it has, with status ``partial``.
"""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltException

from bottleneck.load import reconnecting, results, workload
from bottleneck.load.generator import Generator, GeneratorError
from bottleneck.plan import probing
from bottleneck.plan.engines import load_generator
from bottleneck.profile import ProfileError
from control import engine_key, locks, records, streaming_load
from control.nodes import Nodes, progress
from control.recording import Recording, write_json

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

    from bottleneck.load.workload import Load
    from bottleneck.profile import Profile

STALL_SECONDS = 300.0
POLL_SECONDS = 0.25
WARM_UP_REQUESTS = 2


def run(
    deployment: str | None = None,
    concurrency: list[int] | None = None,
    rate: list[float] | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    requests: int | None = None,
    seed: int | None = None,
    note: str = "",
    warmup: bool = True,
    probe: bool = True,
    generator: str | None = None,
) -> dict[str, Any]:
    """
    Send a workload, or a sweep of them, and return where the run is and its headline numbers.

    CLI Example:

    .. code-block:: bash

        salt-run bench.run
        salt-run bench.run concurrency='[1, 2, 4]' requests=16
        salt-run bench.run rate='[0.5, 1]'

    probe
        measure the deployment's links first, in seconds: what they carry now is what counts
    generator
        the socket of a process that has the load generator loaded (``bottleneck/load/generator_server.py``) and is to
        start it, which saves the seconds of its imports
    """
    nodes = Nodes(__opts__)
    profile = nodes.profile
    record = _deployed(profile, deployment)
    try:
        points = workload.points(
            profile.workload,
            concurrency=concurrency,
            rate_per_second=rate,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            requests=requests,
            seed=seed,
            context_length=_longest(profile, record),
        )
    except workload.WorkloadError as error:
        raise CommandExecutionError(str(error)) from error
    _check_ready(nodes, record)
    server = Path(generator) if generator else None
    # Whoever restarts the master looks for it first; several benches may run.
    with locks.shared(__opts__, locks.BENCH):
        return _Bench(nodes, record, points, str(note), server).run(bool(warmup), bool(probe))


class _Bench:
    """One run while it is made; the loader leaves it alone because of its name."""

    def __init__(
        self, nodes: Nodes, record: Mapping[str, Any], points: "Sequence[Load]", note: str, server: Path | None = None
    ) -> None:
        self.server = server
        self.nodes, self.profile, self.record, self.points, self.note = nodes, nodes.profile, record, points, note
        self.heads = [worker for worker in record["workers"] if worker["head"]]
        self.begun = time.monotonic()
        self.recording = Recording(__opts__, nodes, record)
        self.id, self.folder, self.final = self.recording.id, self.recording.folder, self.recording.final
        self.table: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.command, self.environment = _generator(self.profile, record["deployment"])
        self.generators: dict[str, Generator] = {}
        self.started = self.ended = 0.0
        self.status = "partial"

    def run(self, warmup: bool, probe: bool) -> dict[str, Any]:
        """Send every point and record it; return where the run is and its headline numbers."""
        self.recording.open()
        try:
            self.report("recording", "what is deployed")
            # Before the warm-up: for a second after a request the head's engine loop spins.
            self.measure_link(probe)
            self.recording.write_static()
            if warmup:
                self.report("warming", f"{WARM_UP_REQUESTS} requests of the same lengths")
                self.warm_up()
            self.snapshot("before")
        except BaseException:
            # Nothing was sent that counts.
            self.recording.drop()
            raise
        # From here on whoever asked can fetch what there is.
        self.report("load", f"run {self.id}", run=self.id, folder=str(self.final))
        self.started = time.time()
        try:
            for number, load in enumerate(self.points, 1):
                self.send(number, load)
            self.status = "complete"
        finally:
            for generator in self.generators.values():
                generator.end()
            self.finish()
        return {
            "run": self.id,
            "folder": str(self.final),
            "deployment": self.record["deployment"],
            "status": self.status,
            "points": self.table,
            "problems": self.problems,
            "failed": sum(row["headline"]["failed"] for row in self.table),
            "first_error": next((row["first_error"] for row in self.table if row["first_error"]), None),
            "seconds": round(time.monotonic() - self.begun, 1),
        }

    # What is known beforehand ------------------------------------------------------------

    def measure_link(self, wanted: bool) -> None:
        """Measure the links between the nodes; without it the run goes on, and reports that."""
        if not probing.replica_pairs(self.record["workers"]):
            return
        lack = None if wanted else "left out on request"
        if wanted:
            self.report("measuring", "the link")
            try:
                if left := __salt__["probe.fresh"]()["left"]:
                    lack = f"no time for {'; '.join(left)}"
            except SaltException as error:
                lack = str(error)
        if lack:
            self.problems.append(f"the link was not measured ({lack}): an older ceiling stands in")

    def warm_up(self) -> None:
        """Have each head answer requests of the same lengths; none of them is counted."""
        shape = self.profile.model.shape
        request = workload.warm_up_request(self.points[0], self.profile.model.name, shape.vocabulary_size)
        urls = [f"{_url(head)}/v1/completions" for head in self.heads for _ in range(WARM_UP_REQUESTS)]
        ask = engine_key.asking(__opts__)
        with ThreadPoolExecutor(len(urls)) as pool:
            for answer in [pool.submit(ask, url, request, 300.0) for url in urls]:
                answer.result()

    def snapshot(self, when: str) -> None:
        """Write the metrics of each head's engine as they are now."""
        for head in self.heads:
            path = self.folder / f"engine_{when}.{head['node']}.prom"
            text = engine_key.asking(__opts__)(f"{_url(head)}/metrics", None, 3.0)
            path.write_text(text, encoding="utf-8")

    # One point ---------------------------------------------------------------------------

    def send(self, number: int, load: "Load") -> None:
        """Send one point of the sweep and note what came of it."""
        shares = workload.shares(load, len(self.heads))
        launched, clock = time.time(), time.time() - time.perf_counter()
        for head, share in zip(self.heads, shares, strict=True):
            if share:
                self.generators[head["name"]] = self.start_generator(head, share, number)
        self.wait(number, load)
        merged = results.merge_results([self.result(*item) for item in self.generators.items()])
        name = "client.json" if len(self.points) == 1 else f"client/{number}.json"
        write_json(self.folder / name, merged, indent=None)
        times = results.interval(merged)
        start, end = (times[0] + clock, times[1] + clock) if times else (launched, time.time())
        row = {
            "index": number,
            **load.to_json(),
            "client": name,
            "started": start,
            "ended": end,
            "generators": len(self.generators),
            "headline": results.headline(merged),
            "first_error": results.first_error(merged),
        }
        self.table.append(row)
        self.generators = {}
        # The generator took its time to start: the run begins with its first request.
        self.started, self.ended = self.table[0]["started"], end

    def start_generator(self, head: Mapping[str, Any], share: "Load", number: int) -> Generator:
        """Start the load generator of one head."""
        try:
            return Generator(
                self.command,
                share,
                base_url=_url(head),
                model=self.profile.model.name,
                tokenizer=self.profile.model.directory(),
                directory=self.folder / "generator",
                stem=f"{number}.{head['name']}",
                environment={**self.environment, engine_key.GENERATOR_VARIABLE: engine_key.key(__opts__)},
                server=self.server,
            )
        except GeneratorError as error:
            raise CommandExecutionError(f"{head['name']}: {error}") from error

    def wait(self, number: int, load: "Load") -> None:
        """Wait for the point's generators, reporting how far they are."""
        generators = list(self.generators.values())
        total = sum(each.requests for each in generators)
        seen: int | None = None
        changed = time.monotonic()
        title = f"point {number}/{len(self.points)}, {load.label}: " if len(self.points) > 1 else ""
        while any(each.is_running for each in generators):
            counts = [count for each in generators if (count := each.requests_done()) is not None]
            done = sum(counts)
            if done != seen:
                seen, changed = done, time.monotonic()
            what = f"{done}/{total} requests" if counts else "the load generator starts"
            self.report("load", title + what, done=done, total=total, point=number)
            if time.monotonic() - changed > STALL_SECONDS:
                raise CommandExecutionError(
                    f"no request ended for {STALL_SECONDS:.0f} s ({done} of {total} done): see cluster status"
                )
            time.sleep(POLL_SECONDS)

    def result(self, name: str, generator: Generator) -> dict[str, Any]:
        """Return what a generator saved."""
        try:
            return generator.result()
        except GeneratorError as error:
            raise CommandExecutionError(f"{name}: {error}") from error

    # What is known afterwards ------------------------------------------------------------

    def finish(self) -> None:
        """Write what there is."""
        if self.status != "complete":
            self.ended = time.time()
        try:
            self.snapshot("after")
        except CommandExecutionError as error:
            self.problems.append(str(error))
        # From here on the engine is free for the next load; what is written comes from the store.
        self.report("collecting", "samples", points=self.table)
        self.problems += self.recording.export_samples(__salt__.get("telemetry.export"), self.started, self.ended)
        if self.status == "complete":
            shutil.rmtree(self.folder / "generator", ignore_errors=True)
        document = {
            "started": self.started,
            "ended": self.ended,
            "note": self.note,
            "workload": self.points[0].to_json(),
            "status": self.status,
            "points": self.table,
            "problems": self.problems,
        }
        self.recording.close(document)

    def report(self, stage: str, detail: str, **more: object) -> None:
        """Report a step as progress."""
        progress(stage, "", detail, self.begun, **more)


def _deployed(profile: "Profile", deployment: str | None) -> dict[str, Any]:
    record: dict[str, Any] = __salt__["cluster.deployment_record"]()
    wanted = deployment or record.get("deployment") or profile.default_deployment
    if wanted not in profile.deployments:
        raise CommandExecutionError(
            f"no deployment {wanted} in profile {profile.name}: expected {', '.join(profile.deployments)}"
        )
    if not record:
        raise CommandExecutionError(f"nothing is deployed; deploy it first: cluster deploy {wanted}")
    if record["deployment"] != wanted:
        raise CommandExecutionError(
            f"{record['deployment']} is deployed, not {wanted}: cluster undeploy, then cluster deploy {wanted}"
        )
    return record


def _generator(profile: "Profile", deployment: str) -> tuple[list[str], dict[str, str]]:
    """Return the load generator's command and environment: an engine's, or this project's where there is none here."""
    try:
        engine = load_generator(profile, deployment)
        executable = Path(engine.directory(), engine.load_generator or "")
        if executable.exists():
            # The client's own Python, which is beside it.
            return [str(executable.with_name("python")), "-P", reconnecting.__file__], engine.environment
    except ProfileError:
        # None of this profile's engines has one.
        pass
    return [sys.executable, "-P", streaming_load.__file__], {}


def _longest(profile: "Profile", record: Mapping[str, Any]) -> int:
    """Return the most tokens of one sequence that the server takes, as it was deployed."""
    return records.deployment(record).settings.max_model_len or profile.model.shape.context_length


def _check_ready(nodes: Nodes, record: Mapping[str, Any]) -> None:
    answers = nodes.ask_workers(list(dict.fromkeys(worker["node"] for worker in record["workers"])))
    for worker in record["workers"]:
        answer = answers[worker["node"]]
        if answer is None:
            raise CommandExecutionError(f"{worker['node']} did not answer: see cluster status")
        stage = answer.get(worker["name"], {}).get("stage", "stopped")
        if stage != "ready":
            reason = answer.get(worker["name"], {}).get("reason")
            raise CommandExecutionError(
                f"{worker['name']} on {worker['node']} is {stage}{f' ({reason})' if reason else ''}: "
                f"cluster undeploy, then cluster deploy {record['deployment']}"
            )


def _url(head: Mapping[str, Any]) -> str:
    return f"http://{head['api_address']}:{head['api_port']}"
