"""Bottlenecks inside the steps of the engine that are a node's own work: arithmetic, memory, host."""

from __future__ import annotations

from bottleneck.diagnosis.taxonomy.kind import LAB, RECORDED, SYNTHETIC, BottleneckClass

WORK = (
    BottleneckClass(
        name="prefill_compute",
        title="Prefill compute on {node}",
        meaning="Reading the prompts is what takes the time: their arithmetic runs as fast as the node can.",
        signals=(
            "most of the engine's busy time goes to steps with prompts in them",
            "the operations of those steps, divided by the node's matrix-multiply ceiling, are a large part of them",
            "requests that wait do so behind the prompts of others, not for a slot or for cache",
        ),
        neighbours=(
            ("decode_memory_bandwidth", "there the time goes to steps of decoding only: long answers, short prompts"),
            ("sequence_limit", "there arithmetic idles: more sequences would use it. Here it has no room left"),
            ("link_bandwidth", "there the workers sleep during prefill and the link is near its ceiling"),
        ),
        advice=(
            "Send less to read: shorter prompts, or let prompts that begin alike share their cache "
            "(prefix caching in the deployment's server settings).",
            "Or add arithmetic: more nodes in the deployment, or a model with fewer parameters.",
            "Compare with what the node can do at most: cluster probe --only nodes",
            "Confirm by slowing the node a little and watching the first token follow: "
            "cluster lab slow {node} --cores 0.8, then cluster lab slow {node} --restore",
        ),
        fault=False,
        tried=LAB,
    ),
    BottleneckClass(
        name="decode_memory_bandwidth",
        title="Decode: memory bandwidth and kernels of {node}",
        meaning="Every step of decoding reads all weights and the cache of all sequences; that read sets the pace.",
        signals=(
            "most of the engine's busy time goes to steps of decoding only",
            "bytes read in a step, divided by the node's memory ceiling, are a large part of the step, and more than "
            "its operations divided by the arithmetic ceiling",
            "requests do not wait for a slot or for cache",
        ),
        neighbours=(
            ("decode_compute", "there so many sequences decode together that arithmetic outlasts the read"),
            ("host_overhead", "there the step is many times the read: the accelerator waits for its host"),
            ("client_limited", "there steps are missing, not slow: the engine has no request for much of the time"),
        ),
        advice=(
            "Read less: fewer bits per weight, keys and values in fewer bits, shorter contexts.",
            "Share the read among more sequences at a time: cluster bench --concurrency {concurrency}",
            "Split the read: tensor parallel over more nodes, if the link's latency allows it.",
            "Compare with what the node can read at most: cluster probe --only nodes",
        ),
        fault=False,
        tried=RECORDED,
    ),
    BottleneckClass(
        name="decode_compute",
        title="Decode compute on {node}",
        meaning="So many sequences decode together, or the cores are so slow, that arithmetic outlasts the reads.",
        signals=(
            "most of the engine's busy time goes to steps of decoding only",
            "a step's operations, divided by the arithmetic ceiling, outlast its bytes divided by the memory ceiling",
        ),
        neighbours=(
            ("decode_memory_bandwidth", "there a larger batch costs next to nothing; here the step grows with it"),
            ("prefill_compute", "there prompts take the time"),
        ),
        advice=(
            "A larger batch gains nothing any more: add replicas or nodes instead.",
            "Compare with what the node can do at most: cluster probe --only nodes",
            "Confirm by slowing the node a little: "
            "cluster lab slow {node} --cores 0.8, then cluster lab slow {node} --restore",
        ),
        fault=False,
        tried=SYNTHETIC,
    ),
    BottleneckClass(
        name="host_overhead",
        title="Host overhead on {node}",
        meaning="Between the kernels the host is what takes time: scheduling a step, launching kernels, sampling.",
        signals=(
            "a step takes many times what its operations and bytes need, whatever the batch",
            "the engine runs without captured graphs (enforce_eager), or the model is tiny",
            "processes of the engine wait for a core, or the head's loop keeps its peers asleep",
        ),
        neighbours=(
            ("decode_memory_bandwidth", "there the step is near bytes / ceiling; no kernel is several times off"),
            ("link_latency", "there the time grows with the number of messages between nodes"),
            ("straggler", "there one node alone lacks CPU; here every node has its host's cost alike"),
        ),
        advice=(
            "End what else runs on the nodes' cores, if something does: cluster top shows each core.",
            "Let the engine capture graphs: no enforce_eager in the deployment's server settings, "
            "where the accelerator and the split allow it.",
            "Give the engine's processes cores of their own, and faster ones; more sequences per step share the cost.",
            "Look at the launch cost of this host: cluster probe --only nodes",
        ),
        fault=True,
        tried=LAB,
    ),
    BottleneckClass(
        name="straggler",
        title="Straggler {node}{kind}",
        meaning="One node is slower than its peers; in every collective the others wait for it.",
        signals=(
            "one node alone is throttled by a quota, waits for its cores, or has lower ceilings than its peers beyond "
            "their spread (arithmetic: a slow CPU; reads: slow memory)",
            "its peers' workers sleep while the engine is busy",
            "the collective itself says nothing: it makes all of them look slow",
        ),
        neighbours=(
            ("prefill_compute", "there every node is alike, and none sleeps long"),
            ("link_bandwidth", "there both ends sleep and the link is near its ceiling"),
            ("host_overhead", "there what is lacking is lacking on every node alike"),
        ),
        advice=(
            "Take away what holds {node} back (its CPU quota, other processes on its cores, heat), "
            "or give it a smaller part of the model.",
            "If the node was slowed on purpose: cluster lab slow {node} --restore",
            "Watch the nodes side by side: cluster top",
        ),
        fault=True,
        tried=LAB,
    ),
    BottleneckClass(
        name="thermal_throttling",
        title="Thermal or power throttling on {node}",
        meaning="The processor or accelerator lowers its own clock because it is too hot or at its power limit.",
        signals=(
            "the clock falls below its base under load, with the temperature or the power at the limit",
            "the throttle counters of the processor or accelerator grow during the run",
        ),
        neighbours=(
            ("straggler", "there one node is slow for any reason; here the hardware itself says why, on one or all"),
            ("prefill_compute", "there the clock is what it was when the ceilings were measured"),
        ),
        advice=(
            "Cool {node} (fans, dust, air), or raise its power limit if the supply allows; then probe again: "
            "cluster probe --only nodes",
            "Or live with the clock it can hold: a lower fixed limit is steadier than one that saws.",
        ),
        fault=True,
        tried=SYNTHETIC,
    ),
    BottleneckClass(
        name="numa_pcie",
        title="NUMA or PCIe on {node}",
        meaning="Data reaches the cores or the accelerator over a slow way inside the node: remote memory, few lanes.",
        signals=(
            "much of the workers' memory is on another NUMA node than their cores",
            "the accelerator's host link runs at fewer lanes or a lower generation than it could",
            "copies between host and accelerator take a large part of the steps",
        ),
        neighbours=(
            ("decode_memory_bandwidth", "there the local memory itself is at its ceiling"),
            ("host_overhead", "there the host computes; here it waits for its own memory"),
        ),
        advice=(
            "Bind the worker of {node} to the cores beside its memory or accelerator.",
            "Seat the accelerator in a slot with all its lanes; the firmware's setting for them counts too.",
        ),
        fault=True,
        tried=SYNTHETIC,
    ),
)
