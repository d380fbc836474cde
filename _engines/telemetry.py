"""
Take the samplers' batches, store each once, acknowledge it, close windows, export to Prometheus.

Configured on the master with ``engines: [{telemetry: {}}]``. What is known of the cluster is a value
(``bottleneck.telemetry.cluster_state``); this module only feeds it with events and does what it announces.

An accepted minion can fire any event, and with a list of events even under another minion's
id. So an event counts when it has the seal of the node that it is said to be of (``control.sealed_batches``).
"""

import collections
import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import salt.client
import salt.utils.event

from bottleneck.profile import Profile, load_profile
from bottleneck.telemetry import batch_checks, batch_times, cluster_state, cluster_view, exporter
from bottleneck.telemetry.database import StoreDamagedError, StoreError, StoreUnavailableError
from bottleneck.telemetry.store import Store
from bottleneck.telemetry.store_recovery import make_room, open_or_begin_anew, set_aside
from control import http_server, internal_events, pending_keys, refused_answers, sealed_batches
from netboot.boot.rate_limit import Budget

try:
    from prometheus_client import CollectorRegistry, make_wsgi_app
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    HAS_CLIENT = True
except ImportError:
    HAS_CLIENT = False

if TYPE_CHECKING:
    from loader_dunders import __opts__

    Family = CounterMetricFamily | GaugeMetricFamily

log = logging.getLogger(__name__)

BATCH_TAG = "cluster/telemetry/batch/"
TICK_SECONDS = 1.0
# What NTP slews between two ticks is far less.
CLOCK_SET_SECONDS = 2.0
PRUNE_SECONDS, MAKE_ROOM_SECONDS, SERVE_AGAIN_SECONDS = 600.0, 10.0, 10.0
# How long to wait for a store that takes nothing, and between two words about it.
STORE_AGAIN_SECONDS = 10.0
# A node whose samples came this long before a restart is expected back.
EXPECTED_SECONDS, VERDICT_SECONDS = 600.0, 2.0
# A sender that is refused many times a second is named in the log this often.
REFUSED_LOG_SECONDS = 10.0
# A sampler makes one batch a second, and sends what it kept of an outage a few at a time.
BURST_BATCHES, BATCHES_PER_SECOND = 1200.0, 50.0
# After an error that is none of a batch's, the next event is waited for; an error at every turn must not take a core.
FAILED_WAIT_SECONDS = 0.5
# Nodes that have asked since the last tick.
MOST_ASKED = 4096
# What a person may want to mend.
WARNED = (cluster_view.LOST_TAG, cluster_view.CLOCK_TAG)
ACKNOWLEDGED_PATH = "/acknowledged/"


def __virtual__() -> str | tuple[bool, str]:
    return "telemetry" if HAS_CLIENT else (False, "the telemetry engine needs prometheus-client")


def start(address: str | None = None, port: int | None = None) -> None:
    """
    Run the engine until the master ends.

    address
        where the exporter listens; the control node's own address when left out
    port
        its port; the profile's ``telemetry.exporter_port`` when left out
    """
    profile = load_profile(__opts__["cluster_profile"])
    with _opened(__opts__["cluster_store"]) as store:
        collector = Collector(__opts__, profile, store)
        collector.listen(address or profile.control.address, port or profile.telemetry.exporter_port)
        collector.run()


def _opened(path: str) -> Store:
    """Open the store; a full disk is waited for, because an engine that ends is started again and again."""
    while True:
        try:
            store, aside = open_or_begin_anew(path, time.time())
        except StoreUnavailableError as error:
            log.error("%s; trying again every %.0f s", error, STORE_AGAIN_SECONDS)
            time.sleep(STORE_AGAIN_SECONDS)
            continue
        if aside is not None:
            log.error("The store %s was damaged; it is now %s, and a new one begins", path, aside)
        return store


