"""Make a campaign of the records that `cluster gpu-lab` left: its runs over links, and those of single cards."""

from __future__ import annotations

import json
import lzma
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.links.campaign import RANKS, Campaign, Card, Measured
from bottleneck.performance.served import Accelerator, Point
from bottleneck.prediction.recorded import recorded
from bottleneck.prediction.sweep import SweepError
from bottleneck.runs.ceilings import Ceilings
from bottleneck.runs.run import Run
from bottleneck.runs.run_folder import load_run
from cli.gpu_lab.cases import all_cases
from cli.verify import archive
from cli.verify.pace import Measured as Pace
from cli.verify.record import Record
from lab.network import BURST_SECONDS

TRIALS = "trials.jsonl"
MODEL = "../h200/sweep_w4a16.json"
# Of an answer of fewer tokens most gaps hold another request's prompt, and are no step of decoding alone.
LEAST_OUTPUT_TOKENS = 8
_ETHERNET = 14
# Not link_delay: the relay that delays also carries less, and how much is in no prediction.
_LINK_FAULTS = frozenset({"link_rate"})


class RecordsError(Exception):
    """Records that no campaign can be made of; the text says what was seen and what was expected."""


@dataclass(frozen=True)
class Trial:
    """One run of the record that a campaign can use.

    Attributes
    ----------
    parallel
        `tensor`, `pipeline`, or `single` for a card alone.
    burst_seconds
        Of one answer to every client, by the run's tokens a second.
    """

    parallel: str
    bits_per_second: float | None
    point: Point
    output_tokens: int
    burst_seconds: float
    accelerator: Accelerator
    batched_tokens: int
    began: float

    @property
    def has_steps(self) -> bool:
        """Return whether its gaps between tokens are steps of decoding."""
        return self.output_tokens >= LEAST_OUTPUT_TOKENS


def campaign_of(folders: Sequence[Path]) -> Campaign:
    """Return what folders of records, of cards of one kind, say of them and their link.

    Raises
    ------
    RecordsError
        Without runs of pairs, or a probe of all-reduces.
    """
    pairs = [pair for folder in folders for pair in _runs(folder)]
    trials = [trial for line, run in pairs if (trial := _trial(line, run)) is not None]
    # All-reduces as the cards that made them in earnest were probed; another folder may be of other cards.
    shared = [run for _, run in pairs if run.settings.tensor_parallel > 1]
    probed = _probed([run.ceilings for run in shared or [run for _, run in pairs]])
    alone = [each for each in trials if each.parallel == "single" and each.has_steps]
    over = [each for each in trials if each.parallel != "single"]
    if not over:
        names = ", ".join(map(str, folders))
        raise RecordsError(f"{names}: no usable run of a pair (tp2, pp2); expected some: cluster gpu-lab --list")
    profile = next(run.profile for _, run in pairs if run.profile is not None)
    link = profile.networks[profile.deployments[profile.default_deployment].link]
    card = over[0].accelerator
    name, versions = _card_name(folders[0]), profile.name
    return Campaign(
        schema=1,
        title=f"Two {name} as two nodes, by cluster gpu-lab",
        date=time.strftime("%Y-%m-%d", time.gmtime(min(each.began for each in trials))),
        engine=f"Profile {versions}, its engine over two network namespaces, tbf on both ends of a veth pair",
        model=MODEL,
        max_num_batched_tokens=over[0].batched_tokens,
        card=Card(
            name=name,
            memory_bytes_per_second=card.memory_bytes_per_second,
            flops_per_second=card.flops_per_second,
            launch_seconds=card.launch_seconds,
            output_tokens=round(statistics.median(each.output_tokens for each in alone or over)),
            points=tuple(_merged_points(alone)),
        ),
        backend=probed[0],
        all_reduce=probed[1],
        mtu_bytes=link.mtu_bytes,
        bucket_bytes=link.mtu_bytes + _ETHERNET,
        bucket_seconds=BURST_SECONDS,
        measured=tuple(_merged(over)),
        notes=()
        if alone
        else (
            "No card was measured alone: the first prediction is by the cards' probed ceilings and what such kernels "
            "reached elsewhere (the table of efficiencies), with no point of calibration.",
        ),
    )


def _runs(folder: Path) -> list[tuple[Mapping[str, Any], Run]]:
    """Return every run of a folder with its line: of its trials, and of the first benches."""
    lines = [*Record(folder / TRIALS).lines().values(), *_first_benches(folder)]
    if not lines:
        raise RecordsError(f"{folder / TRIALS}: no lines; expected the record of cluster gpu-lab --output {folder}")
    with TemporaryDirectory(prefix="links-") as scratch:
        found = {run.name: run for path in sorted(folder.glob("runs/*.tar.xz")) for run in _unpacked(path, scratch)}
        return [(line, load_run(found[line["run"]])) for line in lines if line.get("run") in found]


