"""Messages between the API server and the engine's process; moments are of the monotonic clock, in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Rules by which a request's tokens are chosen, and when it ends.

    Attributes
    ----------
    max_tokens
        Most tokens to generate.
    temperature
        0 takes the likeliest token each time.
    top_p, top_k
        Tokens to choose among: the likeliest of this probability together (0 to 1); so many of the likeliest, None is
        all.
    seed
        Of the choice; None leaves it to the library. It is the sampler's, not the request's: it repeats a choice only
        while the request runs alone.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True)
class Submit:
    """A request for the engine: tokens of the prompt, and how to go on."""

    request: int
    tokens: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True)
class Cancel:
    """A request that nobody waits for any more."""

    request: int


@dataclass(frozen=True)
class Stop:
    """The engine's process is to end."""


@dataclass(frozen=True)
class Ready:
    """The model is loaded and one step has been tried.

    Attributes
    ----------
    version
        Of the library.
    seconds
        From the start of loading.
    """

    version: str
    seconds: float


@dataclass(frozen=True)
class Progress:
    """A request's news of one step.

    Attributes
    ----------
    tokens
        Generated in it.
    finish_reason
        ``stop`` or ``length`` when the request ended, else None.
    """

    request: int
    tokens: tuple[int, ...]
    finish_reason: str | None


@dataclass(frozen=True)
class Step:
    """One step that ended.

    Attributes
    ----------
    began, ended
        Moments.
    started
        Requests that were computed for the first time in it.
    scheduled, left_out
        Requests that it computed; requests that earlier steps had computed and it did not, for want of cache.
    cache_share
        How much of the KV cache was taken, 0 to 1.
    cache_bytes
        Size of the KV cache.
    cpu_seconds
        CPU time that the stepping process has used since it began, all its threads.
    """

    began: float
    ended: float
    started: tuple[int, ...]
    scheduled: int
    left_out: int
    cache_share: float
    cache_bytes: int
    cpu_seconds: float
    progress: tuple[Progress, ...]


@dataclass(frozen=True)
class Refused:
    """A request that the library did not take or gave up, and its reason."""

    request: int
    reason: str


@dataclass(frozen=True)
class Broken:
    """The engine cannot go on."""

    reason: str


Command = Submit | Cancel | Stop
Report = Ready | Step | Refused | Broken