class Collector:
    """Feed ``bottleneck.telemetry.cluster_state`` with events and do what it announces."""

    def __init__(
        self,
        opts: Mapping[str, Any],
        profile: Profile,
        store: Store,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opts = opts
        self._store = store
        # Of the day, which a person or NTP may set; and one that nobody sets, for whatever lasts some time.
        self._clock = clock
        self._steady = steady
        self._clocks_read = (clock(), steady())
        self._retention = profile.telemetry.retention_seconds
        now = clock()
        seen = store.last_seen()
        self.state = cluster_state.begin(
            cluster_view.Settings.of(profile),
            now,
            [node for node, moment in seen.items() if now - moment < EXPECTED_SECONDS],
        )
        self._asked: collections.deque[str] = collections.deque(maxlen=MOST_ASKED)
        self._refused_logged = -math.inf
        self._budget = Budget(BURST_BATCHES, BATCHES_PER_SECOND)
        self._latest: tuple[float, dict[str, Any] | None] = (-math.inf, None)
        self._pruned = -math.inf
        self._room_made = -math.inf
        self._keys = pending_keys.Keeper(opts.get("pki_dir"), steady)
        self._listen: tuple[str, int] | None = None
        self._served = -math.inf
        self._server: http_server.BoundedServer | None = None
        self._bus: Any = None
        self._client: Any = None
        self._ticked = -math.inf
        self._complained = -math.inf
        self.store_refusals = 0

    def run(self) -> None:
        """Take events and let time pass, until the process is ended: no event and no error ends it."""
        with salt.utils.event.get_master_event(self._opts, self._opts["sock_dir"], listen=True) as self._bus:
            while True:
                try:
                    self.step(self._bus.get_event(wait=TICK_SECONDS, tag=BATCH_TAG, full=True, auto_reconnect=True))
                except Exception:
                    self._failed("the event bus")
                    time.sleep(FAILED_WAIT_SECONDS)

    def step(self, event: Mapping[str, Any] | None) -> None:
        """Take one event, if there is one, and let time pass."""
        with self._surviving_its_store():
            self._watch_the_clock()
        if event:
            with self._surviving_its_store():
                self.take(event["tag"], event["data"])
        if self._steady() - self._ticked >= TICK_SECONDS:
            self._ticked = self._steady()
            with self._surviving_its_store():
                self.tick(self._clock())

    def _watch_the_clock(self) -> None:
        """Notice that the control node's clock was set: the other clock went on as ever."""
        (wall, steady), self._clocks_read = self._clocks_read, (self._clock(), self._steady())
        now = self._clocks_read[0]
        by = now - wall - (self._clocks_read[1] - steady)
        if abs(by) > CLOCK_SET_SECONDS:
            log.warning("This machine's clock was set by %+.0f s; windows go on by the new time", by)
            self._apply(cluster_view.ClockSet(now, by))

    @contextlib.contextmanager
    def _surviving_its_store(self) -> Iterator[None]:
        """Go on after any error; what a damaged or full store did not take is not acknowledged and comes again."""
        try:
            yield
        except StoreDamagedError as error:
            self._begin_anew(error)
        except StoreUnavailableError as error:
            self.store_refusals += 1
            now = self._steady()
            if now - self._complained >= STORE_AGAIN_SECONDS:
                self._complained = now
                log.error("Nothing is stored or acknowledged, the nodes keep it: %s", error)
        except Exception:
            self._failed("an event or a tick")

    def _begin_anew(self, error: StoreDamagedError) -> None:
        now, path = self._clock(), self._store.path
        self._store.close()
        try:
            aside = set_aside(path, now)
        except StoreUnavailableError as unmoved:
            self.store_refusals += 1
            log.error("%s; %s", error, unmoved)
            return
        log.error("%s; it is now %s, and a new one begins", error, aside)
        self._apply(cluster_view.StoreReplaced(now))

    def take(self, tag: str, data: Any) -> None:
        """Take one event: the batches that a node sent together. What is not sound is refused and counted."""
        data = data if isinstance(data, dict) else {}
        minion = self.state.settings.senders.get(tag.removeprefix(BATCH_TAG))
        try:
            batches = sealed_batches.opened(self._opts, minion, data.get("data"))
        except sealed_batches.UnsealedError as error:
            self._refuse(f"an event {tag[:100]!r} {error}")
            return
        self._take_batches(tag, batches, data.get("id"))

    def _take_batches(self, tag: str, batches: Any, sender: Any) -> None:
        # An event without batches is refused, and counted, as one bad batch; one with far too many, too.
        usable = isinstance(batches, list) and 0 < len(batches) <= batch_checks.MOST_BATCHES
        found: list[Any] = batches if usable and isinstance(batches, list) else [None]
        timed = [self._timed(batch) for batch in found]
        sound = [(batch, ahead) for batch, ahead in timed if self._is_sound(tag, batch, sender)]
        try:
            self._store_all(sound)
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
            # The check let something through. Its neighbours in the event are none the worse for it.
            self._failed(f"the batches of {tag[:100]}")
            for batch, ahead in sound:
                self._store_alone(batch, ahead)

    def _timed(self, batch: Any) -> tuple[Any, float]:
        """Return a batch with times that can be, and by how much its node's clock is ahead when they were put right."""
        if not isinstance(batch, dict):
            return batch, 0.0
        node = self.state.nodes.get(batch["node"]) if isinstance(batch.get("node"), str) else None
        ahead = batch_times.clock_ahead(batch, self._clock())
        if node is None or ahead is None:
            return batch, 0.0
        ahead = batch_times.same_clock(ahead, node.clock_ahead)
        return (batch_times.put_right(batch, ahead), ahead) if batch_times.is_wrong(ahead) else (batch, 0.0)

    def _store_all(self, sound: list[tuple[dict[str, Any], float]]) -> None:
        now = self._clock()
        stored = self._store.put_batches([batch for batch, _ in sound])
        for (batch, ahead), (new, mark) in zip(sound, stored, strict=True):
            oldest = batch.get("sampler", {}).get("oldest")
            if isinstance(oldest, int) and mark + 1 < oldest <= batch["sequence"]:
                mark = self._store.skip(batch["node"], batch["boot"], oldest)
            self._apply(cluster_view.Arrived(now, batch, new, mark, ahead))

    def _store_alone(self, batch: dict[str, Any], ahead: float) -> None:
        try:
            self._store_all([(batch, ahead)])
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
            self._failed(f"a batch of {batch['node']}")
            self._apply(cluster_view.Rejected(self._clock()))

    def _failed(self, what: str) -> None:
        """Count an error that was caught and log it with its traceback."""
        log.exception("The telemetry engine failed on %s, and goes on", what)
        self._apply(cluster_view.Failed(self._clock()))

    def _is_sound(self, tag: str, batch: Any, sender: Any) -> bool:
        now, refused = self._clock(), None
        if self._budget.spend(str(sender)[:100], self._steady()):
            reason = batch_checks.problem(batch, sender, self.state.settings, now)
            if reason is not None:
                refused = batch_checks.refused_for_good(batch, sender, self.state.settings, now)
        else:
            reason = f"more than {BATCHES_PER_SECOND:.0f} batches a second from {str(sender)[:100]!r}"
        if reason is None and tag != BATCH_TAG + batch["node"]:
            reason = f"a batch of {batch['node']} came as {tag[:100]!r}"
        if reason is None:
            return True
        self._refuse(reason, refused)
        return False

    def _refuse(self, reason: str, refused: tuple[str, str, int] | None = None) -> None:
        if self._steady() - self._refused_logged >= REFUSED_LOG_SECONDS:
            self._refused_logged = self._steady()
            log.warning("Batch refused: %s (%d before it)", reason, self.state.rejected)
        self._apply(cluster_view.Rejected(self._clock(), refused))

    def tick(self, now: float) -> None:
        """Let time pass: windows, heartbeats, acknowledgements, and now and then the old batches."""
        while self._asked:
            self._apply(cluster_view.Asked(now, self._asked.popleft()))
        self._apply(cluster_view.Tick(now))
        stored = cluster_state.to_acknowledge(self.state, now)
        if stored:
            self._acknowledge(stored, now)
        steady = self._steady()
        if self._listen and steady - self._served >= SERVE_AGAIN_SECONDS:
            self._serve()
        self._keys.look()
        if steady - self._room_made >= MAKE_ROOM_SECONDS:
            self._room_made = steady
            gone = make_room(self._store)
            if gone:
                log.warning("The disk of %s is nearly full: its %d oldest batches went", self._store.path, gone)
        if steady - self._pruned >= PRUNE_SECONDS:
            self._pruned = steady
            self._store.prune(now - self._retention, now + self._retention)

    def _apply(self, event: cluster_view.Event) -> None:
        self.state = cluster_state.apply(event, self.state)
        for tag, data in self.state.announcements:
            log.log(logging.WARNING if tag in WARNED else logging.INFO, "%s %s", tag, data)
            self._fire(data, tag)

    def _fire(self, data: Mapping[str, Any], tag: str) -> None:
        if self._bus is not None:
            # What the reactor acts on is sealed; the rest is for whoever listens.
            acted_on = tag in internal_events.ACTIONS
            self._bus.fire_event(internal_events.sealed(self._opts, tag, data) if acted_on else dict(data), tag)

    def _acknowledge(self, stored: Mapping[str, Any], now: float) -> None:
        """Acknowledge by a job what is stored of nodes that do not reach the port to ask."""
        if self._client is None:
            self._client = salt.client.LocalClient(mopts=self._opts)
        minions = {
            self.state.settings.senders[node]: {**answer, "former": self._stored_of_former_lives(node)}
            for node, answer in stored.items()
        }
        self._client.cmd_async(list(minions), "telemetry.acknowledge", kwarg={"stored": minions}, tgt_type="list")
        for node in stored:
            self._apply(cluster_view.Asked(now, node, by_job=True))

    def _stored_of_former_lives(self, node: str) -> list[dict[str, Any]]:
        known = (self._store.stored(node, boot) for boot in self.state.nodes[node].former)
        return [each for each in known if each is not None]

    # What follows is called by the threads of the HTTP server: they read the state, which is a value.

    def listen(self, address: str, port: int) -> None:
        """Serve at an address; one that is not up yet is tried again."""
        self._listen = (address, port)
        self._serve()

    def _serve(self) -> None:
        self._served = self._steady()
        if self._listen is None:
            return
        address, port = self._listen
        registry = CollectorRegistry()
        registry.register(self)
        metrics = make_wsgi_app(registry)
        try:
            self._server = http_server.serve(
                address, port, lambda environment, respond: self._respond(metrics, environment, respond)
            )
        except OSError as error:
            log.error("The exporter cannot listen on %s:%s: %s", address, port, error)
            return
        self._listen = None
        log.info("The exporter listens on %s:%s", address, port)

    def _respond(
        self, metrics: Callable[..., Iterable[bytes]], environment: Mapping[str, Any], respond: Callable[..., Any]
    ) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "")
        if not path.startswith(ACKNOWLEDGED_PATH):
            return metrics(environment, respond)
        node, _, boot = path.removeprefix(ACKNOWLEDGED_PATH).partition("/")
        stored = cluster_state.acknowledgement(self.state, node, boot)
        if stored is None:
            # A life that is over, or one from before this process began: the store knows.
            with contextlib.suppress(StoreError):
                stored = self._store.stored(node, boot)
        refused = cluster_state.refused(self.state, node, boot)
        if stored is not None and refused:
            stored = {**stored, "refused": refused}
        if stored is None:
            respond("404 Not Found", [("Content-Type", "application/json")])
            return [b"{}"]
        self._asked.append(node)
        respond("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(stored).encode()]

    def collect(self) -> "Iterable[Family]":
        """Return the metric families, as the registry asks for them at every scrape."""
        now, steady = self._clock(), self._steady()
        if steady - self._latest[0] >= VERDICT_SECONDS:
            with contextlib.suppress(StoreError):
                self._latest = (steady, self._store.latest_verdict(now + batch_checks.AHEAD_SECONDS))
        found = _families()
        ours = exporter.values(
            self.state, self._latest[1], now, time.process_time(), self.store_refusals, self._keys.dropped
        )
        for name, labels, value in (*ours, *refused_answers.values(self._opts, self.state.settings.senders)):
            found[name].add_metric(labels, value)
        return found.values()

    def describe(self) -> "Iterable[Family]":
        """Return the metric families without values."""
        return _families().values()


def _families() -> "dict[str, Family]":
    kinds: dict[str, type[Family]] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
    return {
        metric.name: kinds[metric.kind](metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
        for metric in exporter.METRICS
    }
