"""A second architecture, for tests: pre-norm, rotary positions, gated feed-forward, no biases but the decoder's.

It has no position table, no token types and no head for the next sentence. All it needs of the package is the shared
blocks of `bert_jax/model/` and a line in the table of architectures, which tests add.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from bert_jax.config import ModelConfig
from bert_jax.model.activations import activate
from bert_jax.model.architecture import Architecture, HuggingFaceFormat
from bert_jax.model.attention import AttentionMask, attend
from bert_jax.model.dense import Dense, kernel_init
from bert_jax.model.dropout import Dropout
from bert_jax.model.embedding import tied_logits, tied_lookup
from bert_jax.model.huggingface_fields import check_heads, read_activation, read_fraction, read_size
from bert_jax.model.layer_norm import LayerNorm
from bert_jax.model.layers import apply_layers, init_layers
from bert_jax.model.parameter_names import Entry, NameTable
from bert_jax.model.projection import Projection
from bert_jax.model.rotation import Rotation
from bert_jax.types import LAYERS, EncoderInputs, EncoderOutput

THETA = 10_000.0
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SHAPE_FIELDS = (*_SIZES, "max_position_embeddings", "hidden_act", "layer_norm_eps")


def bias_free(config: ModelConfig, features: int, names: tuple[str | None, str | None], name: str) -> Dense:
    return Dense(config, features, names=names, use_bias=False, name=name)


class ToyLayer(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: Array, *, mask: AttentionMask, rotation: Rotation, dropout: Dropout | None) -> Array:
        config = self.config
        normal = LayerNorm(config, use_bias=False, name="attention_layer_norm")(hidden)
        attended = attend(
            Projection(config, use_bias=False, name="query")(normal, rotation=rotation),
            key=Projection(config, use_bias=False, name="key")(normal, rotation=rotation),
            value=Projection(config, use_bias=False, name="value")(normal),
            mask=mask,
            dropout=dropout,
            rate=config.attention_probs_dropout_prob,
            site=1,
            implementation=config.attention_implementation,
        )
        output = bias_free(config, config.hidden_size, ("heads", "embed"), "attention_output")
        hidden += output(attended.reshape(hidden.shape))
        normal = LayerNorm(config, use_bias=False, name="mlp_layer_norm")(hidden)
        both = bias_free(config, 2 * config.intermediate_size, ("embed", "mlp"), "intermediate")(normal)
        inner, gate = jnp.split(both, 2, axis=-1)
        inner = activate(config.hidden_act, inner, None) * gate
        return hidden + bias_free(config, config.hidden_size, ("mlp", "embed"), "output")(inner)


class ToyEncoder(nn.Module):
    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        init = kernel_init(config, ("vocab", "embed"))
        self.word_embeddings = self.param("word_embeddings", init, (config.vocab_size, config.hidden_size))
        self.final_layer_norm = LayerNorm(config, use_bias=False)
        if self.is_initializing():
            self.param("layers", self._init_layers)

    def _init_layers(self, key: Array) -> Any:
        hidden, one = jnp.zeros((1, 1, self.config.hidden_size)), jnp.zeros((1, 1), jnp.int32)
        layer, mask = ToyLayer(self.config, parent=None), AttentionMask(one, one, direction="bidirectional")

        def init(key: Array) -> Any:
            return layer.init(key, hidden, mask=mask, rotation=self._rotation(one), dropout=None)["params"]

        return init_layers(init, key, count=self.config.num_hidden_layers)

    def _rotation(self, position_ids: Array) -> Rotation:
        size = self.config.hidden_size // self.config.num_attention_heads
        return Rotation.create(position_ids, head_size=size, base=THETA)

    def __call__(
        self, inputs: EncoderInputs, *, dropout: Dropout | None = None, output_hidden_states: bool = False
    ) -> EncoderOutput:
        mask = AttentionMask(inputs.segment_ids, inputs.position_ids, direction="bidirectional")
        rotation, layer = self._rotation(inputs.position_ids), ToyLayer(self.config, parent=None)

        def apply_layer(hidden: Array, params: Any, index: Array) -> Array:
            at_layer = None if dropout is None else dropout.at_layer(index)
            return cast(Array, layer.apply({"params": params}, hidden, mask=mask, rotation=rotation, dropout=at_layer))

        embedded, words = tied_lookup(cast(Array, self.word_embeddings), inputs.input_ids)
        hidden, states = apply_layers(
            apply_layer,
            embedded.astype(self.config.dtype),
            params=nn.meta.unbox(self.get_variable("params", "layers")),
            config=self.config,
            output_hidden_states=output_hidden_states,
        )
        return EncoderOutput(hidden=self.final_layer_norm(hidden), word_embeddings=words, all_hidden=states)


class ToyTransform(nn.Module):
    """What its classifiers read: a dense layer, an activation, a norm."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        product = bias_free(self.config, self.config.hidden_size, ("embed", None), "dense")(hidden)
        return LayerNorm(self.config, use_bias=False, name="layer_norm")(
            activate(self.config.hidden_act, product, None)
        )


