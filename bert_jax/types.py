"""The arrays that packages exchange, and the letters of their axes.

Every signature uses these letters:

    B  sequences in a batch (global in the step, local in the loader)
    T  token positions in a sequence                      V  vocabulary
    S  instances in a sequence: 1 without packing         D  hidden_size
    R  rows of a padded vocabulary (`parallel/padding.py`), else V
    P  positions to predict in a sequence                 N  attention heads, K the size of one
    L  layers                                             F  intermediate_size

Logical axis names of parameters and activations (which `parallel/mesh.py` maps to mesh axes):
`batch length embed heads head_size mlp vocab padded_vocab layers`; an axis named `None` is never sharded.

`padded_vocab` names the rows of a table that may be more than V: a step on TPUs adds zeros (`embedding.word_table`).

In every architecture the parameters of repeated layers are under `LAYERS`, stacked along a leading axis.
"""

from typing import Any

from flax import struct
from jaxtyping import Array, Bool, Float, Int

LAYERS = "encoder/layers/"


@struct.dataclass
class InstanceRows:
    """Sequences of instances as they are sent to the device; `rows/layout.py` turns them into encoder inputs.

    An instance has `segment_lengths[b, s].sum()` tokens: the first number counts `[CLS] A [SEP]`, the second `B [SEP]`
    (0 for a single segment). Instances follow each other from position 0; an empty instance has lengths 0, 0.
    Everything after the last instance is padding.
    """

    input_ids: Int[Array, "B T"]
    segment_lengths: Int[Array, "B S 2"]


@struct.dataclass
class Rows(InstanceRows):
    """Sequences of unmasked instances, exactly as the data set stores them.

    `next_sentence_labels` is 1 where B is random (or A and B are swapped, for SOP).
    """

    next_sentence_labels: Int[Array, "B S"]
    word_starts: Bool[Array, "B T"]


@struct.dataclass
class EncoderInputs:
    """The inputs of the encoder.

    `segment_ids` numbers the instances of a sequence from 1; 0 is padding. `token_type_ids` (HuggingFace's name) is 0
    in A and 1 in B. `position_ids` start at 0 in every instance.
    """

    input_ids: Int[Array, "B T"]
    token_type_ids: Int[Array, "B T"]
    position_ids: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]


@struct.dataclass
class PretrainingBatch:
    """Masked sequences and their targets; a weight is 1 where there is a target and 0 where the slot is empty.

    `rows` is the index of each sequence in the global batch. Dropout masks depend on it, and so do not depend on the
    mesh or on gradient accumulation.
    """

    inputs: EncoderInputs
    rows: Int[Array, " B"]
    positions: Int[Array, "B P"]
    labels: Int[Array, "B P"]
    weights: Float[Array, "B P"]
    cls_positions: Int[Array, "B S"]
    next_sentence_labels: Int[Array, "B S"]
    next_sentence_weights: Float[Array, "B S"]


@struct.dataclass
class EncoderOutput:
    """The last hidden states and, if requested, those of every layer, the embeddings first.

    `word_embeddings` is the embedding table, for heads that are tied to it.
    """

    hidden: Float[Array, "B T D"]
    word_embeddings: Float[Array, "R D"]
    all_hidden: Float[Array, "states B T D"] | None = None


@struct.dataclass
class Projections:
    """The queries, keys and values of a layer, their heads side by side, with bias and before any rotation."""

    query: Float[Array, "B T D"]
    key: Float[Array, "B T D"]
    value: Float[Array, "B T D"]


@struct.dataclass
class TaughtRows(Rows):
    """Sequences with the parameters of the teacher's encoder, up to the layer that teaches."""

    teacher: Any


@struct.dataclass
class TaughtBatch(PretrainingBatch):
    """Masked sequences with what the teacher makes of them."""

    teacher: Projections


@struct.dataclass
class PretrainingLogits:
    """The float32 logits of both objectives; `next_sentence` column 1 means random (HuggingFace's convention).

    `next_sentence` is None if the architecture has no such head.
    """

    masked_lm: Float[Array, "B P R"]
    next_sentence: Float[Array, "B S 2"] | None
