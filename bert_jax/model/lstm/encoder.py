"""A language model's LSTM layers in one direction, and two of them, which never see each other, next to each other."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.errors import UserError
from bert_jax.model.bilstm import instance_begins, instance_ends, run_lstm
from bert_jax.model.dense import kernel_init
from bert_jax.model.dropout import Dropout
from bert_jax.model.embedding import tied_lookup
from bert_jax.model.layers import apply_layers, init_layers
from bert_jax.types import EncoderInputs, EncoderOutput

_EMBEDDINGS, _OUTPUT = range(2)  # dropout sites, in the embeddings and in a layer


class LstmLayer(nn.Module):
    """An LSTM as wide as its input, and dropout on its output."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B T D"], *, segment_ids: Int[Array, "B T"], dropout: Dropout | None
    ) -> Float[Array, "B T D"]:
        """Return the outputs; instances are independent."""
        config, reverse = self.config, self.config.attention_direction == "right_to_left"
        begins = instance_ends(segment_ids) if reverse else instance_begins(segment_ids)
        cell = nn.OptimizedLSTMCell(config.hidden_size, name="lstm")
        hidden = run_lstm(cell, hidden, begins=begins, reverse=reverse).astype(config.dtype)
        if dropout is not None:
            hidden = dropout.apply(hidden, rate=config.hidden_dropout_prob, site=_OUTPUT)
        return nn.with_logical_constraint(hidden, ("batch", "length", None))


class LstmEncoder(nn.Module):
    """Word embeddings and LSTM layers that read from left to right, or from right to left."""

    config: ModelConfig

    def setup(self) -> None:
        """Create the embeddings and the stacked parameters of the layers.

        Raises:
          UserError: if the config names no direction.
        """
        config = self.config
        if config.attention_direction == "bidirectional":
            raise UserError(
                "config.model.architecture=lstm reads in one direction: set --config.model.attention_direction="
                "left_to_right or right_to_left, and --config.train.objective=causal"
            )
        init = kernel_init(config, ("vocab", "embed"))
        self.word_embeddings = self.param("word_embeddings", init, (config.vocab_size, config.hidden_size))
        if self.is_initializing():
            self.param("layers", self._init_layers)

    def _init_layers(self, key: jax.Array) -> Any:
        sample: dict[str, Any] = {
            "hidden": jnp.zeros((1, 1, self.config.hidden_size)),
            "segment_ids": jnp.zeros((1, 1), jnp.int32),
        }
        layer = LstmLayer(self.config, parent=None)
        return init_layers(
            lambda k: layer.init(k, **sample, dropout=None)["params"], key, count=self.config.num_hidden_layers
        )

    def __call__(
        self, inputs: EncoderInputs, *, dropout: Dropout | None = None, output_hidden_states: bool = False
    ) -> EncoderOutput:
        """Return the hidden states of token sequences; with `output_hidden_states` also those of every layer."""
        config = self.config
        layer = LstmLayer(config, parent=None)

        def apply_layer(hidden: Float[Array, "B T D"], params: Any, index: Int[Array, ""]) -> Float[Array, "B T D"]:
            at_layer = None if dropout is None else dropout.at_layer(index)
            output = layer.apply({"params": params}, hidden, segment_ids=inputs.segment_ids, dropout=at_layer)
            return cast(Array, output)

        table = nn.with_logical_constraint(cast(Array, self.word_embeddings), ("vocab", None))
        embedded, words = tied_lookup(table, inputs.input_ids)
        if dropout is not None:
            embedded = dropout.apply(embedded, rate=config.hidden_dropout_prob, site=_EMBEDDINGS)
        hidden, states = apply_layers(
            apply_layer,
            nn.with_logical_constraint(embedded.astype(config.dtype), ("batch", "length", None)),
            params=nn.meta.unbox(self.get_variable("params", "layers")),
            config=config,
            output_hidden_states=output_hidden_states,
        )
        return EncoderOutput(hidden=hidden, word_embeddings=words, all_hidden=states)


class LstmPairEncoder(nn.Module):
    """Two models' LSTMs, one per direction, of half the width each; every state is the concatenation of theirs."""

    config: ModelConfig

    def setup(self) -> None:
        """Create both."""
        self.forward = LstmEncoder(one_of_pair(self.config, direction="left_to_right"))
        self.backward = LstmEncoder(one_of_pair(self.config, direction="right_to_left"))

    def __call__(
        self, inputs: EncoderInputs, *, dropout: Dropout | None = None, output_hidden_states: bool = False
    ) -> EncoderOutput:
        """Return the concatenated states, those of the left-to-right model first."""
        both = [
            encoder(inputs, dropout=dropout, output_hidden_states=output_hidden_states)
            for encoder in (self.forward, self.backward)
        ]
        return cast(EncoderOutput, jax.tree.map(lambda *states: jnp.concatenate(states, axis=-1), *both))


def one_of_pair(config: ModelConfig, *, direction: str) -> ModelConfig:
    """Return the config of one of the models of a pair."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(ModelConfig)}
    width = {"hidden_size": config.hidden_size // 2, "attention_direction": direction, "architecture": "lstm"}
    return ModelConfig(**{**fields, **width})
