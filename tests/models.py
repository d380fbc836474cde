"""Shapes of models that arithmetic is checked against."""

from bottleneck.profile import Shape

MISTRAL_SMALL = Shape(
    layers=56,
    hidden_size=6144,
    intermediate_size=16384,
    attention_heads=48,
    key_value_heads=8,
    head_dim=128,
    vocabulary_size=32768,
    context_length=32768,
)
"""Mistral-Small-Instruct-2409, as its own configuration has it."""
