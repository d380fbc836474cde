"""Define a cause: its words, and the function that finds it in what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import Evidence

# How a cause was tried: on the embedded cluster, on recordings of an accelerator, on made-up measurements only.
LAB, RECORDED, SYNTHETIC = "lab", "recorded", "synthetic"


class Tier(Enum):
    """The effort that mending a cause takes.

    `MENDABLE`: something is set or works wrong, or too little is sent: mending it gives all of its share.
    `LIMIT`: the hardware gives no more under this load and deployment; a healthy cluster has these too.
    `ANSWER`: no cause, an answer that comes from weighing the others.
    """

    MENDABLE = "mendable"
    LIMIT = "limit"
    ANSWER = "answer"


class Family(Enum):
    """Causes that one and the same change mends, whose shares therefore add up against the others."""

    NODE = "node"
    LINK = "link"


@dataclass(frozen=True)
class Term:
    """One term of a score's arithmetic, for `--explain`: its words and its share of an output token's time."""

    words: str
    share: float


@dataclass(frozen=True)
class Finding:
    """A cause as it was found.

    Attributes
    ----------
    score : float
        Share of an output token's time that its relief takes away under the step model, 0 to 1.
    node, link : str or None
        Its place.
    kind : str or None
        What a straggler lacks.
    fault : bool or None
        Whether something works wrong; None where that follows from the cause.
    inferred : float
        How much of the score was not measured but left over by elimination, 0 to 1.
    terms : tuple of Term
        What the score is made of.
    advice : tuple of str
        Of the cause's advice, what holds here; empty is all of it.
    """

    score: float
    node: str | None = None
    link: str | None = None
    kind: str | None = None
    fault: bool | None = None
    inferred: float = 0.0
    evidence: tuple[Evidence, ...] = ()
    terms: tuple[Term, ...] = ()
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cause:
    """One kind of bottleneck.

    Attributes
    ----------
    name : str
        Its name in JSON.
    title : str
        Its title for a person; may hold `{node}`, `{link}` and `{kind}`.
    meaning : str
        What it is.
    signals : tuple of str
        What shows it.
    similar : tuple of (str, str)
        The causes it is mistaken for most easily, and what tells them apart.
    advice : tuple of str
        What to do; may hold `{node}`, `{link}` and other names that the verdict fills in.
    fault : bool
        True where something is set or working wrong; False for a limit that a healthy cluster has too.
    tried : str
        `lab`, `recorded` or `synthetic`: the best evidence on which it was tested.
    find : callable or None
        From what was measured to a `Finding`, or None where there is no sign of it; None for an answer.
    family : Family or None
        What one change mends together.
    rests_on_steps : bool
        Whether it rests on what steps are made of, so that doubts about those count.
    host_or_kernels : bool
        Whether it is one of those that slow kernels and a slow host are confused about.
    at_start : str
        What it is for an engine that starts, where that is something else.
    mended : callable or None
        From what was measured, and where it was found, to what would be measured were it mended: for a cause that hides
        another of its kind.
    """

    name: str
    title: str
    meaning: str
    signals: tuple[str, ...]
    similar: tuple[tuple[str, str], ...]
    advice: tuple[str, ...]
    fault: bool
    tried: str
    tier: Tier
    find: Callable[[Context], Finding | None] | None = None
    family: Family | None = None
    rests_on_steps: bool = False
    host_or_kernels: bool = False
    at_start: str = ""
    mended: Callable[[Context, Finding], Context] | None = None


GAPS = ("node", "link", "max_num_seqs", "more_seqs", "max_num_batched_tokens", "more_tokens", "concurrency")
"""What words may leave open for a verdict to fill in."""


def fill(text: str, values: Mapping[str, str | None]) -> str:
    """Return a text with its named gaps filled; a gap without a value reads as `?`, which is never silently dropped.

    Parameters
    ----------
    text : str
        Title or advice with gaps such as ``{node}``.
    values : Mapping[str, str or None]
        Name of a gap -> words for it, None where they are not known.
    """
    kind = values.get("kind")
    text = text.replace("{kind}", f" ({kind})" if kind else "")
    for key in GAPS:
        text = text.replace(f"{{{key}}}", values.get(key) or "?")
    return text
