"""Make a campaign of the records that `cluster gpu-lab` left: its runs over links, and those of single cards."""

from __future__ import annotations

import json
import lzma
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from cli.verify import archive
from cli.verify.record import Record
from lab.network import BURST_SECONDS

TRIALS = "trials.jsonl"
MODEL = "../h200/sweep_w4a16.json"
# Of an answer of fewer tokens most gaps hold another request's prompt, and are no step of decoding alone.
LEAST_OUTPUT_TOKENS = 8
_ETHERNET = 14
_LINK_FAULTS = frozenset({"link_rate", "link_delay"})


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
    delay_seconds: float
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


def campaign_of(folder: Path) -> Campaign:
    """Return what a folder of records says of cards and their link.

    Raises
    ------
    RecordsError
        Without runs of single cards, of pairs, or a probe of all-reduces.
    """
    lines = Record(folder / TRIALS).lines()
    if not lines:
        raise RecordsError(f"{folder / TRIALS}: no lines; expected the record of cluster gpu-lab --output {folder}")
    with TemporaryDirectory(prefix="links-") as scratch:
        folders = {run.name: run for path in sorted(folder.glob("runs/*.tar.xz")) for run in _unpacked(path, scratch)}
        pairs = [(line, load_run(folders[line["run"]])) for line in lines.values() if line.get("run") in folders]
    trials = [trial for line, run in pairs if (trial := _trial(line, run)) is not None]
    probed = _probed([run.ceilings for _, run in pairs])
    alone = [each for each in trials if each.parallel == "single" and each.has_steps]
    over = [each for each in trials if each.parallel != "single"]
    for what, found in (("single cards (deployments replicas, single)", alone), ("pairs (tp2, pp2)", over)):
        if not found:
            raise RecordsError(f"{folder}: no usable run of {what}; expected some: cluster gpu-lab --list")
    profile = next(run.profile for _, run in pairs if run.profile is not None)
    link = profile.networks[profile.deployments[profile.default_deployment].link]
    card = over[0].accelerator
    name, versions = _card_name(folder), profile.name
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
            output_tokens=round(statistics.median(each.output_tokens for each in alone)),
            points=tuple(_merged_points(alone)),
        ),
        backend=probed[0],
        all_reduce=probed[1],
        mtu_bytes=link.mtu_bytes,
        bucket_bytes=link.mtu_bytes + _ETHERNET,
        bucket_seconds=BURST_SECONDS,
        measured=tuple(_merged(over)),
    )


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
    if split.ranks not in (1, RANKS):
        return None
    parallel = "single" if split.ranks == 1 else "tensor" if split.tensor_parallel > 1 else "pipeline"
    if parallel == "single" and put is not None:
        return None
    rate = put["strength"] * 8 if put and put["kind"] == "link_rate" else None
    return Trial(
        parallel,
        rate,
        put["strength"] if put and put["kind"] == "link_delay" else 0.0,
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
        key = (each.parallel, each.bits_per_second, each.delay_seconds, each.point.batch, each.output_tokens)
        groups.setdefault(key, []).append(each)
    for (parallel, rate, delay, batch, output), found in groups.items():
        yield Measured(
            parallel=parallel,
            bits_per_second=rate,
            delay_seconds=delay,
            clients=batch,
            input_tokens=round(statistics.median(each.point.prompt for each in found)),
            output_tokens=output,
            step_seconds=_median([each.point.decode_step_seconds for each in found if each.has_steps]),
            first_seconds=_median([each.point.prefill_seconds for each in found]),
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
    for each in ceilings:
        found = each.allreduce
        if found is not None and found.ranks == RANKS and found.sizes:
            return found.backend, {size: spread.median for size, spread in sorted(found.sizes.items())}
    raise RecordsError("ceilings.json: no all-reduce of two ranks in any run; expected one: cluster probe")


def _card_name(folder: Path) -> str:
    for path in sorted(folder.glob("*-machine.json.xz")):
        cards = json.loads(lzma.decompress(path.read_bytes())).get("cards")
        if cards:
            return str(cards[0]["name"])
    return "cards"
