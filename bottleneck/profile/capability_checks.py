"""Check that a deployment asks nothing of its engine that the engine cannot do."""

from collections.abc import Collection, Iterator, Mapping

from bottleneck.profile.types import Deployment, EngineSpec, Model, Node
from bottleneck.profile.yaml_lines import Problem

# A way to spread -> the key of a deployment that asks for it.
_WAYS = {
    "tensor_parallel": ({"tensor"}, "shares no layer between ranks"),
    "pipeline_parallel": ({"pipeline", "layers"}, "spreads no model by its layers"),
    "replicas": ({"replicas"}, "serves no copies side by side"),
}


def capability_problems(deployment: Deployment, model: Model, engine: EngineSpec) -> Iterator[Problem]:
    """Yield what the engine cannot do of what a deployment asks for, located within the deployment.

    Parameters
    ----------
    deployment
        As it is written in the profile.
    model
        The model that is served.
    engine
        The entry of the engine map.
    """
    interface = engine.interface
    title = interface.title
    if not interface.roles:
        yield Problem(("engine",), f"{title}, which nothing starts yet; expected an engine with roles")
        return
    if not engine.serves:
        yield Problem(("engine",), f"{engine.kind}, which has tools for models and no server; expected one that serves")
        return
    spreads = set(interface.spreads)
    for key, (ways, lack) in _WAYS.items():
        count = getattr(deployment, key)
        if count > 1 and not ways & spreads:
            yield Problem((key,), f"{count}, but {title} {lack}; expected 1 (it has {', '.join(interface.spreads)})")
    if len(deployment.nodes) > deployment.replicas and "follower" not in interface.roles:
        text = f"{len(deployment.nodes)} nodes for {deployment.replicas} replicas, but {title} runs on one node each"
        yield Problem(("nodes",), f"{text}; expected as many replicas as nodes")
    bits = str(model.quantization.bits)
    if bits not in interface.weights:
        expected = " or ".join(interface.weights)
        yield Problem((), f"{title} takes no weights of {bits} bits; expected quantization.bits {expected}")
    if model.source == "dummy" and not interface.makes_weights_up:
        yield Problem((), f"{title} makes up no weights by itself; expected another model.source than dummy")
    yield from _settings(deployment, engine)


def _settings(deployment: Deployment, engine: EngineSpec) -> Iterator[Problem]:
    """Yield settings that were written down and that the engine has no words for."""
    taken = engine.settings()
    fields = type(deployment.server).model_fields
    for name in sorted(deployment.server.model_fields_set - {"extra_arguments"}):
        value = getattr(deployment.server, name)
        if name not in taken and value is not None:
            key = fields[name].alias or name
            text = f"{value}, but {engine.interface.title} has no such setting; expected it left out"
            yield Problem(("server", key), text)


def accelerator_problems(nodes: Mapping[str, Node], engine: EngineSpec, known: Collection[str]) -> Iterator[Problem]:
    """Yield nodes on whose accelerator the engine that a deployment names does not run; unknown kinds say so alone.

    Parameters
    ----------
    nodes
        Node name to node.
    engine
        The entry of the engine map.
    known
        Kinds of accelerators that the engine map has.
    """
    for name, node in nodes.items():
        kind = node.accelerator.kind
        if kind in known and kind not in engine.kinds:
            expected = ", ".join(engine.kinds)
            yield Problem(("engine",), f"{engine.kind}, but {name} has a {kind}; expected accelerators {expected}")
