"""One line of the doctor: what was looked at, what was seen, and what mends it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "failed", "unknown"]


@dataclass(frozen=True)
class Check:
    """The finding of one look.

    Attributes
    ----------
    place
        laptop, control, or the name of a node.
    what
        What was looked at, in a word or two.
    status
        unknown is for what could not be looked at: it is no reason to believe that it is well.
    evidence
        What was seen, and what was expected where that is not the same.
    mend
        What to do; empty when all is well.
    """

    place: str
    what: str
    status: Status
    evidence: str
    mend: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


def judged(place: str, what: str, is_well: bool, evidence: str, mend: str, otherwise: Status = "failed") -> Check:
    """Return a check that is ok, or else has its mend."""
    return Check(place, what, "ok" if is_well else otherwise, evidence, "" if is_well else mend)


def on_node(hostname: str, command: str) -> str:
    """Return the words that run a shell's command on a node."""
    return f"cluster control cmd -- salt {hostname} cmd.run '{command}'"
