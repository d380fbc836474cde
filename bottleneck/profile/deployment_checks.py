"""Check that a deployment can run: ranks, divisibility, server settings, memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from bottleneck.performance.memory import RankMemory, rank_memory
from bottleneck.performance.server_limits import Limits
from bottleneck.profile.capability_checks import accelerator_problems, capability_problems
from bottleneck.profile.engine_checks import engine_problems, kind_problems
from bottleneck.profile.rank_placement import card_count, placement_problem, places, taken_cards
from bottleneck.profile.sections import unknown
from bottleneck.profile.types import Accelerator, Deployment, EngineSpec, Model, Node, Shape, Workload
from bottleneck.profile.yaml_lines import Location, Problem
from bottleneck.units import size_text


@dataclass(frozen=True)
class NodeFit:
    """One node's memory under a deployment.

    Attributes
    ----------
    memory
        What the rank holds that has the least room.
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
        """Return whether the rank has room."""
        return self.memory.total_bytes <= self.limit_bytes


def node_fits(
    deployment: Deployment, model: Model, nodes: Mapping[str, Node], engines: Mapping[str, EngineSpec]
) -> list[NodeFit]:
    """Return the memory arithmetic of every node's tightest rank; the deployment must be placeable.

    Parameters
    ----------
    deployment
        As it is written in the profile.
    model
        The model that is served.
    nodes
        Node name to node.
    engines
        Kind of accelerator to engine.
    """
    ranks = _rank_fits(deployment, model, nodes, engines)
    return [max(each, key=lambda fit: fit.memory.total_bytes / fit.limit_bytes) for each in ranks]