class ToyMaskedLMHead(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: Array, *, word_embeddings: Array) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
        bias = cast(Array, self.param("bias", init, (self.config.vocab_size,)))
        return tied_logits(hidden, word_embeddings.astype(self.config.dtype), bias)


def _matrix(ours: str, huggingface: str, *axes: str) -> Entry:
    return Entry(f"{ours}/kernel", f"{huggingface}.weight", "", axes, huggingface_transposed=True)


def _scale(ours: str, huggingface: str) -> Entry:
    return Entry(f"{ours}/scale", f"{huggingface}.weight", "", ("D",))


_LAYER = "model.layers.{layer}"
NAMES = NameTable(
    (
        Entry("encoder/word_embeddings", "model.tok_embeddings.weight", "", ("V", "D")),
        _scale(f"{LAYERS}attention_layer_norm", f"{_LAYER}.attn_norm"),
        *(_matrix(f"{LAYERS}{name}", f"{_LAYER}.attn.{name}", "D", "D") for name in ("query", "key", "value")),
        _matrix(f"{LAYERS}attention_output", f"{_LAYER}.attn.Wo", "D", "D"),
        _scale(f"{LAYERS}mlp_layer_norm", f"{_LAYER}.mlp_norm"),
        _matrix(f"{LAYERS}intermediate", f"{_LAYER}.mlp.Wi", "D", "2F"),
        _matrix(f"{LAYERS}output", f"{_LAYER}.mlp.Wo", "F", "D"),
        _scale("encoder/final_layer_norm", "model.final_norm"),
        _matrix("pooler/dense", "head.dense", "D", "D"),
        _scale("pooler/layer_norm", "head.norm"),
        Entry("masked_lm/bias", "decoder.bias", "", ("V",)),
        Entry("classifier/kernel", "classifier.weight", "", ("D", "C"), huggingface_transposed=True),
        Entry("classifier/bias", "classifier.bias", "", ("C",)),
    ),
    prefix="model.",
    tied={"decoder.weight": "model.tok_embeddings.weight"},
)


def read_fields(fields: Mapping[str, Any], file: Path) -> ModelConfig:
    values: dict[str, Any] = {name: read_size(fields, name, file=file) for name in _SIZES}
    check_heads(values, file=file)
    return ModelConfig(
        architecture="toy",
        **values,
        max_position_embeddings=read_size(fields, "max_position_embeddings", file=file),
        hidden_act=read_activation(fields, "hidden_activation", file=file),
        layer_norm_eps=read_fraction(fields, "norm_eps", file=file, default=1e-5),
        initializer_range=read_fraction(fields, "initializer_range", file=file, default=0.02),
        type_vocab_size=1,
        dtype="float32",
    )


def write_fields(model: ModelConfig) -> dict[str, Any]:
    fields = {name: getattr(model, name) for name in (*_SIZES, "max_position_embeddings")}
    more = {"hidden_activation": model.hidden_act, "norm_eps": model.layer_norm_eps}
    return fields | more | {"initializer_range": model.initializer_range}


