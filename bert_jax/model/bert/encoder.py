"""The BERT encoder (Devlin et al. 2018, section 3; modeling.py of google-research/bert).

It has post-LayerNorm, learned positions, and dropout on the embeddings, the attention probabilities and the output of
each sub-layer. Parameters are float32; `config.dtype` is the dtype of matmuls and of the activations between them;
LayerNorm and softmax run in float32. The parameters of all layers are stacked along a leading `layers` axis, scanned or
unrolled, so there is one checkpoint layout.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.model.activations import activate
from bert_jax.model.attention import AttentionMask, attend
from bert_jax.model.dense import Dense, kernel_init
from bert_jax.model.dropout import Dropout
from bert_jax.model.embedding import lookup, tied_lookup, word_table
from bert_jax.model.layer_norm import LayerNorm
from bert_jax.model.layers import apply_layers, init_layers
from bert_jax.model.projection import Projection
from bert_jax.model.residual_norm import Sublayer
from bert_jax.types import EncoderInputs, EncoderOutput

# Dropout sites, in the embeddings and in a layer.
_EMBEDDINGS, _ATTENTION_PROBS, _ATTENTION_OUTPUT, _MLP_OUTPUT = range(4)


class Embeddings(nn.Module):
    """The sum of word, position and token-type embeddings, normalized, with dropout."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, inputs: EncoderInputs, *, dropout: Dropout | None
    ) -> tuple[Float[Array, "B T D"], Float[Array, "R D"]]:
        """Return the embedded tokens, and the word embeddings for a head that is tied to them."""
        config = self.config

        def table(name: str, size: int) -> Any:
            return self.param(name, kernel_init(config, (None, "embed")), (size, config.hidden_size))

        def whole(table: Any, axis: str | None) -> Any:  # a look-up in a sharded embed axis would move all rows
            return nn.with_logical_constraint(table, (axis, None))

        hidden, words = tied_lookup(whole(word_table(self, config=config), "padded_vocab"), inputs.input_ids)
        positions = table("position_embeddings", config.max_position_embeddings)
        hidden += lookup(whole(positions, None), inputs.position_ids)
        token_types = table("token_type_embeddings", config.type_vocab_size)
        hidden += lookup(whole(token_types, None), inputs.token_type_ids)
        hidden = LayerNorm(config, name="layer_norm")(hidden)
        if dropout is not None:
            hidden = dropout.apply(hidden, rate=config.hidden_dropout_prob, site=_EMBEDDINGS)
        return nn.with_logical_constraint(hidden, ("batch", "length", None)), words


class BertLayer(nn.Module):
    """Self-attention and the feed-forward network, each followed by its residual and LayerNorm."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B T D"], *, mask: AttentionMask, dropout: Dropout | None
    ) -> Float[Array, "B T D"]:
        """Return the hidden states after this layer."""
        config = self.config
        attended = attend(
            Projection(config, name="query")(hidden),
            key=Projection(config, name="key")(hidden),
            value=Projection(config, name="value")(hidden),
            mask=mask,
            dropout=dropout,
            rate=config.attention_probs_dropout_prob,
            site=_ATTENTION_PROBS,
            implementation=config.attention_implementation,
        )
        output = Dense(config, config.hidden_size, names=("heads", "embed"), name="attention_output")
        hidden = LayerNorm(config, name="attention_layer_norm").after(
            _sublayer(output, attended.reshape(hidden.shape)),
            hidden=hidden,
            dropout=dropout,
            site=_ATTENTION_OUTPUT,
        )
        intermediate = Dense(config, config.intermediate_size, names=("embed", "mlp"), name="intermediate")
        inner = activate(config.hidden_act, *intermediate.parts(hidden))
        inner = nn.with_logical_constraint(inner, ("batch", "length", "mlp"))
        output = Dense(config, config.hidden_size, names=("mlp", "embed"), name="output")
        hidden = LayerNorm(config, name="output_layer_norm").after(
            _sublayer(output, inner), hidden=hidden, dropout=dropout, site=_MLP_OUTPUT
        )
        return nn.with_logical_constraint(hidden, ("batch", "length", None))


def _sublayer(dense: Dense, values: Float[Array, "B T n"]) -> Sublayer:
    product, bias = dense.parts(values)
    assert bias is not None
    return Sublayer(product=product, bias=bias)


class BertEncoder(nn.Module):
    """The embeddings and all layers."""

    config: ModelConfig

    def setup(self) -> None:
        """Create the embeddings and the stacked parameters of the layers."""
        self.embeddings = Embeddings(self.config)
        if self.is_initializing():
            self.param("layers", self._init_layers)

    def _init_layers(self, key: jax.Array) -> Any:
        shape = (1, 1, self.config.hidden_size)
        one = jnp.zeros((1, 1), jnp.int32)
        mask = AttentionMask(segment_ids=one, position_ids=one, direction=self.config.attention_direction)
        sample = {"hidden": jnp.zeros(shape), "mask": mask, "dropout": None}
        layer = BertLayer(self.config, parent=None)
        return init_layers(lambda k: layer.init(k, **sample)["params"], key, count=self.config.num_hidden_layers)

    def __call__(
        self, inputs: EncoderInputs, *, dropout: Dropout | None = None, output_hidden_states: bool = False
    ) -> EncoderOutput:
        """Return the hidden states of token sequences; with `output_hidden_states` also those of every layer."""
        config = self.config
        mask = AttentionMask(inputs.segment_ids, inputs.position_ids, direction=config.attention_direction)
        layer = BertLayer(config, parent=None)

        def apply_layer(hidden: Float[Array, "B T D"], params: Any, index: Int[Array, ""]) -> Float[Array, "B T D"]:
            at_layer = None if dropout is None else dropout.at_layer(index)
            return cast(Array, layer.apply({"params": params}, hidden, mask=mask, dropout=at_layer))

        embedded, words = self.embeddings(inputs, dropout=dropout)
        hidden, states = apply_layers(
            apply_layer,
            embedded,
            params=nn.meta.unbox(self.get_variable("params", "layers")),
            config=config,
            output_hidden_states=output_hidden_states,
        )
        return EncoderOutput(hidden=hidden, word_embeddings=words, all_hidden=states)
