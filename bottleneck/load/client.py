"""What the load generator recorded: requests with their times, from the result files it saves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from bottleneck.json_numbers import number


@dataclass(frozen=True)
class ClientRequest:
    """One request as the load generator saw it; times in seconds.

    `start_seconds` is on the generator's own clock (not unix time): good for differences only.
    """

    input_tokens: int
    output_tokens: int
    ttft_seconds: float
    itl_seconds: tuple[float, ...] = ()
    latency_seconds: float = math.nan
    start_seconds: float | None = None
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether the request came back with tokens and a usable time."""
        return (
            not self.error
            and self.output_tokens > 0
            and math.isfinite(self.latency_seconds)
            and self.latency_seconds > 0
        )

    @property
    def tpot_seconds(self) -> float:
        """Seconds per output token after the first; NaN for fewer than two tokens."""
        if self.output_tokens < 2:
            return math.nan
        return (self.latency_seconds - self.ttft_seconds) / (self.output_tokens - 1)


@dataclass
class ClientResult:
    """What the load generator recorded, over one or more of its result files."""

    requests: list[ClientRequest] = field(default_factory=list)
    duration_seconds: float = math.nan
    concurrency: int | None = None
    request_rate: float | None = None
    failed: int = 0
    points: list[dict[str, Any]] = field(default_factory=list)

    @property
    def good(self) -> list[ClientRequest]:
        """The requests that can be counted with."""
        return [request for request in self.requests if request.good]


def _item(values: object, index: int) -> Any:
    return values[index] if isinstance(values, list) and index < len(values) else None


def _client_point(document: dict[str, Any]) -> ClientResult:
    columns = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "errors")
    table = {name: document.get(name) for name in columns}
    length = max((len(column) for column in table.values() if isinstance(column, list)), default=0)
    requests = []
    for index in range(length):
        gaps = _item(table["itls"], index)
        itl = tuple(number(gap) for gap in gaps) if isinstance(gaps, list) else ()
        ttft = number(_item(table["ttfts"], index))
        tokens, prompt = number(_item(table["output_lens"], index)), number(_item(table["input_lens"], index))
        start = number(_item(table["start_times"], index))
        requests.append(
            ClientRequest(
                input_tokens=int(prompt) if math.isfinite(prompt) else 0,
                output_tokens=int(tokens) if math.isfinite(tokens) else 0,
                ttft_seconds=ttft,
                itl_seconds=itl,
                # The generator does not save the latency itself: it is the first token's plus all the gaps.
                latency_seconds=ttft + sum(itl),
                start_seconds=start if math.isfinite(start) else None,
                error=str(_item(table["errors"], index) or ""),
            )
        )
    rate, concurrency = number(document.get("request_rate")), number(document.get("max_concurrency"))
    failed = number(document.get("failed"))
    return ClientResult(
        requests=requests,
        duration_seconds=number(document.get("duration")),
        concurrency=int(concurrency) if math.isfinite(concurrency) else None,
        request_rate=None if math.isnan(rate) else rate,
        failed=int(failed) if math.isfinite(failed) else sum(bool(request.error) for request in requests),
    )


def client_result(document: object) -> ClientResult:
    """Read the load generator's saved result.

    Parameters
    ----------
    document : object
        `vllm bench serve --save-result --save-detailed` JSON, or `{"results": [...]}` with several of them (a sweep).

    Returns
    -------
    ClientResult
        Requests of all results; the settings (concurrency, rate) are those of the last one, `points` keeps each
        result without its per-request columns.
    """
    if isinstance(document, dict) and isinstance(document.get("results"), list):
        documents = [item for item in document["results"] if isinstance(item, dict)]
    elif isinstance(document, list):
        documents = [item for item in document if isinstance(item, dict)]
    else:
        documents = [document] if isinstance(document, dict) else []
    whole = ClientResult()
    for item in documents:
        point = _client_point(item)
        whole.requests += point.requests
        whole.failed += point.failed
        whole.concurrency, whole.request_rate = point.concurrency, point.request_rate
        if math.isfinite(point.duration_seconds):
            known = whole.duration_seconds if math.isfinite(whole.duration_seconds) else 0.0
            whole.duration_seconds = known + point.duration_seconds
        whole.points.append({name: value for name, value in item.items() if not isinstance(value, list)})
    return whole
