"""Efficiencies of an engine as an entry of the engine map has them: fitted to runs, with source and count."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bottleneck.performance.efficiencies import KERNEL_PARAMETERS, EfficiencyName, EngineEfficiencies
from bottleneck.profile.value_types import Count, Section


class MeasuredEfficiency(Section):
    """One efficiency of an engine, as it was fitted."""

    value: Annotated[float, Field(gt=0, le=100)] = Field(description="A share, a factor, or seconds.")
    spread: Annotated[float, Field(ge=0, le=10)] = Field(description="Standard deviation of its logarithm.")


class MeasuredEfficiencies(Section):
    """Shares of its machine's ceilings that an engine reaches, and its own costs, fitted to runs of it."""

    source: str = Field(description="What it was fitted to, and how.")
    measurements: Count = Field(description="Runs that it rests on.")
    bits: Literal[4, 8, 16] = Field(description="Bits of the weights that they served.")
    residual: Annotated[float, Field(gt=0, le=10)] = Field(
        description="Standard deviation of the logarithm of a measured time over the fitted one."
    )
    values: dict[EfficiencyName, MeasuredEfficiency] = Field(
        min_length=1, description="Parameter of the step model -> its value; one that is left out is as on any machine."
    )

    def of_bits(self, bits: float) -> EngineEfficiencies:
        """Return it as the step model takes it.

        Parameters
        ----------
        bits : float
            Of the weights that are served: what belongs to the kernels of other ones is left out.
        """
        known: dict[str, tuple[float, float]] = {name: (each.value, each.spread) for name, each in self.values.items()}
        if bits != self.bits:
            known = {name: each for name, each in known.items() if name not in KERNEL_PARAMETERS}
        return EngineEfficiencies(known, self.residual, self.measurements)
