"""The ModernBERT encoder (Warner et al. 2024; modeling_modernbert.py of transformers).

It has pre-LayerNorm without biases (layer 0 has no norm before its attention, because the embeddings are normalized),
rotary positions, a gated feed-forward network, and global attention in every n-th layer; the others attend to a window.
Queries, keys and values are three matmuls, as in BERT, and so are gate and input of the feed-forward network: both
split over devices along heads and inner layer. HuggingFace's files have one matrix for each (`names.py`).
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.model.activations import ACTIVATIONS
from bert_jax.model.attention import AttentionMask, attend
from bert_jax.model.dense import Dense
from bert_jax.model.dropout import Dropout
from bert_jax.model.embedding import tied_lookup, word_table
from bert_jax.model.layer_groups import apply_layer_groups
from bert_jax.model.layer_norm import LayerNorm
from bert_jax.model.layers import init_layers
from bert_jax.model.projection import Projection, project
from bert_jax.model.rotation import Rotation
from bert_jax.types import EncoderInputs, EncoderOutput, Projections

# Dropout sites, in the embeddings and in a layer.
_EMBEDDINGS, _ATTENTION_PROBS, _ATTENTION_OUTPUT, _MLP = range(4)


def output_stddev(config: ModelConfig) -> float:
    """Return the initial standard deviation of the matrices whose output is added to the residual stream."""
    return config.initializer_range / math.sqrt(2 * config.num_hidden_layers)


class Embeddings(nn.Module):
    """The word embeddings, normalized, with dropout."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, inputs: EncoderInputs, *, dropout: Dropout | None
    ) -> tuple[Float[Array, "B T D"], Float[Array, "R D"]]:
        """Return the embedded tokens, and the word embeddings for a head that is tied to them."""
        config = self.config
        table = nn.with_logical_constraint(word_table(self, config=config), ("padded_vocab", None))
        hidden, words = tied_lookup(table, inputs.input_ids)
        hidden = LayerNorm(config, use_bias=False, name="layer_norm")(hidden)
        if dropout is not None:
            hidden = dropout.apply(hidden, rate=config.hidden_dropout_prob, site=_EMBEDDINGS)
        return nn.with_logical_constraint(hidden, ("batch", "length", None)), words


class ModernBertLayer(nn.Module):
    """Self-attention and the gated feed-forward network, each after a norm and added to its input."""

    config: ModelConfig
    has_attention_norm: bool = True

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B T D"], *, mask: AttentionMask, rotation: Rotation, dropout: Dropout | None
    ) -> Float[Array, "B T D"]:
        """Return the hidden states after this layer."""
        hidden = hidden + self._attention(hidden, mask=mask, rotation=rotation, dropout=dropout)
        hidden = hidden + self._feed_forward(hidden, dropout=dropout)
        return nn.with_logical_constraint(hidden, ("batch", "length", None))

    def _attention(
        self, hidden: Float[Array, "B T D"], *, mask: AttentionMask, rotation: Rotation, dropout: Dropout | None
    ) -> Float[Array, "B T D"]:
        config = self.config
        if self.has_attention_norm:
            hidden = LayerNorm(config, use_bias=False, name="attention_layer_norm")(hidden)
        attended = attend(
            Projection(config, use_bias=False, name="query")(hidden, rotation=rotation),
            key=Projection(config, use_bias=False, name="key")(hidden, rotation=rotation),
            value=Projection(config, use_bias=False, name="value")(hidden),
            mask=mask,
            dropout=dropout,
            rate=config.attention_probs_dropout_prob,
            site=_ATTENTION_PROBS,
            implementation=config.attention_implementation,
        )
        output = self._dense(config.hidden_size, ("heads", "embed"), "attention_output", stddev=output_stddev(config))
        attended = output(attended.reshape(hidden.shape))
        if dropout is None:
            return attended
        # HuggingFace's `attention_dropout` is the rate of both: of the probabilities and of the output.
        return dropout.apply(attended, rate=config.attention_probs_dropout_prob, site=_ATTENTION_OUTPUT)

    def _feed_forward(self, hidden: Float[Array, "B T D"], *, dropout: Dropout | None) -> Float[Array, "B T D"]:
        config = self.config
        hidden = LayerNorm(config, use_bias=False, name="mlp_layer_norm")(hidden)
        inner = self._dense(config.intermediate_size, ("embed", "mlp"), "intermediate")(hidden)
        gate = self._dense(config.intermediate_size, ("embed", "mlp"), "gate")(hidden)
        inner = nn.with_logical_constraint(ACTIVATIONS[config.hidden_act](inner) * gate, ("batch", "length", "mlp"))
        if dropout is not None:
            inner = dropout.apply(inner, rate=config.hidden_dropout_prob, site=_MLP)
        return self._dense(config.hidden_size, ("mlp", "embed"), "output", stddev=output_stddev(config))(inner)

    def _dense(
        self, features: int, names: tuple[str | None, str | None], name: str, *, stddev: float | None = None
    ) -> Dense:
        return Dense(self.config, features, names=names, use_bias=False, stddev=stddev, name=name)


