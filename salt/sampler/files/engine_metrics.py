"""Read the engine's own metrics on the node that runs a head; only the families the analysis asks for are kept.

While the engine has requests its counters are looked at every second in between: one that makes nothing of them is
reported to the control node at once, which looks whether it hangs (``control/serving.py``).
"""

import http.client
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import api_key
import engine_names
import exposition
import node_files

KEPT = frozenset(
    engine_names.PREFIX + name
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "num_requests_waiting_by_reason",
        "kv_cache_usage_perc",
        "cache_config_info",
        "num_preemptions_total",
        "prompt_tokens_total",
        "prompt_tokens_cached_total",
        "generation_tokens_total",
        "generation_tokens_created",
        "request_success_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "estimated_flops_per_gpu_total",
        "estimated_read_bytes_per_gpu_total",
        "estimated_write_bytes_per_gpu_total",
    )
)
SUMMED = (
    "iteration_tokens_total",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_time_per_output_token_seconds",
    "request_inference_time_seconds",
)
BUCKETED = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
)
_NAMES = (
    KEPT
    | {f"{engine_names.PREFIX}{name}_{end}" for name in SUMMED + BUCKETED for end in ("sum", "count")}
    | {f"{engine_names.PREFIX}{name}_bucket" for name in BUCKETED}
)
TIMEOUT_SECONDS = 5.0
# Between two looks at the counters while there are requests, and what they must not stand still for.
LOOK_SECONDS = 1.0
STILL_SECONDS = 2.0
# The dialect of an engine that has no metrics.
NO_METRICS = "none"


def keep(text: str) -> dict[str, float]:
    """Return {sample as the exposition text writes it: value} of the kept families, in the engine's own names."""
    # Most lines are not kept: their name is looked at before they are parsed.
    ours = (line for line in text.split("\n") if line.startswith(engine_names.PREFIXES))
    lines = (line for line in ours if engine_names.present_name(line.partition("{")[0].partition(" ")[0]) in _NAMES)
    samples = (exposition.raw_sample(line) for line in lines)
    return {sample.key: sample.value for sample in samples if sample is not None}


def progress(text: str) -> tuple[float, float]:
    """Return the requests that the engine has, and a sum that grows with every token and step: of a whole answer."""
    requests = work = 0.0
    for line in text.split("\n"):
        if not line.startswith(engine_names.PREFIXES):
            continue
        name = engine_names.present_name(line.partition("{")[0].partition(" ")[0])
        if name not in engine_names.REQUESTS and name not in engine_names.WORK:
            continue
        sample = exposition.raw_sample(line)
        if sample is not None and name in engine_names.REQUESTS:
            requests += sample.value
        elif sample is not None:
            work += sample.value
    return requests, work


def head_metrics(path: str) -> tuple[str, int, str] | None:
    """Return (address, port, path) of the metrics of the head that this node runs; None without one, or metrics."""
    worker = node_files.read_json(path)
    if not isinstance(worker, dict) or not worker.get("head"):
        return None
    address, port = worker.get("api_address"), worker.get("api_port")
    if not isinstance(address, str) or not address or not isinstance(port, int):
        return None
    watch = worker.get("watch")
    metrics = watch.get("metrics") if isinstance(watch, dict) else None
    where = metrics if isinstance(metrics, dict) else {}
    return None if where.get("dialect") == NO_METRICS else (address, port, str(where.get("path", "/metrics")))


class EngineReader(threading.Thread):
    """Reads the metrics in a thread of its own: a busy engine may take a second to answer."""

    def __init__(
        self,
        worker_file: str,
        interval: float,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._worker_file = worker_file
        self._interval = interval
        self._clock = clock
        self._steady = steady
        self._latest: dict[str, Any] | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._address: tuple[str, int, str] | None = None
        self._headers: dict[str, str] = {}
        self._changed: int | None = None
        self._read = -interval
        self._requests, self._work = 0.0, -1.0
        self._moved = steady()
        self.ending = threading.Event()
        # Set when the engine makes nothing of its requests; whoever has reported it clears it.
        self.is_stalled = threading.Event()

    def run(self) -> None:
        """Read until asked to end."""
        while not self.ending.wait(min(self._interval, LOOK_SECONDS) if self._requests else self._interval):
            try:
                self.read()
            except Exception:  # an odd answer must not end the reading of all that come after
                print(f"sampler: {traceback.format_exc().rstrip()}", file=sys.stderr, flush=True)

    def read(self) -> None:
        """Read once; what was read, when that is due or it is news, is kept until it is taken."""
        changed = _changed(self._worker_file)
        if changed != self._changed:
            self._changed = changed
            self._close()
            self._address = head_metrics(self._worker_file) if changed else None
            worker = node_files.read_json(self._worker_file) if self._address else None
            self._headers = api_key.authorization(worker)
            self._requests, self._work = 0.0, -1.0
        if self._address is None:
            return
        started = self._clock()
        text = self._ask(self._address)
        if text is None:
            return
        now = self._steady()
        requests, work = progress(text)
        if not requests or work != self._work:
            self._moved = now
        self._requests, self._work = requests, work
        still = now - self._moved
        stalled = still >= STILL_SECONDS
        # A tenth is left for a wait that ends early.
        if stalled or now - self._read >= 0.9 * self._interval:
            self._read = now
            found: dict[str, Any] = {"t": started, "metrics": keep(text)}
            self._latest = {**found, "still_s": round(still, 3)} if stalled else found
        if stalled:
            self.is_stalled.set()

    def _ask(self, address: tuple[str, int, str]) -> str | None:
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(*address[:2], timeout=TIMEOUT_SECONDS)
            self._connection.request("GET", address[2], headers=self._headers)
            answer = self._connection.getresponse()
            body = answer.read()
            return body.decode("utf-8", "replace") if answer.status == 200 else None
        except (OSError, http.client.HTTPException, ValueError):
            # An engine that starts, ends or is busy: the next batch has no engine part.
            self._close()
            return None

    def take(self) -> dict[str, Any] | None:
        """Return the reading since the last call, or None."""
        latest, self._latest = self._latest, None
        return latest

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _changed(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
