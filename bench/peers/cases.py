"""The recorded scenarios that every program is asked about, with what is known of their cause."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"


@dataclass(frozen=True)
class PeerCase:
    """One recorded scenario.

    Attributes
    ----------
    file : str
        Below tests/data, without its ending.
    cause : str
        What is known, and how.
    right : tuple of str
        The classes that name the cause; empty where only a wrong one is known.
    wrong : tuple of str
        For a scenario whose cause is not known: the classes that are certainly not it.
    ceilings : str
        Measured ceilings of its machine, below tests/data; only our program reads them.
    """

    file: str
    cause: str
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    ceilings: str = ""

    @property
    def name(self) -> str:
        """The scenario's name in the record."""
        return Path(self.file).name

    @property
    def path(self) -> Path:
        """The recording."""
        return DATA / f"{self.file}.json.xz"


H200 = "h200/ceilings.json"
# Any of the two properties of one link names the link.
LINK = ("link_bandwidth", "link_latency", "unwatched_link")

CASES = (
    PeerCase(
        "h200/scenario_decode_bw",
        "one request at a time: decode reads memory",
        ("decode_memory_bandwidth",),
        ceilings=H200,
    ),
    PeerCase(
        "h200/scenario_kv_preempt",
        "a KV cache of 1024 blocks under 64 clients",
        ("kv_cache_capacity",),
        ceilings=H200,
    ),
    PeerCase("h200/scenario_queue_seqs", "four slots under 64 clients", ("sequence_limit",), ceilings=H200),
    PeerCase("field_scenarios/cache_full_from_log_lines", "the KV cache is 96 to 98 % full", ("kv_cache_capacity",)),
    PeerCase(
        "field_scenarios/new_gauge_no_preemption", "the KV cache is 97 % full, no preemption", ("kv_cache_capacity",)
    ),
    PeerCase("field_scenarios/old_gauge_no_preemption", "the same under the gauge's old name", ("kv_cache_capacity",)),
    PeerCase("field_scenarios/scheduler_stuck", "nothing runs while six requests wait", ("engine_stalled",)),
    PeerCase("h200_pair/tp_1gbit_alone", "TP=2 over 1 Gbit/s: half of a token is the link's", LINK, ceilings=H200),
    PeerCase("h200_pair/tp_veth_eight", "TP=2 over a veth pair: prefill waits for the link", LINK, ceilings=H200),
    PeerCase(
        "h200_pair/pp_1gbit_eight", "PP=2 over 1 Gbit/s: the link costs 40 % of the throughput", LINK, ceilings=H200
    ),
    PeerCase("field_scenarios/one_engine_roomy", "the cache is at 45 %", wrong=("kv_cache_capacity",)),
    PeerCase(
        "field_scenarios/two_engines_roomy",
        "two engines, each cache at 45 %",
        wrong=("kv_cache_capacity",),
    ),
)
