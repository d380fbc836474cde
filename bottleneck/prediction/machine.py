"""Find what machines and links can do for a prediction: as probes measured it, else as profile and datasheets say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bottleneck.performance.collectives import DEFAULT_BACKEND, Link, link_of
from bottleneck.performance.datasheets import datasheet_of
from bottleneck.performance.efficiencies import efficiency
from bottleneck.performance.served import Accelerator
from bottleneck.profile.types import Accelerator as ProfileAccelerator
from bottleneck.profile.types import Deployment, Profile
from bottleneck.runs.ceilings import Ceilings, Spread
from bottleneck.units import duration_text, rate_text


class NoCeiling(Exception):  # noqa: N818 - it is no mistake of the asker
    """A ceiling that nothing says; the text names it and how it is measured."""


@dataclass(frozen=True)
class Known:
    """A machine or a link, and where its figures are from.

    Attributes
    ----------
    basis : str
        `measured`, or what stands in its place.
    """

    accelerator: Accelerator | None = None
    link: Link | None = None
    basis: tuple[str, ...] = ()


def measured_accelerator(ceilings: Ceilings, nodes: Sequence[str]) -> Accelerator:
    """Return what the slowest of some nodes can do: the others wait for it.

    Parameters
    ----------
    ceilings
        As probes measured them.
    nodes
        Names of nodes.

    Raises
    ------
    NoCeiling
        When one of them was not measured.
    """
    known = [ceilings.nodes.get(name) for name in nodes]
    memory = [_median(node.memory_read_bytes_per_second) for node in known if node]
    products = [
        _median(node.gemm_bf16_flops_per_second) or _median(node.gemm_f32_flops_per_second) for node in known if node
    ]
    for name, values in (("memory_read_bytes_per_second", memory), ("gemm_bf16_flops_per_second", products)):
        if len(values) < len(nodes) or any(value is None for value in values):
            raise NoCeiling(f"nodes: {name}: missing; measure it with: cluster probe --only nodes")
    launches = [_median(node.kernel_dispatch_seconds) for node in known if node]
    return Accelerator(
        "the slowest node",
        min(value for value in memory if value),
        min(value for value in products if value),
        max((value for value in launches if value), default=1e-5),
    )


def nominal_accelerator(profile: Profile, nodes: Sequence[str]) -> Known:
    """Return what the slowest card of some nodes reaches by its datasheet, and which that is.

    Parameters
    ----------
    profile
        The cluster's.
    nodes
        Names of nodes.

    Raises
    ------
    NoCeiling
        When there is no datasheet of one.
    """
    cards = {card.model or card.kind: card for name in nodes for card in profile.nodes[name].cards}
    found = [_by_datasheet(name, card) for name, card in cards.items()]
    slowest = min(found, key=lambda each: (each.memory_bytes_per_second, each.flops_per_second))
    return Known(slowest, basis=(f"nominal: {slowest.name} by its datasheet, with the share of it that probes find",))


def _by_datasheet(name: str, card: ProfileAccelerator) -> Accelerator:
    sheet = datasheet_of(card.model)
    if sheet is None:
        raise NoCeiling(f"nothing says what {name} reaches, neither probes nor a datasheet; measure it: cluster probe")
    known = sheet.accelerator()
    stated = card.memory_bandwidth_bytes_per_second
    memory = known.memory_bytes_per_second if stated is None else stated * efficiency("datasheet_memory").value
    return Accelerator(name, memory, known.flops_per_second, known.launch_seconds)


def measured_link(ceilings: Ceilings, profile: Profile, deployment: Deployment) -> Known:
    """Return the link between a replica's ranks, as probes found its messages, or itself.

    Parameters
    ----------
    ceilings
        As probes measured them.
    profile
        The cluster's.
    deployment
        With its link and how it is split.

    Raises
    ------
    NoCeiling
        When neither was measured.
    """
    pairs = [*ceilings.links.get(deployment.link, {}).values()]
    latencies = [value for pair in pairs if (value := _median(pair.latency_seconds))]
    rates = [value for pair in pairs if (value := _median(pair.bandwidth_bytes_per_second))]
    probed = ceilings.allreduce if deployment.tensor_parallel > 1 else ceilings.send_receive
    backend = profile.engine_of(deployment.nodes[0]).collective_backend or DEFAULT_BACKEND
    if probed is not None and probed.link == deployment.link:
        sizes = {float(size): spread.median for size, spread in probed.sizes.items()}
        messages = link_of(sizes, probed.ranks if deployment.tensor_parallel > 1 else 1, probed.backend)
        if messages is not None:
            # Messages between ranks know the software's latency; the link's rate is measured anew before each run.
            rate = min([messages.bytes_per_second, *rates])
            return Known(link=replace(messages, bytes_per_second=rate))
    if not latencies:
        raise NoCeiling(f"allreduce, links.{deployment.link}: missing; measure them with: cluster probe --only links")
    notes = () if rates else (f"the rate of {deployment.link} was not measured; the profile's is used",)
    rate = min(rates, default=profile.networks[deployment.link].rate_bytes_per_second)
    return Known(link=Link(max(latencies), rate, backend), basis=notes)


def nominal_link(profile: Profile, deployment: Deployment) -> Known:
    """Return the link between a replica's ranks by the profile's rate and a latency that such links have.

    Parameters
    ----------
    profile
        The cluster's.
    deployment
        With its link and how it is split.

    Raises
    ------
    NoCeiling
        When the profile does not say how the cards of a node are joined.
    """
    backend = profile.engine_of(deployment.nodes[0]).collective_backend or DEFAULT_BACKEND
    if len(deployment.nodes) > deployment.replicas:
        latency = efficiency("link_latency_seconds").value
        rate = profile.networks[deployment.link].rate_bytes_per_second
        where = deployment.link
    else:
        latency, where = efficiency("card_latency_seconds").value, "the cards of a node"
        rate = min(_card_rate(card, name) for name in deployment.nodes for card in profile.nodes[name].cards)
    basis = f"nominal: {where} at {rate_text(rate)} by the profile and {duration_text(latency)} one way, assumed"
    return Known(link=Link(latency, rate, backend), basis=(basis,))


def _card_rate(card: ProfileAccelerator, node: str) -> float:
    if card.interconnect_bytes_per_second:
        return card.interconnect_bytes_per_second
    if card.pcie:
        return card.pcie.bandwidth_bytes_per_second
    raise NoCeiling(f"nodes.{node}.accelerator: interconnect and pcie are missing; fill in how its cards are joined")


def machine_of(profile: Profile, deployment: Deployment, ceilings: Ceilings | None) -> Known:
    """Return what a deployment's machines and its link can do, measured where there are measures.

    Parameters
    ----------
    profile
        The cluster's.
    deployment
        Any of it, written in the profile or not.
    ceilings
        As probes measured them; None when nothing was probed.

    Raises
    ------
    NoCeiling
        When nothing says it.
    """
    basis: list[str] = []
    try:
        accelerator = measured_accelerator(ceilings or Ceilings(), deployment.nodes)
    except NoCeiling:
        nominal = nominal_accelerator(profile, deployment.nodes)
        basis += nominal.basis
        assert nominal.accelerator is not None, "a datasheet has all of it"
        accelerator = nominal.accelerator
    if deployment.ranks_per_replica == 1:
        return Known(accelerator, None, tuple(basis))
    across_nodes = len(deployment.nodes) > deployment.replicas
    try:
        # Probes measure between nodes.
        link = measured_link(ceilings if ceilings and across_nodes else Ceilings(), profile, deployment)
    except NoCeiling:
        link = nominal_link(profile, deployment)
    return Known(accelerator, link.link, (*basis, *link.basis))


def _median(spread: Spread | None) -> float | None:
    return spread.median if spread is not None and spread.median > 0 else None