def projections(config: ModelConfig, layer: Mapping[str, Any], hidden: Float[Array, "B T D"]) -> Projections:
    """Return queries, keys and values of the layer with the parameters `layer`, into which `hidden` goes."""
    norm = layer["attention_layer_norm"]
    if norm["scale"] is not None:  # layer 0 has none
        hidden = cast(Array, LayerNorm(config, use_bias=False, parent=None).apply({"params": norm}, hidden))
    return project(config, layer, hidden, use_bias=False)


class ModernBertEncoder(nn.Module):
    """The embeddings, all layers and the final norm."""

    config: ModelConfig

    def setup(self) -> None:
        """Create the embeddings, the final norm and the stacked parameters of the layers."""
        self.embeddings = Embeddings(self.config)
        self.final_layer_norm = LayerNorm(self.config, use_bias=False)
        if self.is_initializing():
            self.param("layers", self._init_layers)

    def _init_layers(self, key: jax.Array) -> Any:
        hidden, one = jnp.zeros((1, 1, self.config.hidden_size)), jnp.zeros((1, 1), jnp.int32)
        mask, rotation = self._kinds(one, one)[0]
        layer = ModernBertLayer(self.config, parent=None)

        def init(key: jax.Array) -> Any:
            return layer.init(key, hidden, mask=mask, rotation=rotation, dropout=None)["params"]

        layers = init_layers(init, key, count=self.config.num_hidden_layers)
        after_first = jax.tree.map(lambda leaf: leaf[1:], layers["attention_layer_norm"])
        return {**layers, "attention_layer_norm": after_first}

    def _kinds(
        self, segment_ids: Int[Array, "B T"], position_ids: Int[Array, "B T"]
    ) -> tuple[tuple[AttentionMask, Rotation], tuple[AttentionMask, Rotation]]:
        """Return mask and rotation of the layers with global attention, and of those with a window."""
        config = self.config
        size = config.hidden_size // config.num_attention_heads

        def kind(window: int, theta: float) -> tuple[AttentionMask, Rotation]:
            mask = AttentionMask(segment_ids, position_ids, direction=config.attention_direction, window=window)
            return mask, Rotation.create(position_ids, head_size=size, base=theta)

        return kind(0, config.global_rope_theta), kind(config.local_attention // 2, config.local_rope_theta)

    def __call__(
        self, inputs: EncoderInputs, *, dropout: Dropout | None = None, output_hidden_states: bool = False
    ) -> EncoderOutput:
        """Return the hidden states of token sequences; with `output_hidden_states` also those of every layer.

        The states of the last layer are those after the final norm, as in transformers 5.
        """
        config = self.config
        everywhere, window = self._kinds(inputs.segment_ids, inputs.position_ids)

        def apply_layer(
            hidden: Float[Array, "B T D"], params: Any, index: Int[Array, ""], *, place: int
        ) -> Float[Array, "B T D"]:
            mask, rotation = window if place else everywhere
            has_norm = params["attention_layer_norm"]["scale"] is not None
            layer = ModernBertLayer(config, has_attention_norm=has_norm, parent=None)
            at_layer = None if dropout is None else dropout.at_layer(index)
            return cast(Array, layer.apply({"params": params}, hidden, mask=mask, rotation=rotation, dropout=at_layer))

        embedded, words = self.embeddings(inputs, dropout=dropout)
        hidden, states = apply_layer_groups(
            apply_layer,
            embedded,
            params=nn.meta.unbox(self.get_variable("params", "layers")),
            config=config,
            period=config.global_attn_every_n_layers,
            output_hidden_states=output_hidden_states,
        )
        hidden = self.final_layer_norm(hidden)
        if states is not None:
            states = jnp.concatenate([states[:-1], hidden[None]])
        return EncoderOutput(hidden=hidden, word_embeddings=words, all_hidden=states)
