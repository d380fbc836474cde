"""Check that a deployment can run: ranks, divisibility, server settings, memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bottleneck.performance.memory import RankMemory, rank_memory
from bottleneck.profile.rank_placement import placement_problem, places
from bottleneck.profile.types import Deployment, EngineSpec, Model, Node, Shape, Workload
from bottleneck.profile.yaml_lines import Location, Problem
from bottleneck.units import size_text


@dataclass(frozen=True)
class NodeFit:
    """One node's memory under a deployment.

    Attributes
    ----------
    memory
        What the largest of its ranks holds.
    limit_bytes, limit_text
        What that rank may take, and why.
    """

    node: str
    replica: int
    memory: RankMemory
    limit_bytes: int
    limit_text: str

    @property
    def fits(self) -> bool:
        """Whether the rank has room."""
        return self.memory.total_bytes <= self.limit_bytes


def node_fits(
    deployment: Deployment, model: Model, nodes: Mapping[str, Node], engines: Mapping[str, EngineSpec]
) -> list[NodeFit]:
    """Return the memory arithmetic of every node; the deployment must be placeable."""
    shape, weights = model.model_shape(), model.weight_format()
    found = []
    for place in places(deployment):
        accelerator = nodes[place.node].accelerator
        engine = engines[accelerator.kind]
        memories = [
            rank_memory(
                shape,
                weights,
                deployment.limits(model.shape, accelerator, accelerator.kind == "cpu"),
                deployment.split,
                stage,
                runtime_bytes=engine.runtime_memory_bytes,
                block_tokens=engine.kv_block_tokens,
                kv_value_bytes=model.kv_value_bytes,
            )
            for stage in place.stages(deployment.tensor_parallel)
        ]
        limit, text = _limit(deployment, accelerator.memory_bytes, accelerator.kind, engine)
        largest = max(memories, key=lambda memory: memory.total_bytes)
        found.append(NodeFit(place.node, place.replica, largest, limit, text))
    return found


def _limit(deployment: Deployment, memory_bytes: int, kind: str, engine: EngineSpec) -> tuple[int, str]:
    server = deployment.server
    whole = f"the memory of its {kind} accelerator"
    # With the cache's size given, vLLM does not look at the share; on a CPU the share is
    # of the machine's memory, which a lab node does not own.
    if server.kv_cache_memory_bytes or engine.shares_host_memory:
        return memory_bytes, whole
    share = server.gpu_memory_utilization
    return int(memory_bytes * share), f"gpu_memory_utilization {share:g} of {size_text(memory_bytes)}, {whole}"


def deployment_problems(
    deployment: Deployment,
    model: Model,
    nodes: Mapping[str, Node],
    engines: Mapping[str, EngineSpec],
    workload: Workload | None,
) -> Iterator[Problem]:
    """Yield what keeps a deployment from running, located within the deployment.

    Parameters
    ----------
    nodes
        The deployment's nodes, all of them known.
    """
    problem = placement_problem(deployment, [node.accelerator.count for node in nodes.values()])
    if problem:
        yield Problem(("nodes",), problem)
    shape = model.shape
    splits = list(_splits(deployment, model))
    yield from splits
    yield from _server(deployment, shape, workload)
    known = all(node.accelerator.kind in engines for node in nodes.values())
    kinds = sorted({node.accelerator.kind for node in nodes.values()})
    if known and not problem and len(kinds) > 1 and deployment.replicas < len(deployment.nodes):
        yield Problem(("nodes",), f"accelerators {', '.join(kinds)}; expected one kind within a replica")
    if problem or splits or not known:
        return
    for fit in node_fits(deployment, model, nodes, engines):
        if not fit.fits:
            text = (
                f"does not fit {fit.node}: {fit.memory.arithmetic()}; expected at most"
                f" {size_text(fit.limit_bytes)}, {fit.limit_text}"
            )
            yield Problem((), text)
        yield from _cache_length(deployment, model, fit)


def _splits(deployment: Deployment, model: Model) -> Iterator[Problem]:
    shape, tensor, weights = model.model_shape(), deployment.tensor_parallel, model.weight_format()
    names = {"o_proj": "attention_heads x head_dim", "down_proj": "intermediate_size"}
    keys = shape.key_value_heads
    if shape.attention_heads % tensor:
        text = f"{tensor}; expected a divisor of the model's attention_heads {shape.attention_heads}"
        yield Problem(("tensor_parallel",), text)
        return
    if max(keys, tensor) % min(keys, tensor):
        text = f"{tensor}; expected a divisor or a multiple of the model's key_value_heads {keys}"
        yield Problem(("tensor_parallel",), text)
        return
    # The projections that are split by input keep whole groups of weights on a rank.
    inputs = {
        (names.get(matrix.name, matrix.name), matrix.inputs, (matrix.stored or weights).group_size or 1)
        for layer in shape.layers
        for matrix in layer.matrices
        if matrix.by_inputs and not matrix.derived and matrix.multiples == (1, 1)
    }
    for key, width, group in sorted(inputs):
        if width % tensor:
            yield Problem(("tensor_parallel",), f"{tensor}; expected a divisor of the model's {key} {width}")
            return
        if width // tensor % group:
            text = f"{tensor}, which leaves {width // tensor} of {key} {width} on a rank"
            yield Problem(("tensor_parallel",), f"{text}; expected a multiple of group_size {group}")
    if deployment.pipeline_parallel > len(shape.layers):
        text = f"{deployment.pipeline_parallel} stages; expected at most one for each of {len(shape.layers)} layers"
        yield Problem(("pipeline_parallel",), text)


def _server(deployment: Deployment, shape: Shape, workload: Workload | None) -> Iterator[Problem]:
    server = deployment.server
    length = server.max_model_len or shape.context_length
    at: Location = ("server", "max_model_len")
    if length > shape.context_length:
        yield Problem(at, f"{length}; expected at most the model's context_length {shape.context_length}")
    if server.max_num_seqs and server.max_num_batched_tokens and server.max_num_batched_tokens < server.max_num_seqs:
        text = f"{server.max_num_batched_tokens}; expected at least max_num_seqs {server.max_num_seqs}"
        yield Problem(("server", "max_num_batched_tokens"), text)
    if workload and workload.input_tokens + workload.output_tokens > length:
        text = (
            f"{length}; expected at least {workload.input_tokens} + {workload.output_tokens},"
            " the workload's input_tokens and output_tokens"
        )
        yield Problem(at, text)


def _cache_length(deployment: Deployment, model: Model, fit: NodeFit) -> Iterator[Problem]:
    """VLLM refuses to start when one sequence of full length has no room."""
    server = deployment.server
    length = server.max_model_len or model.shape.context_length
    if fit.memory.kv_cache_tokens >= length:
        return
    key = "num_gpu_blocks_override" if server.num_gpu_blocks_override else "kv_cache_memory"
    per_token = round(fit.memory.sequence_bytes / length)
    text = (
        f"room for {fit.memory.kv_cache_tokens} tokens of {per_token} bytes on {fit.node};"
        f" expected at least max_model_len {length} tokens, {size_text(length * per_token)}"
    )
    yield Problem(("server", key), text)
