"""The BERT encoder (Devlin et al. 2018, section 3; modeling.py of google-research/bert), to be read top to bottom.

Post-LayerNorm, learned positions, dropout on the embeddings, the attention probabilities and each sub-layer's output.
Parameters are float32; `config.dtype` is the dtype of matmuls and of activations between them; LayerNorm and softmax
run in float32. The parameters of all layers are stacked along a leading `layers` axis, whether they are scanned or
unrolled, so there is one checkpoint layout.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.model.activations import activate
from bert_jax.model.attention import AttentionMask, Projected, attend
from bert_jax.model.dense import Dense, kernel_init, product_and_bias
from bert_jax.model.dropout import Dropout
from bert_jax.model.embedding import lookup, tied_lookup
from bert_jax.model.normalization import layer_norm
from bert_jax.model.residual_norm import Sublayer, residual_norm
from bert_jax.types import EncoderInputs, EncoderOutput

# What the backward pass may keep: "dots" keeps the results of the weight matmuls and recomputes the rest.
REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Places that drop, within the embeddings or within a layer.
_EMBEDDINGS, _ATTENTION_PROBS, _ATTENTION_OUTPUT, _MLP_OUTPUT = range(4)


class Projection(nn.Module):
    """Project to the heads by a flat [D, D] matmul, as `Dense` does, but leave the bias to be added by `attend`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Projected:
        """Return the values of each head, and the bias."""
        config = self.config
        heads = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)
        # Three flat matmuls are 9 to 10 K cycles a sequence faster than one joined matmul or einsum on a TPU v5e.
        names = ("embed", "heads")
        flat, bias = product_and_bias(self, hidden, config=config, features=config.hidden_size, names=names)
        values = flat.reshape(flat.shape[:-1] + heads)
        values = nn.with_logical_constraint(values, ("batch", "length", "heads", "head_size"))
        return Projected(values=values, bias=bias.reshape(heads))


class LayerNorm(nn.Module):
    """Normalise over the last axis in one pass: float32 E[x^2] - E[x]^2, which a TPU fuses better than two passes."""

    config: ModelConfig

    def __call__(self, values: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        """Return the normalised values in `config.dtype`."""
        weights = self.weights(values.shape[-1])
        return layer_norm(values, *weights, self.config.layer_norm_eps, self.config.dtype)

    def behind(
        self,
        sublayer: Sublayer,
        *,
        hidden: Float[Array, "B T D"],
        dropout: Dropout | None,
        site: int,
    ) -> Float[Array, "B T D"]:
        """Return the norm of a sub-layer's output, dropped and added to its input `hidden`."""
        config = self.config
        scale, bias = self.weights(hidden.shape[-1])
        return residual_norm(
            sublayer,
            hidden=hidden,
            scale=scale,
            bias=bias,
            eps=config.layer_norm_eps,
            dropout=dropout,
            rate=config.hidden_dropout_prob,
            site=site,
            plain=config.attention_implementation == "reference",
        )

    @nn.compact
    def weights(self, size: int) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
        """Return scale and bias."""
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), (size,))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)), (size,))
        return cast(Array, scale), cast(Array, bias)


class Embeddings(nn.Module):
    """Add word, position and token-type embeddings, normalise, drop."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, inputs: EncoderInputs, *, dropout: Dropout | None
    ) -> tuple[Float[Array, "B T D"], Float[Array, "V D"]]:
        """Return the embedded tokens, and the word embeddings for a head that is tied to them."""
        config = self.config

        def table(name: str, size: int, axis: str | None) -> Any:
            values = self.param(name, kernel_init(config, (axis, "embed")), (size, config.hidden_size))
            return nn.with_logical_constraint(values, (axis, None))  # looking up in parts of rows would move all rows

        hidden, words = tied_lookup(table("word_embeddings", config.vocab_size, "vocab"), inputs.input_ids)
        hidden += lookup(table("position_embeddings", config.max_position_embeddings, None), inputs.position_ids)
        hidden += lookup(table("token_type_embeddings", config.type_vocab_size, None), inputs.token_type_ids)
        hidden = LayerNorm(config, name="layer_norm")(hidden)
        if dropout is not None:
            hidden = dropout.apply(hidden, rate=config.hidden_dropout_prob, site=_EMBEDDINGS)
        return nn.with_logical_constraint(hidden, ("batch", "length", None)), words


class BertLayer(nn.Module):
    """Apply self-attention and the feed-forward network, each with its residual and LayerNorm behind it."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B T D"], *, mask: AttentionMask, dropout: Dropout | None
    ) -> Float[Array, "B T D"]:
        """Return the hidden states behind this layer."""
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
        hidden = LayerNorm(config, name="attention_layer_norm").behind(
            Sublayer(*output.parts(attended.reshape(hidden.shape))),
            hidden=hidden,
            dropout=dropout,
            site=_ATTENTION_OUTPUT,
        )
        intermediate = Dense(config, config.intermediate_size, names=("embed", "mlp"), name="intermediate")
        inner = activate(config.hidden_act, *intermediate.parts(hidden))
        inner = nn.with_logical_constraint(inner, ("batch", "length", "mlp"))
        output = Dense(config, config.hidden_size, names=("mlp", "embed"), name="output")
        hidden = LayerNorm(config, name="output_layer_norm").behind(
            Sublayer(*output.parts(inner)), hidden=hidden, dropout=dropout, site=_MLP_OUTPUT
        )
        return nn.with_logical_constraint(hidden, ("batch", "length", None))


