"""The causal objective: a left-to-right model predicts the next token at every position (paper section 5.1, GPT).

A right-to-left model, which only an LSTM can be, predicts the token before each position.

Nothing is masked. A position and the next one must be in the same instance, so with packing nothing is predicted across
instances. Predicted are the tokens after [CLS], [SEP] included: the positions of HuggingFace's shifted loss.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Key

from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.rows.layout import cls_positions, encoder_inputs
from bert_jax.types import PretrainingBatch, Rows


@dataclasses.dataclass(frozen=True)
class CausalObjective(PretrainingObjective):
    """The next token at every position; `masking` is not used."""

    name: ClassVar[str] = "clm"

    @property
    def unpredicted_ids(self) -> tuple[int, ...]:
        """Return [CLS], which begins an instance and never follows a token."""
        return (self.special.cls_id,) if self.model.attention_direction == "left_to_right" else ()

    def prepare(self, rows: Rows, *, key: Key[Array, ""]) -> PretrainingBatch:
        """Return the batch: the label of a position is the token after it. Nothing is random."""
        del key
        return next_token_batch(rows, direction=self.model.attention_direction)


def objective_class(*, causal: bool) -> type[PretrainingObjective]:
    """Return the class of a run's objective."""
    return CausalObjective if causal else PretrainingObjective


def next_token_batch(rows: Rows, *, direction: str) -> PretrainingBatch:
    """Return every position with the next token in `direction` as its label, of weight 1 within an instance."""
    inputs = encoder_inputs(rows)
    batch, length = inputs.input_ids.shape
    shift, end = (-1, -1) if direction == "left_to_right" else (1, 0)
    following = jnp.roll(inputs.segment_ids, shift, axis=1).at[:, end].set(0)
    is_last = following != inputs.segment_ids
    return PretrainingBatch(
        inputs=inputs,
        rows=jnp.arange(batch, dtype=jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length)),
        labels=jnp.roll(inputs.input_ids, shift, axis=1),
        weights=((inputs.segment_ids > 0) & ~is_last).astype(jnp.float32),
        cls_positions=cls_positions(rows),
        next_sentence_labels=rows.next_sentence_labels.astype(jnp.int32),
        next_sentence_weights=(rows.segment_lengths.sum(-1) > 0).astype(jnp.float32),
    )
