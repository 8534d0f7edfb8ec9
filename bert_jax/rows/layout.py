"""Unfold rows as stored into what the encoder reads; inside the jitted step, so little travels to the device."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from bert_jax.types import EncoderInputs, Rows


def encoder_inputs(rows: Rows) -> EncoderInputs:
    """Derive token types, positions and instance numbers from the segment lengths.

    Padding has token type 0 (as create_pretraining_data.py writes it), segment 0, and its place in the row as position.
    """
    place = jnp.arange(rows.input_ids.shape[1], dtype=jnp.int32)[None, None, :]
    starts = instance_starts(rows)[..., None]
    in_b = starts + rows.segment_lengths[..., 0:1]
    ends = starts + rows.segment_lengths.sum(-1, keepdims=True)
    inside = (place >= starts) & (place < ends)  # [B, S, T]
    numbers = jnp.arange(1, inside.shape[1] + 1, dtype=jnp.int32)[None, :, None]
    segment_ids = (inside * numbers).sum(1)
    offset = (inside * starts).sum(1)
    return EncoderInputs(
        input_ids=rows.input_ids.astype(jnp.int32),
        token_type_ids=(inside & (place >= in_b)).sum(1).astype(jnp.int32),
        position_ids=(place[:, 0] - offset).astype(jnp.int32),
        segment_ids=segment_ids.astype(jnp.int32),
    )


def instance_starts(rows: Rows) -> Int[Array, "B S"]:
    """Return the position of each instance's [CLS]; that of an empty instance is the first position of the padding."""
    lengths = rows.segment_lengths.sum(-1)
    return jnp.cumsum(lengths, axis=1) - lengths
