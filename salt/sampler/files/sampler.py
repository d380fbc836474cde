"""Measure this node many times a second, at about a third of a percent of one core.

Run by the minion's own Python, beside the minion, with one argument: the configuration the state wrote. With
``--once`` it prints one sample and ends.
"""

import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import open_batch
from delivery import EVENT_BYTES, Acknowledgements, Bus, Sealing, Sender, parts
from engine_metrics import EngineReader
from journal import Journal, Writer, place
from link_cuts import LinkCuts
from machine import Machine, Reading
from open_batch import OpenBatch
from spool import Batch, Spool, pack
from worker_exits import WorkerExits

NICENESS = 5
# Share of a period that a wait may end early (the clock is slewed while it sleeps) and still be on time.
TOLERANCE = 0.01
# An acknowledgement is late when two have been due; then the batch counts as lost and goes out again.
RESEND_AFTER_INTERVALS = 2.5
# Exit status when a part of it has ended by itself (EX_SOFTWARE of sysexits.h).
DIED = 70
# What NTP slews between two samples is far less.
CLOCK_SET_SECONDS = 1.0
# News of a worker are sent at once: a process that ended, with the dozen that end with it; an engine that stands still.
URGENT_SECONDS = 1.0


class Pacer:
    """Decides when to sample: at whole multiples of the period in wall time.

    Each tick is worked out from the clock, so nothing adds up to a drift, and the samples of all nodes lie side by
    side as far as their clocks agree. A tick that has passed is skipped, never made up for.
    """

    def __init__(self, rate_hertz: float, batch_interval_seconds: float, send_interval_seconds: float) -> None:
        self._period = 1.0 / rate_hertz
        self._batch = max(1, round(rate_hertz * batch_interval_seconds))
        self._sending = max(1, round(send_interval_seconds / batch_interval_seconds))
        self._tick: int | None = None
        self.late = 0

    def wait_seconds(self, now: float) -> float:
        """Return how long to wait for the next tick."""
        upcoming = int(now / self._period + TOLERANCE) + 1
        if self._tick is not None and upcoming > self._tick + 1:
            self.late += upcoming - self._tick - 1
        self._tick = upcoming
        return upcoming * self._period - now

    @property
    def tick(self) -> int:
        """Number of the tick that was waited for last."""
        if self._tick is None:
            raise ValueError("no tick has been waited for yet")
        return self._tick

    @property
    def batch(self) -> int:
        """Number of the batch that the tick belongs to."""
        return self.tick // self._batch

    @property
    def last_of_batch(self) -> bool:
        """Return whether the tick is the last one of its batch."""
        return (self.tick + 1) % self._batch == 0

    def sends_after(self, batch: int) -> bool:
        """Return whether a batch is the last, of those of one interval of sending, that comes before the next tick."""
        return (self.tick + 1) // self._batch // self._sending > batch // self._sending


class Sampler:
    """Takes samples and packs them into batches."""

    def __init__(
        self,
        node: str,
        machine: Machine,
        pacer: Pacer,
        deliver: Callable[[Batch, bool], None],
        engine: Callable[[], dict[str, Any] | None],
        exits: Callable[[float], list[dict[str, Any]]],
        clock: Callable[[], float] = time.time,
        cpu: Callable[[], float] = time.process_time,
        steady: Callable[[], float] = time.monotonic,
        has_news: Callable[[], bool] = lambda: False,
        open_batch: OpenBatch | None = None,
    ) -> None:
        self._node = node
        self._machine = machine
        self._pacer = pacer
        self._deliver = deliver
        self._engine = engine
        self._exits = exits
        self._has_news = has_news
        self._open = open_batch
        self._ended: list[dict[str, Any]] = []
        self._urgent = -URGENT_SECONDS
        self._clock = clock
        self._cpu = cpu
        self._steady = steady
        self._batch = -1
        self._taken = self._moment = 0.0
        self._readings: list[Reading] = []

    def take(self) -> None:
        """Read the machine once; hand the batch over when it is full, or at once when there is news of a worker."""
        now, moment = self._clock(), self._steady()
        was_set = abs(now - self._taken - (moment - self._moment)) > CLOCK_SET_SECONDS or now < self._taken
        if self._readings and (self._pacer.batch != self._batch or was_set):
            self.flush()  # ticks were missed across the border, or the clock was set: a batch has one time
        self._batch, self._taken, self._moment = self._pacer.batch, now, moment
        reading = self._machine.read(now, not self._readings)
        self._readings.append(reading)
        if self._open is not None:
            self._open.add(self._machine.kept(reading, uptime()))
        self._ended += self._exits(moment)
        if moment - self._urgent >= URGENT_SECONDS and (self._ended or self._has_news()):
            self._urgent = moment
            self.flush(urgent=True)
        elif self._pacer.last_of_batch:
            self.flush()

    def flush(self, urgent: bool = False) -> None:
        """Hand over what has been taken since the last batch; what is urgent is sent at once."""
        if not self._readings:
            return
        readings, self._readings = self._readings, []
        ended, self._ended = self._ended, []
        samples = self._machine.parse(readings)
        batch = {
            "node": self._node,
            "t0": samples[0]["t"],
            "t1": samples[-1]["t"],
            "samples": samples,
            "engine": self._engine(),
            "sampler": {"cpu_s": self._cpu(), "late": self._pacer.late},
        }
        if ended:
            batch["exits"] = ended
        self._deliver(batch, urgent or bool(ended) or self._pacer.sends_after(self._batch))
        if self._open is not None:
            self._open.end()


