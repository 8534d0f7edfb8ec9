"""Name the arrays that travel between rooms, and their axes.

The one legend of axis letters, used in every signature:

    B  rows of a batch (global inside the step, a host's share in the loader)
    T  token positions in a row                     V  vocabulary
    S  instances in a row: 1 unless rows are packed D  hidden_size
    P  positions to predict in a row                N  attention heads, K the size of one
    L  layers                                       F  intermediate_size

Logical axis names of parameters and activations (which `parallel/mesh.py` maps to mesh axes):
`batch length embed heads head_size mlp vocab layers`; `None` is never sharded.

In every architecture the parameters of repeated layers are below `LAYERS`, stacked along a leading axis.
"""

from flax import struct
from jaxtyping import Array, Bool, Float, Int

LAYERS = "encoder/layers/"


@struct.dataclass
class InstanceRows:
    """Rows of instances as they travel to the device; `rows/layout.py` makes encoder inputs of them.

    An instance takes `segment_lengths[b, s].sum()` positions: `[CLS] A [SEP]` in the first number, `B [SEP]` in the
    second (0 for a single segment), instances one after the other from position 0; an empty instance has lengths 0, 0.
    What follows the last instance is padding.
    """

    input_ids: Int[Array, "B T"]
    segment_lengths: Int[Array, "B S 2"]


@struct.dataclass
class Rows(InstanceRows):
    """Rows of unmasked instances, exactly as the data set stores them.

    `next_sentence_labels` is 1 where B is random (or A and B are swapped, for SOP).
    """

    next_sentence_labels: Int[Array, "B S"]
    word_starts: Bool[Array, "B T"]


@struct.dataclass
class EncoderInputs:
    """Hold what the encoder reads. `segment_ids` numbers the instances of a row from 1; 0 is padding.

    `token_type_ids` (HuggingFace's name) is 0 in A and 1 in B; `position_ids` start at 0 in every instance.
    """

    input_ids: Int[Array, "B T"]
    token_type_ids: Int[Array, "B T"]
    position_ids: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]


@struct.dataclass
class PretrainingBatch:
    """Hold masked rows and their targets; weights are 1 where a target exists and 0 where the slot is empty.

    `rows` is each row's index in the global batch: randomness in the model depends on it, so that it does not depend on
    the mesh or on gradient accumulation.
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
    """Hold the last hidden states and, if asked for, those of every layer, the embeddings first.

    `word_embeddings` is the table that the tokens were looked up in, for heads that are tied to it.
    """

    hidden: Float[Array, "B T D"]
    word_embeddings: Float[Array, "V D"]
    all_hidden: Float[Array, "states B T D"] | None = None


@struct.dataclass
class PretrainingLogits:
    """The float32 logits of both objectives; `next_sentence` column 1 means random (HuggingFace's convention).

    `next_sentence` is None where the architecture has no such head.
    """

    masked_lm: Float[Array, "B P V"]
    next_sentence: Float[Array, "B S 2"] | None
