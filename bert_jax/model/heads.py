"""The pre-training model: an encoder of any architecture with its heads."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.model.architectures import architecture_of
from bert_jax.model.dropout import Dropout
from bert_jax.types import EncoderInputs, EncoderOutput, PretrainingLogits


def pool_instances(
    hidden: Float[Array, "B T D"],
    *,
    cls_positions: Int[Array, "B S"],
    segment_ids: Int[Array, "B T"],
    pooling: str,
) -> Float[Array, "B S D"]:
    """Return one state per instance: that of its [CLS] (`pooling` "cls"), or the mean over its tokens ("mean")."""
    if pooling == "cls":
        return gather(hidden, cls_positions)
    numbers = jnp.arange(1, cls_positions.shape[1] + 1)
    own = (segment_ids[:, None, :] == numbers[None, :, None]).astype(hidden.dtype)
    total = jnp.einsum("BST,BTD->BSD", own, hidden, preferred_element_type=jnp.float32)
    count = jnp.maximum(own.sum(-1, dtype=jnp.float32, keepdims=True), 1)
    return (total / count).astype(hidden.dtype)


def gather(hidden: Float[Array, "B T D"], positions: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """Return the hidden states at `positions`, by a matmul with one-hot vectors.

    So the backward pass is a matmul too: scatter is slow on TPUs. It is exact, because every vector has a single 1.
    """
    one_hot = jax.nn.one_hot(positions, hidden.shape[1], dtype=hidden.dtype)
    return jnp.einsum("BPT,BTD->BPD", one_hot, hidden, precision=jax.lax.Precision.HIGHEST)


class PretrainingModel(nn.Module):
    """The encoder with the masked-LM head and, if the architecture has one, the next-sentence head."""

    config: ModelConfig

    def setup(self) -> None:
        """Create the encoder and the heads that the architecture pre-trains."""
        architecture = architecture_of(self.config)
        self.encoder = architecture.encoder(self.config)
        self.has_next_sentence = "next_sentence" in architecture.pretraining_parts
        self.has_transform = "transform" in architecture.heads
        if self.has_transform:
            self.transform = architecture.heads["transform"](self.config)
        if self.has_next_sentence:
            self.pooler = architecture.heads["pooler"](self.config)
        self.masked_lm = architecture.heads["masked_lm"](self.config)
        if self.has_next_sentence:
            self.next_sentence = architecture.heads["next_sentence"](self.config)

    def __call__(
        self,
        inputs: EncoderInputs,
        *,
        positions: Int[Array, "B P"],
        cls_positions: Int[Array, "B S"],
        dropout: Dropout | None = None,
    ) -> PretrainingLogits:
        """Return the logits; `dropout=None` means no dropout."""
        return self.logits(self.encoder(inputs, dropout=dropout), positions=positions, cls_positions=cls_positions)

    def logits(
        self, encoded: EncoderOutput, *, positions: Int[Array, "B P"], cls_positions: Int[Array, "B S"]
    ) -> PretrainingLogits:
        """Return the logits of encoded sequences."""
        if not self.has_next_sentence:
            at_masks, words = gather(encoded.hidden, positions), encoded.word_embeddings
            if self.has_transform:
                at_masks = self.transform(at_masks)
            return PretrainingLogits(masked_lm=self.masked_lm(at_masks, word_embeddings=words), next_sentence=None)
        hidden = gather(encoded.hidden, jnp.concatenate([positions, cls_positions], axis=1))
        at_masks, at_cls = jnp.split(hidden, [positions.shape[1]], axis=1)
        return PretrainingLogits(
            masked_lm=self.masked_lm(at_masks, word_embeddings=encoded.word_embeddings),
            next_sentence=self.next_sentence(self.pooler(at_cls)),
        )
