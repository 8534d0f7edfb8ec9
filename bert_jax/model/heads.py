"""Put heads on the encoder: each a few lines, each with the reference it follows."""

from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.model.activations import ACTIVATIONS
from bert_jax.model.bert.encoder import BertEncoder, LayerNorm
from bert_jax.model.dense import Dense
from bert_jax.model.dropout import Dropout
from bert_jax.model.embedding import tied_logits
from bert_jax.types import EncoderInputs, PretrainingLogits


def gather(hidden: Float[Array, "B T D"], positions: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """Pick the hidden states at `positions`, by a matmul with one-hot rows.

    The backward pass is then a matmul too: a TPU has no fast scatter. Exact, for every row has a single 1.
    """
    one_hot = jax.nn.one_hot(positions, hidden.shape[1], dtype=hidden.dtype)
    return jnp.einsum("BPT,BTD->BPD", one_hot, hidden, precision=jax.lax.Precision.HIGHEST)


class Pooler(nn.Module):
    """Map each instance's [CLS] through a dense layer and tanh (modeling.py of the original)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, cls_hidden: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Return the pooled output."""
        return jnp.tanh(Dense(self.config, self.config.hidden_size, names=("embed", None), name="dense")(cls_hidden))


class MaskedLMHead(nn.Module):
    """Transform, then multiply with the word embeddings and add a bias a word.

    That is get_masked_lm_output of the original.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B P D"], *, word_embeddings: Float[Array, "V D"]) -> Float[Array, "B P V"]:
        """Return float32 logits over the vocabulary."""
        config = self.config
        hidden = Dense(config, config.hidden_size, names=("embed", None), name="transform")(hidden)
        hidden = LayerNorm(config, name="layer_norm")(ACTIVATIONS[config.hidden_act](hidden))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)), (config.vocab_size,))
        logits = tied_logits(hidden, word_embeddings.astype(config.dtype), cast(Array, bias))
        return nn.with_logical_constraint(logits, ("batch", None, "vocab"))


class NextSentenceHead(nn.Module):
    """Classify the pooled output as true next (0) or random (1)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, pooled: Float[Array, "B S D"]) -> Float[Array, "B S 2"]:
        """Return float32 logits."""
        logits = Dense(self.config, 2, names=("embed", None), name="dense")(pooled)
        return logits.astype(jnp.float32)


class BertForPreTraining(nn.Module):
    """Predict masked tokens at the given positions and the next sentence from each instance's [CLS]."""

    config: ModelConfig

    def setup(self) -> None:
        """Create encoder, pooler and both heads."""
        self.encoder = BertEncoder(self.config)
        self.pooler = Pooler(self.config)
        self.masked_lm = MaskedLMHead(self.config)
        self.next_sentence = NextSentenceHead(self.config)

    def __call__(
        self,
        inputs: EncoderInputs,
        *,
        positions: Int[Array, "B P"],
        cls_positions: Int[Array, "B S"],
        dropout: Dropout | None = None,
    ) -> PretrainingLogits:
        """Return the logits; `dropout=None` computes them deterministically."""
        encoded = self.encoder(inputs, dropout=dropout)
        picked = gather(encoded.hidden, jnp.concatenate([positions, cls_positions], axis=1))
        at_masks, at_cls = jnp.split(picked, [positions.shape[1]], axis=1)
        return PretrainingLogits(
            masked_lm=self.masked_lm(at_masks, word_embeddings=encoded.word_embeddings),
            next_sentence=self.next_sentence(self.pooler(at_cls)),
        )
