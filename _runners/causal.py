"""
Confirm a bottleneck by making it worse: slow one resource at a time while a load runs.

Drives the experiment that ``bottleneck.experiment`` lays out: bursts of requests, resources slowed
by the nodes' ``perturb`` modules, whose watchdogs undo it when this process does not.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltException

from bottleneck.experiment.blocks import Block, BlockError, Measurement, measurement
from bottleneck.experiment.predict import Circumstances, measured_gain, predict, report
from bottleneck.experiment.resources import (
    ARRIVALS,
    RANK,
    SEQUENCES,
    Resource,
    allowed_sequences,
    candidates,
    exchanging_pairs,
    requests_in_cache,
)
from bottleneck.experiment.session import BUDGET_SECONDS, TOLERANCE, Session
from bottleneck.load import workload
from bottleneck.runs import ceilings as ceilings_file
from bottleneck.telemetry.prometheus_text import MetricsText
from control import engine_key, records
from control.nodes import Nodes, profile_of, progress

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

    from bottleneck.load.workload import Load
    from bottleneck.plan.workers import DeploymentRecord
    from bottleneck.profile import Profile

LEASE_SECONDS = 45.0
RENEW_SECONDS = 15.0
CALL_SECONDS = 15
METRICS_SECONDS = 5.0
UPGRADE_ROUNDS = 4
# An experiment needs about so many bursts; where they are too long for that, prompts and answers are cut alike.
WANTED_BLOCKS = 40
LEAST_INPUT_TOKENS, LEAST_OUTPUT_TOKENS = 16, 4


def run(
    budget: float = BUDGET_SECONDS,
    tolerance: float = TOLERANCE,
    resources: list[str] | None = None,
    upgrades: dict[str, float] | None = None,
    upgrade_rounds: int = UPGRADE_ROUNDS,
    load: dict[str, Any] | None = None,
    probe: bool = True,
) -> dict[str, Any]:
    """
    Slow the resources of what is deployed one at a time; return how much the load depends on each.

    CLI Example:

    .. code-block:: bash

        salt-run causal.run
        salt-run causal.run budget=60 resources='["link_rate:direct", "cpu"]'
        salt-run causal.run load='{"concurrency": 2, "output_tokens": 8}'

    budget
        seconds that blocks may take; measuring the links first and putting back come on top
    resources
        names of the resources to slow; left out, all that can be
    upgrades
        resource -> factor: predict it, then make it, in blocks that take turns, and compare
    load
        what is sent, as a run's ``workload`` has it; what is left out is the profile's
    """
    try:
        profile = profile_of(__opts__)
        record = records.deployment(__salt__["cluster.deployment_record"]())
        wanted = workload.load_of(load or {}, profile.workload)
    except workload.WorkloadError as error:
        raise CommandExecutionError(f"load: {error}") from error
    driver = _Driver(profile, record, wanted)
    try:
        return driver.run(float(budget), float(tolerance), resources, upgrades or {}, int(upgrade_rounds), bool(probe))
    finally:
        driver.put_back()


def undo() -> dict[str, Any]:
    """
    Put back on every node what an experiment slowed.

    CLI Example:

    .. code-block:: bash

        salt-run causal.undo
    """
    return Nodes(__opts__).ask("perturb.undo", timeout=CALL_SECONDS)


def _metrics(head: str) -> str:
    """Return a head's metrics as text; empty when it does not answer."""
    try:
        return engine_key.asking(__opts__)(f"http://{head}/metrics", None, METRICS_SECONDS)
    except CommandExecutionError:
        return ""


