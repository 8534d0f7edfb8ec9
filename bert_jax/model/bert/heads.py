"""BERT's pre-training heads, each with the reference that it follows."""

from typing import cast

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.model.activations import ACTIVATIONS
from bert_jax.model.dense import Dense
from bert_jax.model.embedding import tied_logits
from bert_jax.model.layer_norm import LayerNorm


class Pooler(nn.Module):
    """A dense layer and tanh on each instance's [CLS] (modeling.py of the original)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, cls_hidden: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Return the pooled output."""
        return jnp.tanh(Dense(self.config, self.config.hidden_size, names=("embed", None), name="dense")(cls_hidden))


class MaskedLMHead(nn.Module):
    """A transform, the product with the word embeddings, and a bias per token (get_masked_lm_output in modeling.py)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B P D"], *, word_embeddings: Float[Array, "R D"]) -> Float[Array, "B P R"]:
        """Return float32 logits over the vocabulary, and its padding."""
        config = self.config
        hidden = Dense(config, config.hidden_size, names=("embed", None), name="transform")(hidden)
        hidden = LayerNorm(config, name="layer_norm")(ACTIVATIONS[config.hidden_act](hidden))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)), (config.vocab_size,))
        logits = tied_logits(hidden, word_embeddings.astype(config.dtype), cast(Array, bias))
        return nn.with_logical_constraint(logits, ("batch", None, "vocab"))


class NextSentenceHead(nn.Module):
    """Classification of the pooled output as next sentence (0) or random (1)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, pooled: Float[Array, "B S D"]) -> Float[Array, "B S 2"]:
        """Return float32 logits."""
        logits = Dense(self.config, 2, names=("embed", None), name="dense")(pooled)
        return logits.astype(jnp.float32)
