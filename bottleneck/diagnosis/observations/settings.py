"""Observe how an engine runs, of what the analysis asks: captured graphs, the width of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from bottleneck.plan.workers import ServerSettings


@dataclass(frozen=True)
class EngineSettings:
    """Settings that an engine runs with.

    Attributes
    ----------
    eager, graphs : bool
        Whether it is known to launch every kernel from the host, or to replay captured graphs; both False when it is
        not known.
    weight_bytes : float or None
        Bytes of one weight.
    arithmetic_gain : float
        How much faster its arithmetic may be than the 16-bit product that the ceilings measure: twice in 8 bit.
    """

    eager: bool = False
    graphs: bool = False
    weight_bytes: float | None = None
    arithmetic_gain: float = 1.0


def engine_settings(settings: ServerSettings) -> EngineSettings:
    """Return what a server's settings in force say.

    Parameters
    ----------
    settings : ServerSettings
        Settings in force, as deployment and engine say.

    Returns
    -------
    EngineSettings
        ``weight_bytes`` per weight, None where the format is not known.
    """
    weights = settings.weights
    return EngineSettings(
        eager=settings.captured_graphs is False,
        graphs=settings.captured_graphs is True,
        weight_bytes=weights.bits / 8 if weights else None,
        arithmetic_gain=weights.arithmetic_gain if weights else 1.0,
    )
