"""Render an engine's interface for a deployment: what each node's worker is started with and watched by."""

from bottleneck.plan.engines.rendering import (
    Launch,
    Watch,
    conversion,
    engine_arguments,
    launch,
    load_generator,
    model_directory,
    model_path,
)

__all__ = [
    "Launch",
    "Watch",
    "conversion",
    "engine_arguments",
    "launch",
    "load_generator",
    "model_directory",
    "model_path",
]
