"""List the deployments that a profile's machines and engines could have: its own, and those that it does not write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bottleneck.profile.types import Deployment, EngineSpec, Model, Network, Node, Profile, Server


@dataclass(frozen=True)
class Candidate:
    """A deployment of a model by an engine, in the profile or not.

    Attributes
    ----------
    name : str
        Its name in the profile; else one made of what it is.
    written : bool
        Whether the profile has it.
    own_weights : bool
        Whether the model is stored as the profile says.
    """

    name: str
    written: bool
    engine: EngineSpec
    deployment: Deployment
    model: Model
    own_weights: bool = True

    @property
    def weights(self) -> str:
        """The engine's own name for weights of the model's bits; empty where it takes none such."""
        names = {int(bits): name for bits, name in self.engine.interface.weights.items()}
        return names.get(self.model.quantization.bits, "")

    @property
    def spread(self) -> str:
        """The spread of the model, for people."""
        deployment, layers = self.deployment, "layers" in self.engine.interface.spreads
        inside = []
        if deployment.tensor_parallel > 1:
            inside.append(f"every layer on {deployment.tensor_parallel}")
        if deployment.pipeline_parallel > 1:
            shares = "+".join(map(str, deployment.layers)) or str(deployment.pipeline_parallel)
            inside.append(f"stages {shares}" + (" by remote calls" if layers else ""))
        over = f" over {deployment.link}" if len(deployment.nodes) > deployment.replicas else ""
        text = ", ".join(inside) + over
        if deployment.replicas == 1:
            return text or "one accelerator"
        return f"{deployment.replicas} copies" + (f", each {text}" if text else "")


def candidates(profile: Profile, link: str | None = None) -> list[Candidate]:
    """Return every deployment to weigh: engines x spreads x forms of the weights, the profile's own first.

    Parameters
    ----------
    profile
        The cluster's.
    link
        Network between the nodes of those that the profile does not write; the fastest one without it.
    """
    known = _known_engines(profile)
    found = [
        Candidate(name, True, known[deployment.engine or _kind(profile, deployment)], deployment, profile.model)
        for name, deployment in profile.deployments.items()
        if (deployment.engine or _kind(profile, deployment)) in known
    ]
    seen = {_key(each) for each in found}
    for names in _alike(profile).values():
        kind = profile.nodes[names[0]].accelerator.kind
        for engine in (each for each in known.values() if kind in each.kinds and each.serves):
            for deployment in _spreads(profile, engine, names, link):
                made = Candidate(_name(engine, deployment), False, engine, deployment, profile.model)
                if _key(made) not in seen:
                    seen.add(_key(made))
                    found.append(made)
    return [variant for each in found for variant in (each, *_other_weights(each))]


def _known_engines(profile: Profile) -> dict[str, EngineSpec]:
    kinds = {node.accelerator.kind for node in profile.nodes.values()}
    return {name: each for name, each in profile.engines.items() if kinds & set(each.kinds)}


def _kind(profile: Profile, deployment: Deployment) -> str:
    return profile.nodes[deployment.nodes[0]].accelerator.kind


def _key(candidate: Candidate) -> tuple[object, ...]:
    each = candidate.deployment
    sizes = each.tensor_parallel, each.pipeline_parallel, each.replicas
    # Another way to install an engine for the same device is no other deployment.
    engine = candidate.engine.interface.name, candidate.engine.device
    return engine, len(each.nodes), *sizes, each.link if len(each.nodes) > each.replicas else ""


def _alike(profile: Profile) -> dict[str, list[str]]:
    """Return the nodes by kind of accelerator: ranks talk through one library, and that is of one kind."""
    found: dict[str, list[str]] = {}
    for name, node in profile.nodes.items():
        found.setdefault(node.accelerator.kind, []).append(name)
    return found


def _spreads(profile: Profile, engine: EngineSpec, names: list[str], link: str | None) -> Iterator[Deployment]:
    cards = min(len(profile.nodes[name].cards) for name in names)
    groups = [(names[:1], 1)]
    groups += [(names, copies) for copies in range(1, len(names) + 1) if len(names) % copies == 0 and len(names) > 1]
    for chosen, copies in groups:
        nodes = len(chosen) // copies
        for inside in dict.fromkeys((1, cards)):
            ranks = nodes * inside
            splits = [(ranks, 1), (1, ranks)]
            if nodes > 1 and inside > 1:
                splits.append((inside, nodes))
            for tensor, pipeline in dict.fromkeys(splits):
                yield Deployment(
                    nodes=chosen,
                    tensor_parallel=tensor,
                    pipeline_parallel=pipeline,
                    replicas=copies,
                    link=link or _fastest(profile.networks, [profile.nodes[name] for name in chosen]),
                    engine=None if engine.kind == profile.nodes[names[0]].accelerator.kind else engine.kind,
                    server=_server(profile, engine, len(chosen)),
                )


def _fastest(networks: dict[str, Network], nodes: Sequence[Node]) -> str:
    common = [name for name in networks if all(name in node.links for node in nodes)]
    return max(common, key=lambda name: networks[name].rate_bytes_per_second)


def _server(profile: Profile, engine: EngineSpec, nodes: int) -> Server:
    """Return settings for what the profile does not write: those of a deployment near it that the engine has."""
    written = [each for each in profile.deployments.values() if profile.engine_for(each, each.nodes[0]) is engine]
    written.sort(key=lambda each: len(each.nodes) != nodes)
    model = [*written, profile.deployments[profile.default_deployment]][0].server
    kept = model.model_fields_set & engine.settings()
    fields = {name: Server.model_fields[name].alias or name for name in kept}
    # Checked values: checking them again would want their units.
    return Server.model_construct(set(kept), **{alias: getattr(model, name) for name, alias in fields.items()})


def _name(engine: EngineSpec, deployment: Deployment) -> str:
    sizes = (("tp", deployment.tensor_parallel), ("pp", deployment.pipeline_parallel), ("x", deployment.replicas))
    spread = "".join(f"-{name}{count}" for name, count in sizes if count > 1)
    return f"{engine.kind}{spread or '-single'}"


def _other_weights(candidate: Candidate) -> Iterator[Candidate]:
    """Yield it with the model in the other forms that its engine takes; a model with a configuration has one form."""
    model = candidate.model
    if model.config is not None:
        return
    for bits in sorted(map(int, candidate.engine.interface.weights)):
        if bits != model.quantization.bits:
            stored = model.quantization.model_copy(update={"bits": bits})
            changed = model.model_copy(update={"quantization": stored})
            yield Candidate(candidate.name, candidate.written, candidate.engine, candidate.deployment, changed, False)
