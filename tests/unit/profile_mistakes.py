"""Mistakes in a profile, one each, and what is to be said about them.

Name of the mistake -> (text of embedded.yaml and what replaces it, text on the line that
the message names or None, the message after file and line).
"""

Mistake = tuple[tuple[str, str], str | None, str]

SINGLE_PROBLEMS: dict[str, Mistake] = {
    "unknown key": (
        ("rate: 8 Gbit/s ", "rate: 8 Gbit/s\n    ratio: 1 "),
        "ratio: 1",
        "networks.direct.ratio: unknown key (did you mean rate?); expected one of kind, subnet, rate, mtu, medium",
    ),
    "misspelt key": (
        ('mac: "02:77:00:00:00:10", address', 'mac: "02:77:00:00:00:10", adress'),
        "adress",
        "nodes.node0.links.ethernet.adress: unknown key (did you mean address?);"
        " expected one of interface, mac, address, peers, rdma",
    ),
    "missing address": (
        (", address: 10.77.0.10}", "}"),
        'ethernet: {interface: eth0, mac: "02:77:00:00:00:10"',
        "nodes.node0.links.ethernet.address: nothing; expected a value (its address, inside the network's subnet)",
    ),
    "duplicate MAC": (
        ("02:77:00:00:00:11", "02:77:00:00:00:10"),
        "address: 10.77.0.11",
        "nodes.node1.links.ethernet.mac: 02:77:00:00:00:10, as in nodes.node0.links.ethernet.mac;"
        " expected a MAC address of its own",
    ),
    "duplicate address": (
        ("10.77.0.11", "10.77.0.10"),
        "02:77:00:00:00:11",
        "nodes.node1.links.ethernet.address: 10.77.0.10, as in nodes.node0.links.ethernet.address;"
        " expected an address of its own",
    ),
    "address of the control node": (
        ("10.77.0.11", "10.77.0.1"),
        "02:77:00:00:00:11",
        "nodes.node1.links.ethernet.address: 10.77.0.1, as in control.address; expected an address of its own",
    ),
    "duplicate host name": (
        ("hostname: node1", "hostname: Node0"),
        "hostname: Node0",
        "nodes.node1.hostname: node0, as in nodes.node0.hostname; expected a host name of its own",
    ),
    "host name that is no DNS label": (
        ("hostname: control", "hostname: control_0_1"),
        "control_0_1",
        "control.hostname: 'control_0_1'; expected a DNS label of letters, digits and inner hyphens,"
        " such as control-0-1; the name people use may stand beside it as `label`",
    ),
    "ranks that do not divide": (
        (
            "tensor_parallel: 1\n    pipeline_parallel: 1\n    replicas: 2",
            "tensor_parallel: 1\n    pipeline_parallel: 3\n    replicas: 1",
        ),
        None,
        "deployments.replicas.nodes: tensor_parallel 1 x pipeline_parallel 3 x replicas 1 = 3 ranks over 2 nodes with"
        " 1 accelerator each; expected the same number of ranks on every node",
    ),
    "too many ranks": (
        ("tensor_parallel: 2", "tensor_parallel: 4"),
        None,
        "deployments.tp2.nodes: tensor_parallel 4 x pipeline_parallel 1 x replicas 1 = 4 ranks over 2 nodes with"
        " 1 accelerator each; expected at most one rank for each accelerator",
    ),
    "replicas that share nodes": (
        ("replicas: 2", "replicas: 4"),
        None,
        "deployments.replicas.nodes: tensor_parallel 1 x pipeline_parallel 1 x replicas 4 = 4 ranks over 2 nodes with"
        " 1 accelerator each; expected whole nodes for every replica",
    ),
    "heads that do not divide": (
        ("attention_heads: 16\n    key_value_heads: 4", "attention_heads: 15\n    key_value_heads: 5"),
        "tensor_parallel: 2",
        "deployments.tp2.tensor_parallel: 2; expected a divisor of the model's attention_heads 15",
    ),
    "key and value heads that do not divide": (
        ("attention_heads: 16\n    key_value_heads: 4", "attention_heads: 12\n    key_value_heads: 3"),
        "tensor_parallel: 2",
        "deployments.tp2.tensor_parallel: 2; expected a divisor or a multiple of the model's key_value_heads 3",
    ),
    "groups that a rank would break": (
        ("intermediate_size: 2816", "intermediate_size: 2688"),
        "tensor_parallel: 2",
        "deployments.tp2.tensor_parallel: 2, which leaves 1344 of intermediate_size 2688 on a rank;"
        " expected a multiple of group_size 128",
    ),
    "more stages than layers": (
        ("layers: 8", "layers: 1"),
        "pipeline_parallel: 2",
        "deployments.pp2.pipeline_parallel: 2 stages; expected at most one for each of 1 layers",
    ),
    "unknown network of a link": (
        (
            '      direct: {interface: usb4, mac: "02:77:00:00:01:10"',
            '      dirct: {interface: usb4, mac: "02:77:00:00:01:10"',
        ),
        "dirct",
        "nodes.node0.links.dirct: unknown network dirct (did you mean direct?); expected one of direct, ethernet",
    ),
    "unknown network of the control node": (
        ("  network: ethernet", "  network: internet"),
        "internet",
        "control.network: unknown network internet (did you mean ethernet?); expected one of direct, ethernet",
    ),
    "unknown link of a deployment": (
        ("link: direct", "link: drect"),
        "drect",
        "deployments.tp2.link: unknown network drect (did you mean direct?); expected one of direct, ethernet",
    ),
    "unknown node": (
        ("nodes: [node0, node1]", "nodes: [node0, node7]"),
        "node7",
        "deployments.tp2.nodes.1: unknown node node7 (did you mean node1?); expected one of node0, node1",
    ),
    "a node twice": (
        ("nodes: [node0, node1]", "nodes: [node0, node0]"),
        "[node0, node0]",
        "deployments.tp2.nodes.1: node0 for the second time; expected each node once",
    ),
    "unknown default deployment": (
        ("default_deployment: tp2", "default_deployment: tp3"),
        "default_deployment",
        "default_deployment: unknown deployment tp3 (did you mean tp2?); expected one of genai, llamacpp, pp2,"
        " replicas, single, tp2",
    ),
    "unknown kind of accelerator": (
        ("{kind: cpu", "{kind: gpu"),
        "kind: gpu",
        "nodes.node0.accelerator.kind: unknown kind of accelerator gpu (did you mean xpu?);"
        " expected one of cpu, cuda, cuda-lab, npu, rocm, xpu",
    ),
    "address outside its subnet": (
        ("address: 10.77.1.10", "address: 10.78.1.10"),
        "10.78.1.10",
        "nodes.node0.links.direct.address: 10.78.1.10; expected an address in 10.77.1.0/24, the subnet of direct",
    ),
    "control node outside the subnet": (
        ("address: 10.77.0.1\n", "address: 10.77.7.1\n"),
        "10.77.7.1",
        "control.address: 10.77.7.1; expected an address in 10.77.0.0/24, the subnet of ethernet",
    ),
    "broadcast address": (
        ("10.77.0.11", "10.77.0.255"),
        "10.77.0.255",
        "nodes.node1.links.ethernet.address: 10.77.0.255, the broadcast address of ethernet; expected a host's address",
    ),
    "no address at all": (
        ("address: 10.77.1.10", "address: ten"),
        "address: ten",
        "nodes.node0.links.direct.address: 'ten'; expected an IPv4 address such as 10.77.0.10",
    ),
    "subnet with host bits": (
        ("subnet: 10.77.1.0/24", "subnet: 10.77.1.4/24"),
        "10.77.1.4/24",
        "networks.direct.subnet: '10.77.1.4/24'; expected an IPv4 subnet of at most 30 bits such as 10.77.1.0/24",
    ),
    "group MAC": (
        ("02:77:00:00:01:10", "03:77:00:00:01:10"),
        "03:77",
        "nodes.node0.links.direct.mac: '03:77:00:00:01:10'; expected the MAC address of one interface,"
        " not of a group or of none",
    ),
    "bad unit": (
        ("memory: 5 GiB", "memory: 5 gigabytes"),
        "5 gigabytes",
        "nodes.node0.memory: unit 'gigabytes'; expected a size such as 5 GiB"
        " (units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)",
    ),
    "no unit": (
        ("rate: 10 Hz", "rate: 10"),
        "rate: 10",
        "sampler.rate: 10, a number without a unit; expected a frequency such as 10 Hz (units: Hz, kHz, MHz, GHz)",
    ),
    "number for text": (
        ('version: "1.0"', "version: 1.0"),
        "version",
        "version: 1.0, a number or true/false: put it in quotes; expected text",
    ),
    "text for a number": (
        ("cores: 1", "cores: one"),
        "cores: one",
        "nodes.node0.cores: 'one'; expected a whole number",
    ),
    "zero cores": (("cores: 1", "cores: 0"), "cores: 0", "nodes.node0.cores: 0; expected at least 1"),
    "other schema": (("schema: 1", "schema: 2"), "schema", "schema: 2; expected 1"),
    "other kind": (("kind: lab", "kind: toy"), "kind: toy", "kind: 'toy'; expected 'lab' or 'hardware'"),
    "node named control": (
        ("  node1:\n", "  control:\n"),
        "  control:",
        "nodes.control: control; expected another name, this one means the control node",
    ),
    "interface twice": (
        ("direct: {interface: usb4", "direct: {interface: eth0"),
        "02:77:00:00:01:10",
        "nodes.node0.links.direct.interface: eth0 is also the interface on ethernet; expected another",
    ),
    "sequences longer than the model's": (
        ("context_length: 2048", "context_length: 1024"),
        "max_model_len",
        "deployments.tp2.server.max_model_len: 2048; expected at most the model's context_length 1024",
    ),
    "workload longer than a sequence": (
        ("input_tokens: 256", "input_tokens: 2040"),
        "max_model_len",
        "deployments.tp2.server.max_model_len: 2048; expected at least 2040 + 32,"
        " the workload's input_tokens and output_tokens",
    ),
    "sent more often than there is a batch": (
        ("send_interval: 5 s", "send_interval: 500 ms"),
        "send_interval",
        "sampler.send_interval: 0.5 s is less than a batch of 1 s; expected at least sampler.batch_interval",
    ),
    "KV cache without room for one sequence": (
        ("kv_cache_memory: 256 MiB", "kv_cache_memory: 6 MiB"),
        "kv_cache_memory",
        "deployments.tp2.server.kv_cache_memory: room for 1536 tokens of 4096 bytes on node0;"
        " expected at least max_model_len 2048 tokens, 8 MiB",
    ),
    "accelerator larger than its node": (
        ("accelerator: {kind: cpu, count: 1, memory: 3 GiB}", "accelerator: {kind: cpu, count: 1, memory: 6 GiB}"),
        "memory: 6 GiB",
        "nodes.node0.accelerator.memory: 1 x 6 GiB, part of main memory; expected at most 5 GiB, the memory of node0",
    ),
    "zero points, which generation does not make": (
        ("group_size: 128", "group_size: 128, symmetric: false"),
        "symmetric",
        "model.quantization.symmetric: false; expected true: of source generate no zero points are made",
    ),
}
