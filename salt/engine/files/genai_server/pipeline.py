"""Reach OpenVINO GenAI: the few of its calls that serving needs, behind a protocol that a test can fake."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from genai_server.messages import Progress, Sampling
from genai_server.settings import Settings


class PipelineError(Exception):
    """The library does not take a request; the text is its reason."""


@dataclass(frozen=True)
class Usage:
    """Requests that the last step computed, and the KV cache: its share that is taken (0 to 1), its size."""

    scheduled: int = 0
    cache_share: float = 0.0
    cache_bytes: int = 0


class Pipeline(Protocol):
    """A pipeline that computes several requests together, one step at a time."""

    version: str

    def add(self, request: int, tokens: tuple[int, ...], sampling: Sampling) -> None:
        """Take a request; raise `PipelineError` with the reason where it cannot be."""

    def cancel(self, request: int) -> None:
        """Forget a request."""

    def step(self) -> None:
        """Compute every request for one token, or a part of its prompt."""

    def news(self) -> tuple[list[Progress], list[int]]:
        """Return what requests have got since the last call, and those that were given up for want of cache."""

    def usage(self) -> Usage:
        """Return what the pipeline holds."""


def device_properties(settings: Settings) -> dict[str, Any]:
    """Return OpenVINO's properties for a device."""
    properties: dict[str, Any] = {"KV_CACHE_PRECISION": settings.cache_format}
    if settings.device == "CPU":
        # Which cores it may use is the node's business: pinning would put two nodes of one machine on the same core.
        properties["ENABLE_CPU_PINNING"] = False
        if settings.threads:
            properties["INFERENCE_NUM_THREADS"] = settings.threads
    return properties


class OpenVinoPipeline:
    """openvino_genai.ContinuousBatchingPipeline."""

    def __init__(self, settings: Settings) -> None:
        import openvino
        import openvino_genai

        self._genai, self._openvino = openvino_genai, openvino
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = settings.cache_blocks
        scheduler.max_num_batched_tokens = settings.max_num_batched_tokens
        # It is not kept to while prompts are computed in parts (2026.4): `stepping` admits no more.
        scheduler.max_num_seqs = settings.max_num_seqs
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = settings.prefix_caching
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            settings.model_folder, scheduler, settings.device, device_properties(settings)
        )
        # The ends that the model's own generation_config.json names.
        self._ends: set[int] = set(self._pipeline.get_config().stop_token_ids)
        self._handles: dict[int, Any] = {}
        self.version = str(openvino_genai.__version__)

    def add(self, request: int, tokens: tuple[int, ...], sampling: Sampling) -> None:
        config = self._genai.GenerationConfig(**_choice(sampling))
        config.stop_token_ids = set() if sampling.ignore_eos else self._ends
        if self._ends:
            config.set_eos_token_id(min(self._ends))
        tensor = self._openvino.Tensor(_row(tokens))
        try:
            self._handles[request] = self._pipeline.add_request(request, tensor, config)
        except RuntimeError as error:
            raise PipelineError(last_line(str(error))) from error

    def cancel(self, request: int) -> None:
        handle = self._handles.pop(request, None)
        if handle is not None:
            handle.cancel()

    def step(self) -> None:
        self._pipeline.step()

    def news(self) -> tuple[list[Progress], list[int]]:
        found: list[Progress] = []
        ignored = []
        for request, handle in list(self._handles.items()):
            tokens: list[int] = []
            reason = None
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
                    reason = _REASONS.get(output.finish_reason.name, reason)
            status = handle.get_status().name
            if status == "IGNORED":
                ignored.append(request)
            elif tokens or reason:
                found.append(Progress(request, tuple(tokens), reason))
            if status != "RUNNING":
                del self._handles[request]
        return found, ignored

    def usage(self) -> Usage:
        metrics = self._pipeline.get_metrics()
        return Usage(
            scheduled=metrics.scheduled_requests,
            cache_share=metrics.cache_usage / 100.0,
            cache_bytes=metrics.cache_size_in_bytes,
        )


_REASONS = {"STOP": "stop", "LENGTH": "length"}


def _choice(sampling: Sampling) -> Mapping[str, Any]:
    options: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "min_new_tokens": sampling.min_tokens,
        "ignore_eos": sampling.ignore_eos,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        # The prompt is text or tokens as the API server made them.
        "apply_chat_template": False,
        "do_sample": sampling.temperature > 0,
    }
    if sampling.temperature > 0:
        options |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        options |= {"top_k": sampling.top_k} if sampling.top_k else {}
        options |= {"rng_seed": sampling.seed} if sampling.seed is not None else {}
    return options


def _row(tokens: tuple[int, ...]) -> Any:
    import numpy

    return numpy.array([tokens], dtype=numpy.int64)


def last_line(text: str) -> str:
    """Return the last line of a message of the library: the first ones say where in its source it was raised."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it reported nothing"
