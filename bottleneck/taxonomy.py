"""Every bottleneck this system can name, in one place.

A class is data: to add one, add an entry here and a rule in `bottleneck/rules.py` that scores it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BottleneckClass:
    """One kind of bottleneck.

    Attributes
    ----------
    name : str
        The word in JSON.
    title : str
        The words for a person; may hold `{node}` and `{link}`.
    meaning : str
        What it is.
    signals : tuple of str
        What shows it.
    advice : tuple of str
        What to do; may hold `{node}`, `{link}` and other names that the rule fills in.
    """

    name: str
    title: str
    meaning: str
    signals: tuple[str, ...]
    advice: tuple[str, ...]


_ALL = (
    BottleneckClass(
        name="compute",
        title="Compute on {node}",
        meaning="The steps of the engine are as long as the arithmetic and the weight reads of a node take.",
        signals=(
            "the largest share of the ledger inside prefill and decode is a node's own work",
            "no link is near its ceiling and no node is held back by its surroundings",
            "requests do not wait for a slot or for cache",
        ),
        advice=(
            "Give the model fewer bits per weight or a smaller shape, or add nodes to the deployment.",
            "Compare with what the node can do at most: cluster probe --only nodes",
            "Confirm by slowing the node a little and watching the latency follow: "
            "cluster lab slow {node} --cores 0.8, then cluster lab slow {node} --restore",
        ),
    ),
    BottleneckClass(
        name="link_bandwidth",
        title="Bandwidth of link {link}",
        meaning="Bytes that the nodes must exchange in every step take longer over the link than the arithmetic.",
        signals=(
            "bytes sent divided by the link's ceiling are the largest share of the ledger",
            "the link runs near its ceiling while it is active",
            "workers sleep while the engine is busy",
        ),
        advice=(
            "Use a faster link for the deployment, or pipeline instead of tensor parallel: it sends less.",
            "If the link was slowed on purpose: cluster lab throttle {link} --restore",
            "Measure the link again: cluster probe --only links",
        ),
    ),
    BottleneckClass(
        name="straggler",
        title="Straggler {node}",
        meaning="One node is slower than its peers; in every collective the others wait for it.",
        signals=(
            "one node alone is throttled, waits for its CPU, or has lower ceilings than its peers beyond their spread",
            "its peers' workers sleep while the engine is busy",
        ),
        advice=(
            "Take away what holds {node} back (its CPU quota, other processes on its cores, heat), "
            "or give it a smaller part of the model.",
            "If the node was slowed on purpose: cluster lab slow {node} --restore",
            "Watch the nodes side by side: cluster top",
        ),
    ),
    BottleneckClass(
        name="queueing",
        title="Queueing: too few sequences allowed",
        meaning="Requests wait for a free slot although the cache has room: the limit is a setting.",
        signals=(
            "requests wait while as many run as max_num_seqs allows",
            "the KV cache is mostly empty",
            "queue time is a large share of the ledger",
        ),
        advice=(
            "Raise max_num_seqs (now {max_num_seqs}): cluster undeploy, "
            "then cluster deploy --set max_num_seqs={more_seqs}, then cluster bench",
            "Watch the KV cache after that: with more sequences it becomes the next limit.",
        ),
    ),
    BottleneckClass(
        name="kv_capacity",
        title="KV cache is full",
        meaning="There is no room for the keys and values of more tokens: requests wait or are thrown out and redone.",
        signals=(
            "the engine preempts requests",
            "requests wait while the KV cache is nearly full and slots are free",
        ),
        advice=(
            "Give the cache more memory (kv_cache_memory in the deployment's server settings): cluster undeploy, "
            "then cluster deploy --set kv_cache_memory=SIZE",
            "Or store keys and values in fewer bits, or shorten max_model_len.",
            "Or allow fewer sequences at a time: it ends the preemptions, which do work twice.",
        ),
    ),
    BottleneckClass(
        name="load_too_small",
        title="The load is too small",
        meaning="The cluster is idle for much of the time: the requests come too slowly to find what limits it.",
        signals=(
            "the engine has no request for much of the time, or far fewer than it may run",
            "nothing waits",
        ),
        advice=("Send more: cluster bench --concurrency {concurrency} (or a higher --rate), then ask again.",),
    ),
    BottleneckClass(
        name="balanced",
        title="Balanced: no single bottleneck",
        meaning="Two or more resources take about the same share: mending one alone gains little.",
        signals=("the two largest causes are within the error of each other",),
        advice=(
            "Mend the first two together, or find out which one counts by slowing each a little: cluster lab slow, "
            "cluster lab throttle, then cluster bench and cluster run compare",
        ),
    ),
    BottleneckClass(
        name="inconclusive",
        title="Inconclusive",
        meaning="The measurements do not carry a verdict; what they do carry is in the evidence.",
        signals=("measurements are missing, contradict each other, or leave most of the time unexplained",),
        advice=(
            "Record a longer run: cluster bench --requests 32",
            "See which part does not report: cluster status",
        ),
    ),
)

CLASSES: dict[str, BottleneckClass] = {item.name: item for item in _ALL}


def title(name: str, places: dict[str, str | None]) -> str:
    """Return a class's title with the places filled in."""
    return fill(CLASSES[name].title, places)


def fill(text: str, values: dict[str, str | None]) -> str:
    """Fill the named gaps of a text; a gap without a value reads as `?`, which is never silently dropped."""
    for key in ("node", "link", "max_num_seqs", "more_seqs", "concurrency"):
        text = text.replace(f"{{{key}}}", values.get(key) or "?")
    return text
