"""Lay out a sample: its parts, their fields and units, and the order of those that are lists.

The one place for it. The sampler of every node has this very file beside it (`salt/sampler/files` links to it), so it
imports the standard library alone; `doc/reference/samples.md` is made from it. Counters count since the node's boot, or
since a worker's start; what a machine does not have is absent, not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class CoreSeconds(NamedTuple):
    """Seconds that a core has spent; on the wire a list in this order."""

    busy: float
    user: float
    system: float
    idle: float
    iowait: float
    steal: float


class LinkCounters(NamedTuple):
    """Counters of a link; on the wire a list in this order."""

    receive_bytes: int
    transmit_bytes: int
    receive_packets: int
    transmit_packets: int
    receive_errors: int
    transmit_errors: int
    receive_dropped: int
    transmit_dropped: int


class StallSeconds(NamedTuple):
    """Seconds in which some, or all, tasks stood still for a resource; on the wire a list in this order."""

    some: float
    full: float


CORE_FIELDS, LINK_FIELDS, STALL_FIELDS = CoreSeconds._fields, LinkCounters._fields, StallSeconds._fields
# Where in a part of `psi` the seconds are in which some task stood still.
SOME_STALLED = STALL_FIELDS.index("some")

# Keys as they were written before version 0.1.0 -> as they are: recorded samples are read by both.
OLDER_KEYS = {"front_cpu_s": "api_server_cpu_s", "front_run_delay_s": "api_server_run_delay_s"}

EVERY_SAMPLE, EVERY_BATCH = "every sample", "first of a batch"


@dataclass(frozen=True)
class Part:
    """One key of a sample.

    Attributes
    ----------
    key : str
        Its name.
    of : str
        What its values are kept by: `core`, `link`, `worker`; empty when there is one of it.
    fields : tuple of str
        Their names, with the unit at their end; in order where the part is a list.
    often : str
        In which samples it is.
    what : str
        What it is, as a sentence of the reference.
    listed : bool
        Whether the values are a list in the order of `fields` instead of an object with these keys.
    """

    key: str
    of: str
    fields: tuple[str, ...]
    often: str
    what: str
    listed: bool = False


PARTS = (
    Part("cpu", "core", CORE_FIELDS, EVERY_SAMPLE, "Seconds of each core that the node may use.", listed=True),
    Part(
        "psi",
        "resource",
        STALL_FIELDS,
        EVERY_SAMPLE,
        "Seconds in which some or all tasks stood still for `cpu`; for `memory` and `io` in the first of a batch.",
        listed=True,
    ),
    Part("links", "link", LINK_FIELDS, EVERY_SAMPLE, "Both ways of each link; a mesh's cables added up.", listed=True),
    Part(
        "membw",
        "",
        ("read_bytes", "write_bytes", "total_bytes"),
        EVERY_SAMPLE,
        "Bytes of the memory controllers, where they are counted: both ways, or their total.",
    ),
    Part(
        "cgroup",
        "",
        ("throttled_s", "periods", "throttled_periods", "quota_cores"),
        EVERY_SAMPLE,
        "CPU quotas over all levels of control groups, and the tightest of them in cores, or null.",
    ),
    Part(
        "workers",
        "worker",
        (
            "cpu_user_s",
            "cpu_system_s",
            "run_delay_s",
            "storage_read_bytes",
            "storage_wait_s",
            "api_server_cpu_s",
            "api_server_run_delay_s",
        ),
        EVERY_SAMPLE,
        "A worker's process tree: CPU time, waiting for a core, reading from storage. The last two are of its first"
        " process alone, which serves the API on a head.",
    ),
    Part(
        "workers",
        "worker",
        ("rss_bytes", "processes", "threads_busy"),
        EVERY_BATCH,
        "Its resident memory, its processes, and the threads that are read with every sample.",
    ),
    Part("mem", "", ("total", "available"), EVERY_BATCH, "Bytes of memory."),
    Part("disk", "", ("read_bytes", "write_bytes"), EVERY_BATCH, "Bytes of all whole disks."),
    Part(
        "accelerator",
        "card",
        (
            "driver",
            "idle_s",
            "busy_ratio",
            "memory_busy_ratio",
            "frequency_hertz",
            "frequency_limit_hertz",
            "memory_frequency_hertz",
            "energy_joules",
            "power_watts",
            "power_limit_watts",
            "temperature_celsius",
            "memory_temperature_celsius",
            "power_throttled",
            "heat_throttled",
            "throttle_reasons",
            "memory_used_bytes",
            "memory_total_bytes",
            "shared_memory_used_bytes",
            "bus_bytes_per_second",
            "bus_limit_bytes_per_second",
        ),
        EVERY_BATCH,
        "What the card's driver tells, the rate of its PCIe link and the most that could be. `memory_busy_ratio` is the"
        " share of time in which its memory was read or written; `power_throttled` and `heat_throttled` are 1 while it"
        " lowers its clock for that, else 0, and `throttle_reasons` has the driver's names for it.",
    ),
    Part(
        "thermal",
        "",
        ("throttled_s",),
        EVERY_BATCH,
        "Seconds in which the processor lowered its clock for heat or power, where it counts them.",
    ),
    Part(
        "numa",
        "",
        ("local_pages", "remote_pages"),
        EVERY_BATCH,
        "Pages taken from the own and from another memory node, with more than one node.",
    ),
)


def page() -> str:
    """Return the reference page about samples, as Markdown."""
    lines = [
        "# Samples",
        "",
        "<!-- Written by `make reference`; edit bottleneck/telemetry/sample_schema.py. -->",
        "",
        "A sample has its time `t` (unix seconds, the node's clock), taken at a whole multiple of the period, and the",
        "parts below, as raw counters. How samples travel is in [events](events.md).",
        "",
        "| Key | By | Fields | In | What |",
        "|---|---|---|---|---|",
    ]
    for part in PARTS:
        names = ", ".join(part.fields if part.listed else (f"`{name}`" for name in part.fields))
        fields = f"list: [{names}]" if part.listed else names
        lines.append(f"| `{part.key}` | {part.of} | {fields} | {part.often} | {part.what} |")
    return "\n".join(lines) + "\n"