def boot_identity(now: float) -> str:
    """Return the name of this life of the sampler: the kernel's boot, and when in it the sampler began."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return f"{file.read().strip()}-{int(now * 1000)}"


def uptime() -> float:
    """Return the seconds since the kernel's boot, those that it slept included; nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def main(arguments: Sequence[str]) -> None:
    """Sample until asked to end."""
    with open(arguments[0], encoding="utf-8") as file:
        config = json.load(file)
    machine = Machine(config["links"], config["supervise_directory"], config.get("cards"))
    if "--once" in arguments:
        (sample,) = machine.parse([machine.read(time.time(), True)])
        json.dump(sample, sys.stdout)
        return
    os.nice(NICENESS)
    os.makedirs(config["directory"], exist_ok=True)
    boot = boot_identity(time.time())
    interval, sending = config["acknowledge_interval_seconds"], config["send_interval_seconds"]
    spool = Spool(boot, config["spool_batches"], RESEND_AFTER_INTERVALS * interval, config["spool_bytes"])
    journal = Journal(place(config["spool_directory"]))
    known = set()
    for left in journal.leftovers():
        spool.inherit(*left)
        known.add((left.boot, left.sequence))
    for path, life, sequence, readings in open_batch.leftovers(journal.directory):
        if readings and (life, sequence) not in known:
            unended = open_batch.batch_of(config["node"], readings, machine.restored(readings))
            for number, part in enumerate(parts(unended, EVENT_BYTES), sequence):
                packed = pack({**part, "boot": life, "sequence": number})
                spool.inherit(life, number, packed)
                journal.append(life, number, packed)
            journal.synchronise()
        journal.discard(path)
    writer = Writer(journal)
    sender = Sender(
        spool,
        Bus(config["minion"]),
        Acknowledgements(config["node"], config.get("control"), os.path.join(config["directory"], "acknowledged.json")),
        writer,
        config["node"],
        sending,
        interval,
        os.path.join(config["directory"], "status.json"),
        uptime,
        Sealing(config["minion"]["id"], config["key_file"]),
    )
    engine = EngineReader(config["worker_file"], config["engine_interval_seconds"])
    pacer = Pacer(config["rate_hertz"], config["batch_interval_seconds"], sending)

    def stalled() -> bool:
        news = engine.is_stalled.is_set()
        engine.is_stalled.clear()
        return news

    exits = WorkerExits(config["supervise_directory"])
    cuts = LinkCuts(config["worker_file"], config["supervise_directory"])
    unended_file = OpenBatch(journal.directory, boot, lambda: spool.last + 1, writer.discard)
    sampler = Sampler(
        config["node"],
        machine,
        pacer,
        sender.add,
        engine.take,
        lambda moment: exits.look(moment) + cuts.look(moment),
        has_news=stalled,
        open_batch=unended_file,
    )
    asked_to_end: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda seen, _: asked_to_end.append(seen))
    threads: tuple[threading.Thread, ...] = (writer, sender, engine)
    for thread in threads:
        thread.start()
    gc.freeze()  # what is loaded now stays; the collector need not look at it again
    while not asked_to_end:
        time.sleep(pacer.wait_seconds(time.time()))
        sampler.take()
        dead = [thread.name for thread in threads if not thread.is_alive()]
        if dead:
            # A sampler that measures and tells nobody looks alive: better to end, and be started again.
            print(f"sampler: thread {dead[0]} has ended, so this ends", file=sys.stderr, flush=True)
            break
    sampler.flush()
    sender.ending = True
    sender.wake.set()
    sender.join(timeout=5.0)
    writer.end()
    writer.join(timeout=5.0)
    if not asked_to_end:
        sys.exit(DIED)


if __name__ == "__main__":
    main(sys.argv[1:])
