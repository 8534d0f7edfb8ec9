"""What `model.attention_implementation=pallas` supports."""

from collections.abc import Sequence

from bert_jax.config.groups import ModelConfig
from bert_jax.errors import UserError

_LONGEST_WITH_DROPOUT = 1024  # tokens


def check_attention(model: ModelConfig, *, lengths: Sequence[int]) -> None:
    """Check that the requested kernel supports this model and these sequence lengths.

    Raises:
      UserError: if it does not; the message names the field.
    """
    name = "config.model.attention_implementation"
    if model.attention_implementation != "pallas":
        return
    heads = model.num_attention_heads
    if model.hidden_size != 64 * heads or heads % 2:
        raise UserError(
            f"{name}=pallas supports an even number of heads of size 64, not {heads} heads of "
            f"size {model.hidden_size // heads}: set {name}=auto"
        )
    for length in lengths:
        if length % 128 or (length > _LONGEST_WITH_DROPOUT and model.attention_probs_dropout_prob > 0):
            raise UserError(
                f"{name}=pallas supports multiples of 128 tokens, above {_LONGEST_WITH_DROPOUT:,} without "
                f"config.model.attention_probs_dropout_prob, not {length}: set {name}=auto, or another max_seq_length"
            )