class _Driver:
    """One experiment while it runs; the loader leaves it alone because of its name."""

    def __init__(self, profile: "Profile", record: "DeploymentRecord", load: "Load") -> None:
        self.profile, self.record, self.load = profile, record, load
        self.nodes = record.nodes
        self.hostnames = {node: profile.nodes[node].hostname for node in self.nodes}
        self.heads = [f"{each.api_address}:{each.api_port}" for each in record.heads]
        self.begun = time.monotonic()
        self.input_tokens, self.output_tokens = load.input_tokens, load.output_tokens
        self.problems: list[str] = []
        self.slowed = self.armed = False
        self.session_begun = self.begun

    def run(
        self,
        budget: float,
        tolerance: float,
        names: Sequence[str] | None,
        upgrades: Mapping[str, float],
        upgrade_rounds: int,
        probe: bool,
    ) -> dict[str, Any]:
        """Carry the experiment out; return its report."""
        self.report("looking", "what there is to slow")
        if probe and exchanging_pairs(self.record):
            self.measure_link()
        cached = self.cached_requests()
        found = candidates(
            self.profile,
            self.record,
            self.look(),
            self.ceilings(),
            None if self.load.rate_per_second else self.load.concurrency,
            self.load.rate_per_second,
            cached,
        )
        wanted = self.choose(found, names, upgrades)
        session = Session(wanted, self.groups(), budget_seconds=budget, tolerance=tolerance, seed=self.load.seed)
        self.report("warming", "one burst that does not count")
        begun = time.monotonic()
        self.burst(Block(-1))
        allowed, concurrency = allowed_sequences(self.record), self.load.concurrency or 0
        waits_for_cache = cached is not None and cached < concurrency and cached <= (allowed or concurrency)
        if not waits_for_cache:  # shorter requests would fit
            self.shorten((time.monotonic() - begun) * WANTED_BLOCKS / budget)
        self.session_begun = time.monotonic()
        while (block := session.next_block(self.elapsed())) is not None:
            done = len(session.measurements)
            self.report("slowing", f"{block.label}, block {done + 1}", done=done, elapsed=round(self.elapsed(), 1))
            session.add(self.measure(block))
        seconds = self.elapsed()
        known = Circumstances(
            waits_for_slots=bool(allowed and allowed < concurrency),
            waits_for_cache=waits_for_cache,
            has_stages=self.record.settings.pipeline_parallel > 1,
            output_tokens=self.output_tokens,
        )
        result = report(session, known, upgrades)
        return {
            **result,
            "deployment": self.record.deployment,
            "overrides": self.record.overrides,
            "workload": self.load.to_json(),
            "burst": {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens},
            "upgrades": [self.upgrade(session, name, factor, upgrade_rounds) for name, factor in upgrades.items()],
            "problems": self.problems,
            "experiment_seconds": round(seconds, 1),
            "seconds": round(time.monotonic() - self.begun, 1),
        }

    def shorten(self, excess: float) -> None:
        """Cut the bursts' prompts and answers in proportion when they take `excess` times what they may."""
        if excess <= 1:
            return
        whole = self.input_tokens, self.output_tokens
        self.input_tokens = max(min(LEAST_INPUT_TOKENS, whole[0]), round(whole[0] / excess))
        self.output_tokens = max(min(LEAST_OUTPUT_TOKENS, whole[1]), round(whole[1] / excess))
        if (self.input_tokens, self.output_tokens) != whole:
            self.problems.append(
                f"bursts of {self.input_tokens} input and {self.output_tokens} output tokens stand for {whole[0]} and "
                f"{whole[1]}: with a longer --budget they are cut less"
            )

    def elapsed(self) -> float:
        """Return the seconds since the first block that counts."""
        return time.monotonic() - self.session_begun

    def choose(
        self, found: list[Resource], names: Sequence[str] | None, upgrades: Mapping[str, float]
    ) -> list[Resource]:
        """Return the resources to slow; one that is not there is an error."""
        known = {resource.name: [resource] for resource in found}
        ranks = [resource for resource in found if resource.kind == RANK]
        if ranks:
            known[RANK] = ranks
        # A rank is no part that could be bought twice as good.
        better = {name for name, (first, *_) in known.items() if first.kind != RANK}
        unknown = [name for name in names or () if name not in known] + [
            name for name in upgrades if name not in better
        ]
        if unknown:
            raise CommandExecutionError(
                f"no resource {', '.join(unknown)} under {self.record.deployment}: expected {', '.join(known)}"
            )
        wanted = [resource for name in names or () for resource in known[name]]
        return list({resource.name: resource for resource in wanted}.values()) if names else found

    def groups(self) -> list[list[str]]:
        """Return the nodes that wait for each other in every step: those of one tensor parallel replica."""
        if self.record.settings.pipeline_parallel > 1:
            return []
        members: dict[int, list[str]] = {}
        for worker in self.record.workers:
            members.setdefault(worker.replica, []).append(worker.node)
        return [group for group in members.values() if len(group) > 1]

    def look(self) -> dict[str, dict[str, Any]]:
        """Return what every node's actuators find, by node."""
        found = {}
        link = self.record.workers[0].link
        for node in self.nodes:
            interface = self.profile.nodes[node].links[link].interface
            named = getattr(self.profile.engine_of(node), "actuators", {})
            settings = {name: setting.commands() for name, setting in named.items()}
            answer = self.ask("actuator.look", [interface, settings], [node])[node]
            if not isinstance(answer, dict):
                raise CommandExecutionError(f"{node} does not answer what can be slowed: {answer or 'silent'}")
            found[node] = answer
        return found

    def ceilings(self) -> ceilings_file.Ceilings:
        """Return the ceilings that were measured last; none where they cannot be read."""
        try:
            known = ceilings_file.load(records.path_of(__opts__, records.CEILINGS), self.profile)
        except ceilings_file.CeilingsError as error:
            self.problems.append(str(error))
            known = None
        return known or ceilings_file.Ceilings()

    def cached_requests(self) -> int | None:
        """Return how many whole requests of the load fit into the KV caches; None when an engine does not report it."""
        readings = [MetricsText.parse(_metrics(head)) for head in self.heads]
        return requests_in_cache(readings, self.load.input_tokens + self.load.output_tokens)

    def measure_link(self) -> None:
        """Measure the links between the nodes; without it the experiment goes on, and reports that."""
        try:
            __salt__["probe.fresh"]()
        except SaltException as error:
            self.problems.append(f"the link was not measured ({error}): an older ceiling stands in")

    # Blocks --------------------------------------------------------------------------------

    def measure(self, block: Block) -> Measurement:
        """Slow what the block slows, send a burst, and return what it measured."""
        self.slow(block)
        started = self.elapsed()
        try:
            return measurement(block, started, self.burst(block))
        except BlockError as error:
            raise CommandExecutionError(f"{error}: cluster logs {self.nodes[0]}") from error

    def slow(self, block: Block) -> None:
        """Have every node make exactly the block's changes, and nothing else."""
        changes = block.resource.changes_at(block.slowdown) if block.resource else {}
        by_minion = {self.hostnames[node]: [change] for node, change in changes.items()}
        if not by_minion and not self.slowed:
            return
        # Before the call: one whose answer is lost may have arrived.
        self.slowed = self.armed = True
        answers = self.ask("perturb.set", [by_minion, LEASE_SECONDS])
        wrong = {node: answer for node, answer in answers.items() if not isinstance(answer, dict)}
        if wrong:
            reasons = [
                f"{node} is silent" if answer is None else f"{node}: {str(answer).strip().splitlines()[-1]}"
                for node, answer in wrong.items()
            ]
            raise CommandExecutionError(f"{block.label} could not be made: {'; '.join(reasons)}")
        self.slowed = bool(by_minion)

    def ask(self, function: str, arguments: Sequence[object], names: Sequence[str] | None = None) -> dict[str, Any]:
        """Call a function on nodes; return what each answered."""
        # A client for each call: leases are renewed from a thread of their own.
        return Nodes(__opts__, self.profile).ask(function, arguments, names or self.nodes, CALL_SECONDS)

    def burst(self, block: Block) -> list[dict[str, Any]]:
        """Send one burst of requests; return what became of each."""
        load, slots, rate = self.load, None, self.load.rate_per_second
        if block.resource is not None and block.resource.kind == SEQUENCES:
            slots = max(1, round(block.resource.at(block.slowdown)))
        if block.resource is not None and block.resource.kind == ARRIVALS:
            rate = block.resource.at(block.slowdown)
        shape = self.profile.model.shape
        with self.renewed():
            results: list[dict[str, Any]] = __salt__["burst_load.send"](
                self.heads,
                self.profile.model.name,
                shape.vocabulary_size,
                self.burst_requests(),
                self.input_tokens,
                self.output_tokens,
                concurrency=load.concurrency,
                rate=rate,
                slots=slots,
                seed=load.seed + block.index + 1,
                temperature=load.temperature,
            )
        return results

    def burst_requests(self) -> int:
        """Return the requests of one burst: one round of a closed loop, a few arrivals of an open one."""
        if self.load.rate_per_second:
            return min(self.load.requests, 4)
        return self.load.concurrency or 1

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew the nodes' leases while a burst takes long, so that their watchdogs do not act."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(RENEW_SECONDS):
                with contextlib.suppress(SaltException):
                    self.ask("perturb.renew", [LEASE_SECONDS])

        thread = threading.Thread(target=renew, daemon=True)
        if self.slowed:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if self.slowed:
                thread.join(CALL_SECONDS)

    def upgrade(self, session: Session, name: str, factor: float, rounds: int) -> dict[str, Any]:
        """Make an upgrade that was predicted, in turns with the baseline, and compare."""
        resource = next(each for each in session.resources if each.name == name)
        before: list[Measurement] = []
        after: list[Measurement] = []
        gains: dict[str, Any] = {}
        for number in range(rounds):
            pair = [Block(1000 + 2 * number), Block(1001 + 2 * number, resource, 1.0 / factor)]
            for block in pair if number % 2 == 0 else reversed(pair):
                self.report("upgrading", block.label if block.resource else "baseline", done=2 * number)
                (after if block.resource else before).append(self.measure(block))
        for metric in ("time", "ttft", "itl"):
            estimates = session.fit(metric)
            if estimates is None:
                continue
            real = measured_gain([each.metric(metric) for each in before], [each.metric(metric) for each in after])
            predicted = predict(estimates, resource, factor, session.seed)
            gains[metric] = {
                "predicted": predicted.to_json(),
                "real": real.to_json(),
                "error_points": 100 * (predicted.saved.value - real.saved.value),
            }
        bursts = sorted((*before, *after), key=lambda each: each.started_seconds)
        return {
            "resource": name,
            "factor": factor,
            "metrics": gains,
            "bursts": [each.to_json() for each in bursts],
        }

    def put_back(self) -> None:
        """Undo everything; a node that does not answer undoes it itself when its lease has expired."""
        if not self.armed:
            return
        self.report("putting back", "what was slowed")
        answers = self.ask("perturb.undo", [])
        silent = sorted(node for node, each in answers.items() if not isinstance(each, list))
        if silent:
            self.problems.append(
                f"{', '.join(silent)} did not answer: its watchdog puts everything back within {LEASE_SECONDS:.0f} s"
            )

    def report(self, stage: str, detail: str, **more: object) -> None:
        """Report a step as progress."""
        progress(stage, "", detail, self.begun, **more)
