"""Count what the server does, in Prometheus' form; seconds, bytes, tokens, and shares from 0 to 1."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from genai_server.settings import Settings

# From a step of a small model to a prompt that waits for minutes.
_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0)
_WHOLE = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)

_TOKENS = tuple(float(2**power) for power in range(21))


class Metrics:
    """The server's metrics, in a registry of its own."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        label = {"model": model}

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"genai_{name}", text, ["model"], registry=self.registry).labels(**label)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"genai_{name}", text, ["model"], registry=self.registry).labels(**label)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"genai_{name}_seconds", text, ["model"], registry=self.registry, buckets=buckets)
            return made.labels(**label)

        def sizes(name: str, text: str) -> Histogram:
            made = Histogram(f"genai_{name}", text, ["model"], registry=self.registry, buckets=_TOKENS)
            return made.labels(**label)

        self.running = gauge("requests_running", "Requests that a step has computed and that have not ended")
        self.waiting = gauge("requests_waiting", "Requests that no step has computed yet")
        self.cache_share = gauge("cache_usage_ratio", "Share of the KV cache that is taken")
        self.cache_bytes = gauge("cache_bytes", "Size of the KV cache as it is allocated now")
        self.scheduled = gauge("requests_scheduled", "Requests that the last step computed")
        self.prompt_lengths = sizes("request_prompt_tokens", "Tokens of the prompts of finished requests")
        self.generated_lengths = sizes("request_generation_tokens", "Tokens that finished requests were given")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts that were computed")
        self.generation_tokens = counter("generation_tokens", "Tokens that were generated")
        self.steps = counter("steps", "Steps that ended")
        self.left_out = counter("steps_short", "Steps that left out a request which earlier ones had computed")
        self.engine_cpu = counter("engine_cpu_seconds", "CPU time of the process that steps")
        self.api_server_cpu = counter("api_server_cpu_seconds", "CPU time of the process that answers requests")
        self.step = histogram("step", "Time of a step", _LATENCY)
        self.queue = histogram("request_queue", "From a request's arrival to the first step that computes it", _WHOLE)
        self.prefill = histogram("request_prefill", "From that step's begin to the first token", _WHOLE)
        self.decode = histogram("request_decode", "From the first token to the last", _WHOLE)
        self.whole = histogram("request_latency", "From a request's arrival to its last token", _WHOLE)
        self.first_token = histogram("time_to_first_token", "From a request's arrival to its first token", _WHOLE)
        self.inter_token = histogram("inter_token_latency", "Between two tokens of a request", _LATENCY)
        self._finished = Counter(
            "genai_requests_finished", "Requests that ended, by reason", ["model", "reason"], registry=self.registry
        )
        self._info = Info("genai_server", "What serves", registry=self.registry)
        # With the names of vLLM's labels, which whoever reads engines' metrics knows.
        self._cache = Info("genai_cache_config", "Blocks of the KV cache", registry=self.registry)
        self._model = model
        self._api_server_cpu_seen = self._engine_cpu_seen = 0.0

    def describe(self, settings: Settings) -> None:
        """Say what serves, and what its cache is."""
        self._info.info({"model": self._model, "device": settings.device})
        self._cache.info(
            {
                "num_gpu_blocks": str(settings.cache_blocks),
                "block_size": str(settings.block_tokens),
                "enable_prefix_caching": str(settings.prefix_caching),
                "cache_dtype": settings.cache_format,
            }
        )

    def finished(self, reason: str) -> None:
        """Count a request that ended: stop, length, abort or error."""
        self._finished.labels(model=self._model, reason=reason).inc()

    def engine_cpu_seconds(self, seconds: float) -> None:
        """Take the stepping process's CPU time since it began."""
        self.engine_cpu.inc(max(0.0, seconds - self._engine_cpu_seen))
        self._engine_cpu_seen = seconds

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        seconds = time.process_time()
        self.api_server_cpu.inc(max(0.0, seconds - self._api_server_cpu_seen))
        self._api_server_cpu_seen = seconds
        return generate_latest(self.registry)
