"""Expand stored records to encoder inputs, inside the jitted step: less data is transferred to the device."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from bert_jax.types import EncoderInputs, InstanceRows


def encoder_inputs(rows: InstanceRows, *, padding_at_zero: bool = False) -> EncoderInputs:
    """Return token types, positions and instance numbers, derived from the segment lengths.

    Padding has token type 0 (as in create_pretraining_data.py), segment 0, and its index in the sequence as position.
    With `padding_at_zero` its position is 0: for sequences that may be longer than the position table.
    """
    index = jnp.arange(rows.input_ids.shape[1], dtype=jnp.int32)[None, None, :]
    starts = instance_starts(rows)[..., None]
    in_b = starts + rows.segment_lengths[..., 0:1]
    ends = starts + rows.segment_lengths.sum(-1, keepdims=True)
    inside = (index >= starts) & (index < ends)  # [B, S, T]
    numbers = jnp.arange(1, inside.shape[1] + 1, dtype=jnp.int32)[None, :, None]
    segment_ids = (inside * numbers).sum(1)
    offset = (inside * starts).sum(1)
    position_ids = index[:, 0] - offset
    if padding_at_zero:
        position_ids = jnp.where(segment_ids > 0, position_ids, 0)
    return EncoderInputs(
        input_ids=rows.input_ids.astype(jnp.int32),
        token_type_ids=(inside & (index >= in_b)).sum(1).astype(jnp.int32),
        position_ids=position_ids.astype(jnp.int32),
        segment_ids=segment_ids.astype(jnp.int32),
    )


def instance_starts(rows: InstanceRows) -> Int[Array, "B S"]:
    """Return the position of each instance's [CLS]; for an empty instance, the first position of the padding."""
    lengths = rows.segment_lengths.sum(-1)
    return jnp.cumsum(lengths, axis=1) - lengths


def pooled_positions(rows: InstanceRows, *, direction: str) -> Int[Array, "B S"]:
    """Return the position that a head reads of each instance, 0 for an empty one: the one that sees all of it.

    That is [CLS], and the last token where attention has the `direction` left_to_right, as in GPT.
    """
    if direction != "left_to_right":
        return cls_positions(rows)
    ends = rows.segment_lengths.sum(-1).cumsum(axis=1)
    exists = rows.segment_lengths.sum(-1) > 0
    return jnp.where(exists, ends - 1, 0).astype(jnp.int32)


def cls_positions(rows: InstanceRows) -> Int[Array, "B S"]:
    """Return the position of each instance's [CLS], 0 for an empty instance: the indices that heads gather."""
    exists = rows.segment_lengths.sum(-1) > 0
    return jnp.where(exists, instance_starts(rows), 0).astype(jnp.int32)
