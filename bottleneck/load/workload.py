"""Loads, and the arguments of the load generator that sends them.

The generator is `vllm bench serve`, at home in the engine's environment. Pure functions: commands are made here, and
run elsewhere.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import UnionType
from typing import Any

from bottleneck.profile.types import Workload

# A closed loop sends at least this many rounds of its concurrency: the first round is all prefill.
ROUNDS = 2
# Keeps the prompts of loads and replicas apart, whatever the seed.
_SEED_STRIDE = 1000
_PROGRESS = re.compile(r"(\d+)/(\d+) \[")


class WorkloadError(ValueError):
    """A load that cannot be sent; the text says what was seen and what is expected."""


@dataclass(frozen=True)
class Load:
    """One load: what a run was sent, a point of a sweep, what the causal experiment sends again.

    Attributes
    ----------
    concurrency
        Requests kept under way (closed loop); None when they come at a rate.
    rate_per_second
        Arrivals per second, Poisson (open loop); None when they are kept under way.
    """

    input_tokens: int
    output_tokens: int
    requests: int
    seed: int
    temperature: float = 0.0
    concurrency: int | None = None
    rate_per_second: float | None = None

    @property
    def label(self) -> str:
        """The load in a few words."""
        if self.rate_per_second is not None:
            return f"{self.rate_per_second:g} requests/s"
        return f"concurrency {self.concurrency}"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, without what does not apply."""
        return {key: value for key, value in asdict(self).items() if value is not None}


_CLOSED, _OPEN = "concurrency", "rate_per_second"


def load_of(asked: Mapping[str, Any], default: Workload | None = None) -> Load:
    """Return a load as `Load.to_json` wrote it.

    Parameters
    ----------
    asked : Mapping[str, Any]
        Load as plain data, from a command line or a record.
    default : Workload or None
        Whose values stand for what is left out; without it, only the temperature may be.

    Raises
    ------
    WorkloadError
        When that cannot be sent: it names the key, what was seen and what is expected.
    """
    names = [each.name for each in fields(Load)]
    given = {name: value for name, value in asked.items() if value is not None}
    if unknown := sorted(set(given) - set(names)):
        raise WorkloadError(f"{unknown[0]}; expected {', '.join(names)}")
    if _CLOSED in given and _OPEN in given:
        raise WorkloadError("a concurrency and a rate; expected one of them: the loop is closed or it is open")
    values = {**(default.model_dump() if default else {}), **given}
    if _OPEN in given:
        values.pop(_CLOSED, None)
    needed = [name for name in names[:4] if name not in values]
    if needed or not (_CLOSED in values or _OPEN in values):
        raise WorkloadError(f"no {(needed or [_CLOSED])[0]}; expected {', '.join(names[:4])}, and {_CLOSED} or {_OPEN}")
    if not _is_number(values["seed"], int) or values["seed"] < 0:
        raise WorkloadError(f"seed {values['seed']!r}; expected 0 or more")
    temperature = values.get("temperature", 0.0)
    if not _is_number(temperature, int | float) or not 0 <= temperature < math.inf:
        raise WorkloadError(f"temperature {temperature!r}; expected 0 or more")
    counts = (*names[:3], *([_CLOSED] if _CLOSED in values else []))
    return Load(
        **{name: _positive(name.replace("_", " "), values[name]) for name in counts},
        seed=values["seed"],
        temperature=float(temperature),
        rate_per_second=_rate(values[_OPEN]) if _OPEN in values else None,
    )


def points(
    workload: Workload,
    *,
    concurrency: Sequence[int] | None = None,
    rate_per_second: Sequence[float] | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    requests: int | None = None,
    seed: int | None = None,
    context_length: int | None = None,
) -> list[Load]:
    """Return the loads of a sweep: the profile's workload where nothing else is asked for.

    Parameters
    ----------
    workload : Workload
        The profile's workload.
    concurrency, rate_per_second : Sequence[int] or None
        One load each; not both.
    input_tokens, output_tokens : int or None
        Tokens of a prompt and of an answer; None is the workload's.
    requests : int or None
        Requests of every load; left out, the profile's number, but at least two rounds of the concurrency.
    seed : int or None
        Seed of the random prompts; None is the workload's.
    context_length : int or None
        Most tokens of one sequence that the server takes, when it is known.

    Raises
    ------
    WorkloadError
        When that cannot be sent.
    """
    if concurrency and rate_per_second:
        raise WorkloadError("a concurrency and a rate; expected one of them: the loop is closed or it is open")
    asked = {"input_tokens": input_tokens, "output_tokens": output_tokens, "requests": requests, "seed": seed}
    if rate_per_second:
        loads = [load_of({**asked, _OPEN: rate}, workload) for rate in rate_per_second]
    else:
        loads = [load_of({**asked, _CLOSED: count}, workload) for count in concurrency or [workload.concurrency]]
        if requests is None:
            loads = [replace(load, requests=max(load.requests, ROUNDS * (load.concurrency or 0))) for load in loads]
    tokens = loads[0].input_tokens + loads[0].output_tokens
    if context_length is not None and tokens > context_length:
        raise WorkloadError(
            f"{loads[0].input_tokens} input and {loads[0].output_tokens} output tokens; "
            f"expected at most {context_length} together, the server's longest sequence"
        )
    return [replace(load, seed=load.seed + _SEED_STRIDE * index) for index, load in enumerate(loads)]


