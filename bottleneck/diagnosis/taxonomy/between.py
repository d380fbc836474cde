"""Bottlenecks between nodes: bytes, messages, the schedule of pipeline stages."""

from __future__ import annotations

from bottleneck.diagnosis.taxonomy.kind import LAB, BottleneckClass

BETWEEN = (
    BottleneckClass(
        name="link_bandwidth",
        title="Bandwidth of link {link}",
        meaning="Bytes that the nodes must exchange in every step take longer over the link than the arithmetic.",
        signals=(
            "bytes sent divided by the link's ceiling are the largest share of the ledger",
            "the link runs near its ceiling while it is active",
            "workers sleep while the engine is busy; it shows in prefill first, whose messages are large",
        ),
        neighbours=(
            ("link_latency", "there messages are small and the link is nearly empty: it shows in decode first"),
            ("prefill_compute", "there no worker sleeps long in prefill"),
            ("straggler", "there only the fast node sleeps"),
        ),
        advice=(
            "Use a faster link for the deployment, or pipeline instead of tensor parallel: it sends less.",
            "If the link was slowed on purpose: cluster lab throttle {link} --restore",
            "Measure the link again: cluster probe --only links",
        ),
        fault=True,
        tried=LAB,
    ),
    BottleneckClass(
        name="link_latency",
        title="Latency of messages over link {link}",
        meaning="Each step exchanges many small messages, one after the other; their number times their latency rules.",
        signals=(
            "messages of a step times the measured time of a collective of that size are the largest share of decode",
            "the link is nearly empty: bytes / ceiling are small",
            "workers sleep in short naps; on a busy machine the wait for a core after each message is part of it",
        ),
        neighbours=(
            ("link_bandwidth", "there the link is full, in prefill first"),
            ("host_overhead", "there a single node without messages has the same cost"),
            ("straggler", "there one node's own evidence says that it comes late"),
        ),
        advice=(
            "Send fewer messages: pipeline instead of tensor parallel, or replicas where the model fits on a node.",
            "Or let each message serve more tokens: a larger batch (cluster bench --concurrency {concurrency}).",
            "Or make a message cheaper: a direct link, interrupts without delay, cores of their own for the workers.",
            "Measure it again: cluster probe --only allreduce",
        ),
        fault=False,
        tried=LAB,
    ),
    BottleneckClass(
        name="pipeline_bubble",
        title="Pipeline bubble",
        meaning="The stages of a pipeline take turns and there are too few batches in flight to keep all of them busy.",
        signals=(
            "pipeline parallel, and workers of every stage sleep a large part of the busy time",
            "fewer sequences run than twice the stages",
            "the link between the stages is nearly empty",
        ),
        neighbours=(
            ("straggler", "there one stage is always busy and the others wait for it"),
            ("link_latency", "there the naps are as short as a message, and as many"),
            ("client_limited", "there no request is under way at all for part of the time"),
        ),
        advice=(
            "Keep more sequences in flight: cluster bench --concurrency {concurrency}.",
            "For one sequence at a time a pipeline cannot be faster than its stages in a row: use tensor parallel "
            "if the link's latency allows it.",
        ),
        fault=False,
        tried=LAB,
    ),
)