def train_flops_per_row(
    model: ModelConfig,
    *,
    max_seq_length: int,
    max_predictions: int,
    instances: int | float = 1,
    attended_share: float = 1.0,
) -> float:
    width, inner, length = model.hidden_size, model.intermediate_size, max_seq_length
    layer = 6 * length * (4 * width**2 + 3 * width * inner) + 12 * attended_share * length**2 * width
    return float(model.num_hidden_layers * layer + 6 * max_predictions * model.vocab_size * width)


def outputs(
    tensors: Mapping[str, np.ndarray], *, config: Mapping[str, Any], input_ids: np.ndarray, token_type_ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the toy's outputs in float64, by complex numbers where the model turns pairs."""
    prefix = "model." if any(name.startswith("model.") for name in tensors) else ""
    heads, count = config["num_attention_heads"], len(input_ids)
    size = config["hidden_size"] // heads

    def get(name: str) -> np.ndarray:
        return tensors[name].astype(np.float64)

    def norm(values: np.ndarray, name: str) -> np.ndarray:
        centered = values - values.mean(-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + config["norm_eps"]) * get(f"{name}.weight")

    def gelu(values: np.ndarray) -> np.ndarray:
        return 0.5 * values * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))

    def turn(values: np.ndarray) -> np.ndarray:
        angles = np.arange(count)[:, None] / THETA ** (np.arange(0, size, 2) / size)
        turned = (values[..., : size // 2] + 1j * values[..., size // 2 :]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], -1)

    hidden = get(f"{prefix}tok_embeddings.weight")[input_ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"{prefix}layers.{layer}"
        normal = norm(hidden, f"{at}.attn_norm")
        query, key, value = (
            (normal @ get(f"{at}.attn.{name}.weight").T).reshape(count, heads, size).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        weights = np.exp(turn(query) @ turn(key).swapaxes(1, 2) / math.sqrt(size))
        attended = (weights / weights.sum(-1, keepdims=True)) @ value
        hidden = hidden + attended.swapaxes(0, 1).reshape(hidden.shape) @ get(f"{at}.attn.Wo.weight").T
        inner, gate = np.split(norm(hidden, f"{at}.mlp_norm") @ get(f"{at}.mlp.Wi.weight").T, 2, -1)
        hidden = hidden + (gelu(inner) * gate) @ get(f"{at}.mlp.Wo.weight").T
    found = {"hidden": norm(hidden, f"{prefix}final_norm")}
    if "decoder.bias" in tensors:
        found["masked_lm"] = found["hidden"] @ get("model.tok_embeddings.weight").T + get("decoder.bias")
    if "classifier.weight" in tensors:
        pooled = norm(gelu(found["hidden"][0] @ get("head.dense.weight").T), "head.norm")
        found["classifier"] = pooled @ get("classifier.weight").T + get("classifier.bias")
    return found


TOY = Architecture(
    name="toy",
    title="toy",
    citation="nowhere",
    encoder=ToyEncoder,
    heads={"pooler": ToyTransform, "masked_lm": ToyMaskedLMHead},
    names=NAMES,
    shape_fields=SHAPE_FIELDS,
    train_flops_per_row=train_flops_per_row,
    huggingface=HuggingFaceFormat(
        class_prefix="Toy",
        classes={
            "ToyForPreTraining": ("encoder", "masked_lm"),
            "ToyModel": ("encoder",),
            "ToyForSequenceClassification": ("encoder", "pooler", "classifier"),
        },
        read_fields=read_fields,
        write_fields=write_fields,
        outputs=outputs,
    ),
)


def toy_model(**changes: Any) -> ModelConfig:
    """Return two layers of width 32 in float32, with weights large enough to matter."""
    return ModelConfig(
        architecture="toy",
        **{
            "vocab_size": 101,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "type_vocab_size": 1,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "initializer_range": 0.2,
            "dtype": "float32",
            **changes,
        },
    )


def random_params(module: nn.Module, *, inputs: EncoderInputs, **arguments: Any) -> Any:
    """Return parameters none of which is at its initial value."""
    params = jax.jit(lambda: nn.meta.unbox(module.init(jax.random.key(0), inputs, **arguments)["params"]))()
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(0, 0.1, leaf.shape).astype(np.float32), params)
