"""Read what the load generator recorded: requests with their times, from the result files it saves."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        """Return whether the request came back with tokens and a usable time."""
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


@dataclass(frozen=True)
class ClientResult:
    """Records of the load generator, over one or more of its result files.

    Attributes
    ----------
    failed
        Requests that did not come back.
    broken
        Requests whose times or tokens are not numbers.
    points
        Each result file without its columns: one load of a sweep.
    """

    requests: tuple[ClientRequest, ...] = ()
    duration_seconds: float = math.nan
    concurrency: int | None = None
    request_rate: float | None = None
    failed: int = 0
    broken: int = 0
    points: tuple[dict[str, object], ...] = ()

    @property
    def good(self) -> list[ClientRequest]:
        """The requests that can be counted with."""
        return [request for request in self.requests if request.good]


# Longer than any run, more than any prompt: what is beyond is no measurement.
_MOST_SECONDS, _MOST_TOKENS = 1e9, 2.0**53


def seconds(value: object) -> float:
    """Return a time of a request or a result; NaN for what cannot be one.

    Parameters
    ----------
    value : object
        What a document has in the place of seconds; at least 0, and at most what a run can last.
    """
    found = number(value)
    return found if 0 <= found <= _MOST_SECONDS else math.nan


def count(value: object) -> int | None:
    """Return a number of tokens or requests; None for what cannot be one.

    Parameters
    ----------
    value : object
        What a document has in the place of a count; at least 0, a fraction is cut off.
    """
    found = number(value)
    return int(found) if 0 <= found <= _MOST_TOKENS else None


def _item(values: object, index: int) -> object:
    return values[index] if isinstance(values, list) and index < len(values) else None


def _client_point(document: dict[str, Any]) -> ClientResult:
    columns = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "errors")
    table = {name: document.get(name) for name in columns}
    length = max((len(column) for column in table.values() if isinstance(column, list)), default=0)
    requests, broken = [], 0
    for index in range(length):
        gaps = _item(table["itls"], index)
        itl = tuple(seconds(gap) for gap in gaps) if isinstance(gaps, list) else ()
        ttft, start = (seconds(_item(table[name], index)) for name in ("ttfts", "start_times"))
        prompt, tokens = (count(_item(table[name], index)) for name in ("input_lens", "output_lens"))
        broken += math.isnan(ttft) or tokens is None or any(map(math.isnan, itl))
        requests.append(
            ClientRequest(
                input_tokens=prompt or 0,
                output_tokens=tokens or 0,
                ttft_seconds=ttft,
                itl_seconds=itl,
                # The generator does not save the latency itself: it is the first token's plus all the gaps.
                latency_seconds=ttft + sum(itl),
                start_seconds=start if math.isfinite(start) else None,
                error=str(_item(table["errors"], index) or ""),
            )
        )
    rate = number(document.get("request_rate"))
    failed = count(document.get("failed"))
    return ClientResult(
        requests=tuple(requests),
        duration_seconds=seconds(document.get("duration")),
        concurrency=count(document.get("max_concurrency")),
        request_rate=rate if rate > 0 else None,
        failed=sum(bool(request.error) for request in requests) if failed is None else failed,
        broken=broken,
    )


def _documents(document: object) -> list[dict[str, Any]]:
    if isinstance(document, list):
        return [found for part in document for found in _documents(part)]
    if not isinstance(document, dict):
        return []
    several = document.get("results")
    return _documents(several) if isinstance(several, list) else [document]


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
    documents = _documents(document)
    results = [_client_point(item) for item in documents]
    if not results:
        return ClientResult()
    durations = [result.duration_seconds for result in results if math.isfinite(result.duration_seconds)]
    return ClientResult(
        requests=tuple(request for result in results for request in result.requests),
        duration_seconds=math.fsum(durations) if durations else math.nan,
        concurrency=results[-1].concurrency,
        request_rate=results[-1].request_rate,
        failed=sum(result.failed for result in results),
        broken=sum(result.broken for result in results),
        points=tuple(
            {name: value for name, value in item.items() if not isinstance(value, list)} for item in documents
        ),
    )