def _is_number(value: object, kind: type | UnionType) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _positive(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WorkloadError(f"{name} {value!r}; expected a whole number above zero")
    return value


def _rate(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise WorkloadError(f"rate {value!r}; expected requests per second above zero")
    return float(value)


def shares(load: Load, heads: int) -> list[Load | None]:
    """Divide a load among the heads of a deployment, each of which has a generator of its own.

    A head is left without work (None) when there are fewer requests under way than heads.

    Parameters
    ----------
    load : Load
        The load on the deployment as a whole.
    heads : int
        Number of heads, at least 1.

    Returns
    -------
    list[Load or None]
        One for every head, in order. Requests, those under way and the rate add up to those of the load; seeds follow
        each other.
    """
    working = min(heads, load.requests, load.concurrency or heads)
    found: list[Load | None] = [
        replace(
            load,
            seed=load.seed + index,
            requests=_part(load.requests, working, index),
            concurrency=None if load.concurrency is None else _part(load.concurrency, working, index),
            rate_per_second=None if load.rate_per_second is None else load.rate_per_second / working,
        )
        for index in range(working)
    ]
    return found + [None] * (heads - working)


def _part(whole: int, parts: int, index: int) -> int:
    return whole // parts + (index < whole % parts)


def client_arguments(
    load: Load, *, base_url: str, model: str, tokenizer: str, result_directory: str, result_name: str
) -> list[str]:
    """Return the arguments, after the `vllm` executable, that send a load to one head.

    Parameters
    ----------
    load : Load
        The part of the load that is this head's.
    base_url : str
        Of the head, such as ``http://10.77.0.10:8000``.
    model : str
        The name the server answers to.
    tokenizer : str
        The model's directory.
    result_directory, result_name : str
        Folder and name of the file that the generator writes.
    """
    if load.rate_per_second is not None:
        pace = ["--request-rate", f"{load.rate_per_second:g}"]
    else:
        pace = ["--max-concurrency", str(load.concurrency)]
    return [
        *("bench", "serve", "--backend", "openai", "--base-url", base_url),
        *("--model", model, "--tokenizer", tokenizer),
        *("--dataset-name", "random"),
        *("--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens)),
        *("--num-prompts", str(load.requests), *pace, "--seed", str(load.seed)),
        *("--ignore-eos", "--temperature", f"{load.temperature:g}"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el"),
        *("--save-result", "--save-detailed"),
        *("--result-dir", result_directory, "--result-filename", result_name),
    ]


def warm_up_request(load: Load, model: str, vocabulary_size: int) -> dict[str, Any]:
    """Return the body of a completion request of a load's lengths, whose tokens are random.

    Parameters
    ----------
    load
        Whose lengths it has.
    model
        The served model's name.
    vocabulary_size
        Token ids are below it.
    """
    numbers = random.Random(load.seed)
    # Well inside the vocabulary, clear of its special tokens.
    first, last = vocabulary_size // 4, vocabulary_size // 2
    return {
        "model": model,
        "prompt": [numbers.randrange(first, last) for _ in range(load.input_tokens)],
        "max_tokens": load.output_tokens,
        "temperature": load.temperature,
        "ignore_eos": True,
    }


def progress(text: str) -> tuple[int, int] | None:
    """Return (done, total) of the last progress bar in what a generator has printed.

    Parameters
    ----------
    text : str
        Output of a generator, with the bar's carriage returns.

    Returns
    -------
    tuple[int, int] or None
        Numbers of requests; None before the first bar.
    """
    found = _PROGRESS.findall(text)
    return (int(found[-1][0]), int(found[-1][1])) if found else None