class BertEncoder(nn.Module):
    """Embed the tokens and apply all layers."""

    config: ModelConfig

    def setup(self) -> None:
        """Create the embeddings and the stacked parameters of the layers."""
        self.embeddings = Embeddings(self.config)
        if self.is_initializing():
            self.param("layers", self._init_layers)

    def _init_layers(self, key: jax.Array) -> Any:
        """Return the parameters of one layer with a leading `layers` axis, each layer drawn from its own key."""
        shape = (1, 1, self.config.hidden_size)
        one = jnp.zeros((1, 1), jnp.int32)
        mask = AttentionMask(segment_ids=one, position_ids=one, direction=self.config.attention_direction)
        sample = {"hidden": jnp.zeros(shape), "mask": mask, "dropout": None}
        layer = BertLayer(self.config, parent=None)
        stacked = jax.vmap(lambda k: layer.init(k, **sample)["params"])(
            jax.random.split(key, self.config.num_hidden_layers)
        )
        return nn.meta.add_axis(stacked, 0, {nn.meta.PARTITION_NAME: "layers"})

    def __call__(
        self, inputs: EncoderInputs, *, dropout: Dropout | None = None, output_hidden_states: bool = False
    ) -> EncoderOutput:
        """Encode rows of tokens; with `output_hidden_states` also return the output of every layer.

        The parameters `layers` are stacked over layers, or hold a tuple of the layers' own for each (what a training
        step of unrolled layers passes, so that nothing is stacked).
        """
        config = self.config
        mask = AttentionMask(inputs.segment_ids, inputs.position_ids, direction=config.attention_direction)
        layer = BertLayer(config, parent=None)

        def apply_layer(hidden: Float[Array, "B T D"], params: Any, index: Int[Array, ""]) -> Float[Array, "B T D"]:
            at_layer = None if dropout is None else dropout.at_layer(index)
            return cast(Array, layer.apply({"params": params}, hidden, mask=mask, dropout=at_layer))

        if config.remat != "none":
            apply_layer = jax.checkpoint(apply_layer, policy=REMAT_POLICIES[config.remat])

        embedded, words = self.embeddings(inputs, dropout=dropout)
        layers = nn.meta.unbox(self.get_variable("params", "layers"))
        if config.scan_layers:

            def step(hidden: Array, layer_in: tuple[Any, Array]) -> tuple[Array, Array | None]:
                hidden = apply_layer(hidden, *layer_in)
                return hidden, hidden if output_hidden_states else None

            indices = jnp.arange(config.num_hidden_layers)
            hidden, states = jax.lax.scan(step, embedded, (layers, indices))
        else:
            hidden, outputs = embedded, []
            for index, params in enumerate(_unstack(layers, config.num_hidden_layers)):
                hidden = apply_layer(hidden, params, jnp.asarray(index))
                outputs.append(hidden)
            states = jnp.stack(outputs) if output_hidden_states else None
        if states is not None:
            states = jnp.concatenate([embedded[None], states])
        return EncoderOutput(hidden=hidden, word_embeddings=words, all_hidden=states)


def _unstack(layers: Any, count: int) -> list[Any]:
    """Return the parameters of each layer; `lax.split` has a concatenation for its gradient, indexing a padded sum."""
    leaves, tree = jax.tree.flatten(layers, is_leaf=lambda leaf: isinstance(leaf, tuple))
    split = [
        leaf if isinstance(leaf, tuple) else [part[0] for part in jax.lax.split(leaf, (1,) * count)] for leaf in leaves
    ]
    return [jax.tree.unflatten(tree, [leaf[index] for leaf in split]) for index in range(count)]
