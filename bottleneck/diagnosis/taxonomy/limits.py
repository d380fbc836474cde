"""Bottlenecks around the steps: settings, memory, the server's front, the client, the start."""

from __future__ import annotations

from bottleneck.diagnosis.taxonomy.kind import LAB, SYNTHETIC, BottleneckClass

LIMITS = (
    BottleneckClass(
        name="sequence_limit",
        title="Too few sequences allowed (max_num_seqs)",
        meaning="Requests wait for a free slot though cache and arithmetic have room: the limit is a setting.",
        signals=(
            "requests wait while as many run as max_num_seqs allows, the same number all the time",
            "the KV cache is mostly empty",
            "queue time is a large share of the ledger",
        ),
        neighbours=(
            ("kv_cache_capacity", "there the cache is nearly full, the number running varies, requests are preempted"),
            ("prefill_compute", "there arithmetic is used up: more slots would only move the wait"),
        ),
        advice=(
            "Raise max_num_seqs (now {max_num_seqs}): cluster undeploy, "
            "then cluster deploy --set max_num_seqs={more_seqs}, then cluster bench",
            "Watch the KV cache after that: with more sequences it becomes the next limit.",
        ),
        fault=True,
        tried=LAB,
    ),
    BottleneckClass(
        name="kv_cache_capacity",
        title="KV cache is full",
        meaning="There is no room for the keys and values of more tokens: requests wait or are thrown out and redone.",
        signals=(
            "the engine preempts requests",
            "requests wait while the KV cache is nearly full and slots are free",
        ),
        neighbours=(
            ("sequence_limit", "there the cache is mostly empty and the number running stands still at the limit"),
            ("memory_capacity", "there the node's memory itself runs out: swapping, stalls of the kernel, kills"),
        ),
        advice=(
            "Give the cache more memory (kv_cache_memory in the deployment's server settings): cluster undeploy, "
            "then cluster deploy --set kv_cache_memory=SIZE",
            "Or store keys and values in fewer bits, or shorten max_model_len.",
            "Or allow fewer sequences at a time: it ends the preemptions, which do work twice.",
        ),
        fault=True,
        tried=LAB,
    ),
    BottleneckClass(
        name="memory_capacity",
        title="Memory of {node} runs out",
        meaning="A node has too little memory for what runs on it: it swaps, reclaims or kills.",
        signals=(
            "little of the node's memory is available, and tasks stall for memory (pressure)",
            "pages are read from disk while the engine serves",
        ),
        neighbours=(
            ("kv_cache_capacity", "there only the engine's own cache is full; the node has memory left"),
            ("weight_loading", "there the reads end once the engine serves"),
        ),
        advice=(
            "Free memory on {node}: a smaller cache (kv_cache_memory), fewer bits per weight, more nodes per model.",
            "See what takes it: cluster top",
        ),
        fault=True,
        tried=SYNTHETIC,
    ),
    BottleneckClass(
        name="api_server",
        title="API server or tokenizer",
        meaning="The process in front of the engine (HTTP, tokenizer, detokenizer) is what requests wait for.",
        signals=(
            "the server's front process uses a whole core",
            "requests are slower at the server's front than in its engine: whole latency minus queue, prefill, decode",
        ),
        neighbours=(
            ("client_limited", "there the front process idles too: the time is lost before the server"),
            ("host_overhead", "there the time is lost inside the engine's steps"),
        ),
        advice=(
            "Run more front processes (vLLM's --api-server-count), or keep it from work: shorter texts, token ids "
            "instead of text, fewer streamed events.",
            "Give the head's front process a core that the engine's loop does not use.",
        ),
        fault=True,
        tried=LAB,
    ),
    BottleneckClass(
        name="client_limited",
        title="Limited by the client: the load is too small",
        meaning="The engine is idle for much of the time: requests come too slowly to find what limits it.",
        signals=(
            "the engine has no request for much of the time",
            "nothing waits",
            "or: requests take much longer at the client than at the server, whose front process idles",
        ),
        neighbours=(
            ("decode_memory_bandwidth", "there a request is always under way, if only one at a time"),
            ("api_server", "there the server's front process is busy"),
        ),
        advice=(
            "Send more: cluster bench --concurrency {concurrency} (or a higher --rate), then ask again.",
            "If requests are slow at the client alone, look at the client's machine and its way to the server.",
        ),
        fault=False,
        tried=LAB,
    ),
    BottleneckClass(
        name="weight_loading",
        title="Weight loading or storage at start",
        meaning="The engine is not serving yet, or not fully: it reads weights, and storage or network sets the pace.",
        signals=(
            "processes of the engine wait for storage much of the time while the engine does not serve",
            "or: the node reads from its disk near the disk's ceiling while the engine does not serve",
        ),
        neighbours=(
            ("client_limited", "there nothing is read either"),
            ("balanced", "a start from a warm cache: it computes, and hardly waits for what it reads"),
            ("memory_capacity", "there the reads go on while the engine serves"),
        ),
        advice=(
            "Keep the weights on the node's own disk, or in fewer bits; the second start reads from the page cache.",
            "Compare with what the disk can do: cluster probe --only nodes",
            "Look again while it lasts, or once it serves: cluster bottleneck --start",
        ),
        fault=False,
        tried=LAB,
    ),
    BottleneckClass(
        name="balanced",
        title="Balanced: no single bottleneck",
        meaning="Two or more resources take about the same share: mending one alone gains little.",
        at_start="Storage does not hold the start back: its own work takes the time.",
        signals=(
            "the two largest causes are within the error of each other",
            "or: an engine starts, and its processes compute and hardly wait for storage",
        ),
        neighbours=(("inconclusive", "there the measurements do not tell; here they do, and the shares are equal"),),
        advice=(
            "Mend the first two together, or find out which one counts by slowing each a little while the load runs: "
            "cluster bottleneck --causal",
        ),
        fault=False,
        tried=LAB,
    ),
    BottleneckClass(
        name="inconclusive",
        title="Inconclusive",
        meaning="The measurements do not carry a verdict; what they do carry is in the evidence.",
        signals=("measurements are missing, contradict each other, or leave most of the time unexplained",),
        neighbours=(("balanced", "there the measurements are good and the shares about equal"),),
        advice=(
            "Where it is between two, slowing each a little while the load runs tells: cluster bottleneck --causal",
            "Record a longer run: cluster bench --requests 32",
            "See which part does not report: cluster status",
        ),
        fault=False,
        tried=LAB,
    ),
)
