"""Find the way around a ring of cables: over which neighbour a node reaches those that it has no cable to."""

from collections import deque
from collections.abc import Mapping, Sequence


def through(peers: Mapping[str, Sequence[str]], start: str) -> dict[str, str]:
    """Return node -> the neighbour that passes on what is for it, for every node without a cable to `start`.

    Parameters
    ----------
    peers : Mapping[str, Sequence[str]]
        Node -> the nodes that it has a cable to.
    start : str
        Name of the node that sends.

    Returns
    -------
    dict
        The neighbour is the first step of a shortest way. Of two ways of one length that over the node written first
        counts, so that between two opposite nodes both directions take the same cables.
    """
    order = {name: index for index, name in enumerate(peers)}
    first: dict[str, str] = {start: start}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        for following in sorted(peers[here], key=lambda name: order[name]):
            if following not in first:
                first[following] = following if here == start else first[here]
                waiting.append(following)
    return {name: next_hop for name, next_hop in first.items() if name not in (start, next_hop)}
