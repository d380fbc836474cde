"""Count how often a node was reprovisioned by itself, wait longer after each time, and leave it to a person at last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import TypeAdapter

from bottleneck import atomic_files
from control import records
from control.nodes import Options

FILE = "reprovision_attempts.json"
MOST_ATTEMPTS = 3
# After the first attempt; twice as long after the next.
WAIT_SECONDS = 600.0

# Node to when it was tried, unix seconds.
Attempts = Mapping[str, tuple[float, ...]]
_ATTEMPTS: TypeAdapter[dict[str, tuple[float, ...]]] = TypeAdapter(dict[str, tuple[float, ...]])


def refusal(node: str, moments: tuple[float, ...], now: float) -> str | None:
    """Return why a node is not reprovisioned by itself now, or None."""
    if len(moments) >= MOST_ATTEMPTS:
        return f"given up after {len(moments)} attempts; when it is mended: cluster node clear {node}"
    if not moments:
        return None
    # A moment after now is of a clock that was set back; it is waited for from now on.
    passed = max(0.0, now - moments[-1])
    wait = WAIT_SECONDS * 2 ** (len(moments) - 1)
    if passed < wait:
        return f"tried {passed:.0f} s ago; by itself again in {wait - passed:.0f} s"
    return None


def read(opts: Options) -> dict[str, tuple[float, ...]]:
    """Return every node's attempts.

    A record that cannot be read stops all of it: nothing may reboot nodes without its count.
    """
    remedy = "take the file away, then cluster reprovision --due"
    return records.read_as(records.path_of(opts, FILE), _ATTEMPTS, remedy) or {}


def note(opts: Options, nodes: Iterable[str], now: float) -> None:
    """Count an attempt on nodes, before it begins."""
    known = read(opts)
    _write(opts, {**known, **{node: (*known.get(node, ()), now)[-MOST_ATTEMPTS:] for node in nodes}})


def forget(opts: Options, nodes: Iterable[str]) -> list[str]:
    """Forget the attempts on nodes; return those that had any."""
    known, gone = read(opts), set(nodes)
    found = sorted(gone & set(known))
    if found:
        _write(opts, {node: moments for node, moments in known.items() if node not in gone})
    return found


def _write(opts: Options, attempts: Attempts) -> None:
    path = records.path_of(opts, FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.replace_json(path, {node: list(moments) for node, moments in attempts.items()}, durable=True)
