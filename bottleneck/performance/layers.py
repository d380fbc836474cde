"""Build the layers that most models have: grouped attention, a feed-forward block, and a model of both alone."""

from __future__ import annotations

from bottleneck.performance.shape import Attention, Layer, Matrix, ModelShape


def grouped_attention(hidden_size: int, heads: int, key_value_heads: int, head_dim: int) -> tuple[Matrix, ...]:
    """Return the projections of attention whose query heads share keys and values in groups.

    Parameters
    ----------
    hidden_size
        Width of the hidden state.
    heads
        Query heads.
    key_value_heads
        Heads of keys and values.
    head_dim
        Width of a head.
    """
    queries, keys = heads * head_dim, key_value_heads * head_dim
    return (
        Matrix("q_proj", queries, hidden_size),
        Matrix("k_proj", keys, hidden_size, key_value_heads),
        Matrix("v_proj", keys, hidden_size, key_value_heads),
        Matrix("o_proj", hidden_size, queries, by_inputs=True),
    )


def feed_forward(
    hidden_size: int, inner: int, gated: bool = True, copies: int = 1, active: int = 1
) -> tuple[Matrix, ...]:
    """Return the projections of a feed-forward block, or of so many experts.

    Parameters
    ----------
    hidden_size
        Width of the hidden state.
    inner
        Width inside the block.
    gated
        Whether a gate is multiplied with what goes up.
    copies
        How many experts there are; 1 is a plain block.
    active
        How many of them a token goes through.
    """
    gate = (Matrix("gate_proj", inner, hidden_size, None, copies, active),) if gated else ()
    return (
        *gate,
        Matrix("up_proj", inner, hidden_size, None, copies, active),
        Matrix("down_proj", hidden_size, inner, None, copies, active, by_inputs=True),
    )


def dense_shape(
    *,
    layers: int,
    hidden_size: int,
    intermediate_size: int,
    attention_heads: int,
    key_value_heads: int,
    head_dim: int,
    vocabulary_size: int,
    context_length: int,
    tied_embeddings: bool = False,
) -> ModelShape:
    """Return the shape of a model whose layers are all alike: grouped attention and one gated feed-forward block.

    Activations are counted from the kernels of a layer: two norms with their residuals (8 hidden), the projections'
    inputs and outputs (4 hidden, 2 queries, keys and values), the gated product (4 intermediate).

    Parameters
    ----------
    layers
        How many.
    hidden_size
        Width of the hidden state.
    intermediate_size
        Width inside the feed-forward block.
    attention_heads
        Query heads.
    key_value_heads
        Heads of keys and values.
    head_dim
        Width of a head.
    vocabulary_size
        Rows of the embedding.
    context_length
        The longest sequence, tokens.
    tied_embeddings
        Whether embedding and output head are one matrix.
    """
    layer = Layer(
        matrices=(
            *grouped_attention(hidden_size, attention_heads, key_value_heads, head_dim),
            *feed_forward(hidden_size, intermediate_size),
        ),
        attention=Attention(2 * key_value_heads * head_dim, key_value_heads, 4 * attention_heads * head_dim),
        vectors=2 * hidden_size,
        moved_values=12 * hidden_size,
        moved_values_split=(2 * attention_heads + 4 * key_value_heads) * head_dim + 4 * intermediate_size,
        buffer_values_split=3 * intermediate_size,
    )
    return ModelShape(
        (layer,) * layers,
        hidden_size,
        attention_heads,
        key_value_heads,
        vocabulary_size,
        context_length,
        tied_embeddings,
    )