def _first_benches(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a line for each of the first benches, as trials have one."""
    for path in sorted(folder.glob("*-bench-*.json.xz")):
        document = json.loads(lzma.decompress(path.read_bytes()))
        name = path.name.removesuffix(".json.xz").partition("-bench-")[2]
        found, points = all_cases().load(name, "cards"), document.get("points")
        measured = Pace.of(points[0]["headline"]) if points else None
        if found is not None and measured is not None:
            plain = {"put": None, "settings": {}, "load": found[0].to_json(), "began": _began(document["run"])}
            yield plain | {"run": document["run"], "seconds_per_token": measured.seconds_per_token}


def _began(run: str) -> float:
    """Return when a run began, by its name."""
    return datetime.strptime(run.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _unpacked(path: Path, scratch: str) -> list[Path]:
    into = Path(scratch) / path.name
    into.mkdir()
    return archive.unpack(path, into)


def _trial(line: Mapping[str, Any], run: Run) -> Trial | None:
    put = line.get("put")
    usable = not line.get("error") and not line["settings"] and line["load"].get("rate_per_second") is None
    if not usable or (put is not None and (put["kind"] not in _LINK_FAULTS or put.get("cable"))):
        return None
    try:
        found = recorded([run])
    except SweepError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None
    split, point, load = found.base.split, found.points[0], line["load"]
    heads = sum(worker.head for worker in run.workers)
    # Copies side by side share their host, whose part of a first token is not one card's.
    if split.ranks not in (1, RANKS) or heads > 1:
        return None
    parallel = "single" if split.ranks == 1 else "tensor" if split.tensor_parallel > 1 else "pipeline"
    if parallel == "single" and put is not None:
        return None
    rate = put["strength"] * 8 if put and put["kind"] == "link_rate" else None
    return Trial(
        parallel,
        rate,
        point,
        load["output_tokens"],
        line["seconds_per_token"] * load["concurrency"] * load["output_tokens"],
        found.base.accelerator,
        found.base.served.max_num_batched_tokens,
        line["began"],
    )


def _merged(trials: Sequence[Trial]) -> Iterator[Measured]:
    """Yield one figure for each split, link and load: the medians of its runs."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for each in trials:
        key = (each.parallel, each.bits_per_second, each.point.batch, each.output_tokens)
        groups.setdefault(key, []).append(each)
    for (parallel, rate, batch, output), found in groups.items():
        yield Measured(
            parallel=parallel,
            bits_per_second=rate,
            clients=batch,
            input_tokens=round(statistics.median(each.point.prompt for each in found)),
            output_tokens=output,
            step_seconds=_median([each.point.decode_step_seconds for each in found if each.has_steps]),
            first_seconds=_median([each.point.prefill_seconds for each in found if each.has_steps]),
            all_seconds=_median([each.burst_seconds for each in found]),
            runs=len(found),
            source="trials.jsonl",
        )


def _merged_points(trials: Sequence[Trial]) -> Iterator[tuple[int, int, float, float]]:
    groups: dict[tuple[int, int], list[Point]] = {}
    for each in trials:
        groups.setdefault((each.point.batch, each.point.prompt), []).append(each.point)
    for (batch, prompt), found in groups.items():
        yield (
            batch,
            prompt,
            statistics.median(each.prefill_seconds for each in found),
            statistics.median(each.decode_step_seconds for each in found),
        )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _probed(ceilings: Sequence[Ceilings]) -> tuple[str, dict[int, float]]:
    """Return the backend, and for each size the median over all runs' probes of all-reduces."""
    known = [each.allreduce for each in ceilings if each.allreduce is not None and each.allreduce.ranks == RANKS]
    sizes = sorted({size for each in known for size in each.sizes})
    if sizes:
        by_size = {size: [each.sizes[size].median for each in known if size in each.sizes] for size in sizes}
        return known[0].backend, {size: statistics.median(values) for size, values in by_size.items()}
    raise RecordsError("ceilings.json: no all-reduce of two ranks in any run; expected one: cluster probe")


def _card_name(folder: Path) -> str:
    for path in sorted(folder.glob("*-machine.json.xz")):
        cards = json.loads(lzma.decompress(path.read_bytes())).get("cards")
        if cards:
            return str(cards[0]["name"])
    return "cards"
