"""Layers that keep a state of fixed size for each sequence and no cache of its tokens.

Weights and states are laid out as in vLLM 0.32 (`vllm/model_executor/layers/mamba`, read): the state in 32 bit or as
wide as the model computes in, the inputs that the convolution still needs in 16.
"""

from __future__ import annotations

from bottleneck.performance.formats import BF16, VALUE_BYTES
from bottleneck.performance.shape import Attention, Matrix

STATE_BYTES = 4
"""Bytes of a value of a delta net's state: 32 bit (`mamba_ssm_dtype`)."""

Part = tuple[tuple[Matrix, ...], Attention, int]
"""Matrices, what is kept, and parameters of norms and biases."""


def delta_net(hidden: int, key_heads: int, key_width: int, heads: int, width: int, kernel: int) -> Part:
    """Return a gated delta net.

    Parameters
    ----------
    hidden
        Width of the hidden state.
    key_heads
        Heads of keys and queries.
    key_width
        Width of one of them.
    heads
        Heads of values.
    width
        Width of one of them.
    kernel
        Tokens that the convolution sees.
    """
    keys, values = key_heads * key_width, heads * width
    matrices = (
        Matrix("in_proj_qkv", 2 * keys + values, hidden),
        Matrix("in_proj_z", values, hidden),
        Matrix("in_proj_b", heads, hidden),
        Matrix("in_proj_a", heads, hidden),
        Matrix("out_proj", hidden, values, by_inputs=True),
        Matrix("conv1d", 2 * keys + values, kernel, stored=BF16),
    )
    state = heads * width * key_width * STATE_BYTES + (2 * keys + values) * (kernel - 1) * VALUE_BYTES
    return matrices, Attention(0, 1, 0, None, state), 2 * heads + width


def mamba(hidden: int, heads: int, width: int, groups: int, states: int, kernel: int, *, state_bytes: int) -> Part:
    """Return a Mamba 2 mixer: `heads` of `width`, with so many groups of so many states of `state_bytes` a value.

    Parameters
    ----------
    hidden
        Width of the hidden state.
    heads
        How many.
    width
        Of one head.
    groups
        Groups of heads that share their state projections.
    states
        State values of each channel.
    kernel
        Tokens that the convolution sees.
    state_bytes
        Bytes of one value of the state.
    """
    inner = heads * width
    mixed = inner + 2 * groups * states
    matrices = (
        Matrix("in_proj", inner + mixed + heads, hidden),
        Matrix("out_proj", hidden, inner, by_inputs=True),
        Matrix("conv1d", mixed, kernel, stored=BF16),
    )
    kept = heads * width * states * state_bytes + mixed * (kernel - 1) * VALUE_BYTES
    # Of each head its decay, its skip and the bias of its step; the norm; the convolution's biases.
    return matrices, Attention(0, 1, 0, None, kept), 3 * heads + inner + mixed


def mamba1(hidden: int, inner: int, states: int, kernel: int, step_rank: int, *, state_bytes: int) -> Part:
    """Return a Mamba 1 mixer, as Jamba has it: a state of every channel by itself.

    Parameters
    ----------
    hidden
        Width of the hidden state.
    inner
        Channels of the mixer.
    states
        State values of each channel.
    kernel
        Tokens that the convolution sees.
    step_rank
        Width of the step's low-rank projection.
    state_bytes
        Bytes of one value of the state.
    """
    matrices = (
        Matrix("in_proj", 2 * inner, hidden),
        Matrix("x_proj", step_rank + 2 * states, inner, by_inputs=True),
        Matrix("dt_proj", inner, step_rank),
        Matrix("out_proj", hidden, inner, by_inputs=True),
        Matrix("conv1d", inner, kernel, stored=BF16),
    )
    kept = inner * states * state_bytes + inner * (kernel - 1) * VALUE_BYTES
    # Of each channel its decays, its skip, the biases of its step and convolution; norms of what x_proj makes.
    return matrices, Attention(0, 1, 0, None, kept), inner * (states + 3) + step_rank + 2 * states


def short_convolution(hidden: int, kernel: int) -> Part:
    """Return a gated convolution over the last few tokens, as LFM2 has it; its inputs are all that is kept.

    Parameters
    ----------
    hidden
        Width of the hidden state, and of the convolution.
    kernel
        Tokens that it sees.
    """
    matrices = (
        Matrix("in_proj", 3 * hidden, hidden),
        Matrix("out_proj", hidden, hidden, by_inputs=True),
        Matrix("conv", hidden, kernel, stored=BF16),
    )
    return matrices, Attention(0, 1, 0, None, hidden * (kernel - 1) * VALUE_BYTES), 0