def _rank_fits(
    deployment: Deployment, model: Model, nodes: Mapping[str, Node], engines: Mapping[str, EngineSpec]
) -> Iterator[list[NodeFit]]:
    """Yield the arithmetic of each node's ranks; those that are alike once."""
    shape, weights = model.model_shape(), model.weight_format()
    for place in places(deployment):
        node = nodes[place.node]
        engine = engines[deployment.engine or node.accelerator.kind]
        cards = taken_cards(deployment, place, node)
        stages = [rank // deployment.tensor_parallel for rank in place.ranks]
        fits = []
        # Ranks of one stage on cards that are alike need the same.
        for stage, card in dict.fromkeys(zip(stages, cards, strict=True)):
            memory = rank_memory(
                shape,
                weights,
                _limits(deployment, model, card, engine),
                deployment.split,
                stage,
                runtime_bytes=engine.runtime_memory_bytes,
                block_tokens=engine.kv_block_tokens,
                kv_value_bytes=engine.cached_value_bytes(model.kv_value_bytes, model.shape.head_dim),
            )
            fits.append(NodeFit(place.node, place.replica, memory, *_limit(deployment, card, node, engine)))
        yield fits


def _limits(deployment: Deployment, model: Model, card: Accelerator, engine: EngineSpec) -> Limits:
    """Return the settings that memory depends on; an engine that has room for every sequence at once sets blocks."""
    limits = deployment.limits(model.shape, card, engine.host_processor)
    if not engine.interface.reserves_context:
        return limits
    tokens = limits.sequence_tokens * (deployment.server.max_num_seqs or 1)
    return replace(limits, cache_blocks=-(-tokens // engine.kv_block_tokens))


def _limit(deployment: Deployment, card: Accelerator, node: Node, engine: EngineSpec) -> tuple[int, str]:
    server = deployment.server
    unlike = node.further_accelerators and card.model
    whole = f"the memory of its {card.model if unlike else card.kind} accelerator"
    # With the cache's size given, vLLM does not look at the share; on a CPU the share is
    # of the machine's memory, which a lab node does not own.
    # An engine that knows no share takes what it needs.
    knows_share = "gpu_memory_utilization" in engine.settings()
    if server.kv_cache_memory_bytes or shares_host_memory(card, engine) or not knows_share:
        return card.memory_bytes, whole
    share = server.gpu_memory_utilization
    text = f"gpu_memory_utilization {share:g} of {size_text(card.memory_bytes)}, {whole}"
    return int(card.memory_bytes * share), text


def shares_host_memory(card: Accelerator, engine: EngineSpec) -> bool:
    """Return whether an accelerator's memory is part of its node's main memory.

    Parameters
    ----------
    card : Accelerator
        Accelerator of a node; what it says itself comes first.
    engine : EngineSpec
        Engine of that kind of accelerator, which says what is usual.
    """
    return engine.shares_host_memory if card.shares_host_memory is None else card.shares_host_memory


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
    deployment : Deployment
        The deployment, sound by itself.
    model : Model
        The model that it serves.
    nodes : Mapping[str, Node]
        The deployment's nodes, all of them known.
    engines : Mapping[str, EngineSpec]
        Kind of accelerator -> its engine, of all kinds that the nodes have.
    workload : Workload or None
        The load, whose requests must fit; None where it is not sound.
    """
    chosen = list(_cards(deployment, nodes))
    yield from chosen
    problem = placement_problem(deployment, [card_count(deployment, name, node) for name, node in nodes.items()])
    if problem:
        yield Problem(("nodes",), problem)
    shape = model.shape
    splits = list(_splits(deployment, model))
    yield from splits
    yield from _server(deployment, shape, workload)
    used = {node.accelerator.kind: deployment.engine or node.accelerator.kind for node in nodes.values()}
    known = set(used.values()) <= set(engines)
    if deployment.engine is not None and engines and not known:
        yield Problem(("engine",), unknown(deployment.engine, "entry of the engine map", engines))
    refused: list[Problem] = []
    if known:
        entries = {kind: engines[name] for kind, name in used.items()}
        for engine in {each.kind: each for each in entries.values()}.values():
            refused += capability_problems(deployment, model, engine)
        if deployment.engine is not None:
            refused += accelerator_problems(nodes, engines[deployment.engine], engines)
        yield from refused
        yield from engine_problems(deployment, nodes, entries)
    if problem or chosen or splits or refused or not known:
        return
    if deployment.engine is None:
        yield from kind_problems(deployment, nodes)
    for fit in node_fits(deployment, model, nodes, engines):
        if not fit.fits:
            text = (
                f"does not fit {fit.node}: {fit.memory.arithmetic()}; expected at most"
                f" {size_text(fit.limit_bytes)}, {fit.limit_text}"
            )
            yield Problem((), text)
    for fits in _rank_fits(deployment, model, nodes, engines):
        # Of unlike stages the one with more layers has room for fewer tokens.
        yield from _cache_length(deployment, model, min(fits, key=lambda fit: fit.memory.kv_cache_tokens))


def _cards(deployment: Deployment, nodes: Mapping[str, Node]) -> Iterator[Problem]:
    """Yield where a deployment's choice of accelerators is not one of its nodes'."""
    for name, chosen in deployment.cards.items():
        at: Location = ("cards", name)
        if name not in nodes:
            yield Problem(at, unknown(name, "node of this deployment", nodes))
            continue
        there = len(nodes[name].cards)
        if not chosen or max(chosen) >= there or len(set(chosen)) < len(chosen):
            text = f"{', '.join(map(str, chosen)) or 'none'}; expected some of 0 to {there - 1}, each once"
            yield Problem(at, text)


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
    layers = deployment.layers
    if layers and (len(layers), sum(layers)) != (deployment.pipeline_parallel, len(shape.layers)):
        text = f"{' + '.join(map(str, layers))} = {sum(layers)} layers in {len(layers)} stages"
        expected = f"the model's {len(shape.layers)} layers in {deployment.pipeline_parallel} stages, pipeline_parallel"
        yield Problem(("layers",), f"{text}; expected {expected}")
    elif deployment.pipeline_parallel > len(shape.layers):
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
