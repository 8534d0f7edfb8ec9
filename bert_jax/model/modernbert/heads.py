"""ModernBERT's heads: a transform that every head reads, and the tied decoder."""

from typing import cast

from flax import linen as nn
from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.model.activations import ACTIVATIONS
from bert_jax.model.dense import Dense
from bert_jax.model.embedding import tied_logits
from bert_jax.model.layer_norm import LayerNorm
from bert_jax.model.modernbert.encoder import output_stddev


class Transform(nn.Module):
    """A dense layer, an activation and a norm (HuggingFace's `head`)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B n D"]) -> Float[Array, "B n D"]:
        """Return what the masked-LM decoder and the classifiers read."""
        config = self.config
        dense = Dense(
            config,
            config.hidden_size,
            names=("embed", None),
            use_bias=False,
            stddev=output_stddev(config),
            name="dense",
        )
        return LayerNorm(config, use_bias=False, name="layer_norm")(ACTIVATIONS[config.hidden_act](dense(hidden)))


class Decoder(nn.Module):
    """The product of transformed states with the word embeddings, and a bias per token."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B P D"], *, word_embeddings: Float[Array, "R D"]) -> Float[Array, "B P R"]:
        """Return float32 logits over the vocabulary, and its padding."""
        config = self.config
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)), (config.vocab_size,))
        logits = tied_logits(hidden, word_embeddings.astype(config.dtype), cast(Array, bias))
        return nn.with_logical_constraint(logits, ("batch", None, "vocab"))
