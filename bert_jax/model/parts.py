"""The forward pass of all parts that a model has, without dropout."""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.model.architectures import architecture_of
from bert_jax.model.bilstm import BILSTM, bilstm_of
from bert_jax.model.heads import gather, pool_instances
from bert_jax.types import EncoderInputs


@struct.dataclass
class Outputs:
    """The float32 outputs of each part; None if the model lacks the part or it was not requested.

    Column 1 of `next_sentence` means random. `classifier` is [B, C], or [B, T, C] for the classes of tokens.
    `qa_outputs` has the logits of start and end.
    """

    hidden: Float[Array, "B T D"]
    all_hidden: Float[Array, "n B T D"] | None = None  # n = L + 1, the embeddings first
    pooled: Float[Array, "B D"] | None = None
    masked_lm: Float[Array, "B P V"] | None = None
    next_sentence: Float[Array, "B 2"] | None = None
    classifier: Float[Array, "B C"] | Float[Array, "B T C"] | None = None
    qa_outputs: Float[Array, "B T 2"] | None = None


def apply_parts(
    params: Mapping[str, Any],
    inputs: EncoderInputs,
    *,
    model: ModelConfig,
    positions: Int[Array, "B P"] | None = None,
    output_hidden_states: bool = False,
    classify_tokens: bool = False,
) -> Outputs:
    """Return the outputs of every part in `params`; the masked LM is computed only at `positions`.

    `classify_tokens` distinguishes the classifier of tokens from that of sequences where both have the same parts.
    """
    architecture = architecture_of(model)

    def apply(part: str, *args: Any, **options: Any) -> Any:
        module = architecture.encoder if part == "encoder" else architecture.heads[part]
        return module(model).apply({"params": params[part]}, *args, **options)

    encoded = apply("encoder", inputs, output_hidden_states=output_hidden_states)
    hidden: Array = encoded.hidden
    if BILSTM in params:
        bilstm = bilstm_of(model.hidden_size, num_layers=len(params[BILSTM]) // 2)  # two directions
        hidden = cast(Array, bilstm.apply({"params": params[BILSTM]}, hidden, segment_ids=inputs.segment_ids))
    values: dict[str, Any] = {}

    def read(states: Float[Array, "B n D"]) -> Float[Array, "B n D"]:
        """Return what the masked LM and the classifiers read."""
        return cast(Array, apply("transform", states)) if "transform" in params else states

    position = _pooled_position(inputs, direction=model.attention_direction)
    if "pooler" in params:
        values["pooled"] = apply("pooler", jnp.take_along_axis(hidden, position[..., None], axis=1))[:, 0]
    if "masked_lm" in params and positions is not None:
        words = encoded.word_embeddings
        values["masked_lm"] = apply("masked_lm", read(gather(hidden, positions)), word_embeddings=words)
    if "next_sentence" in params and "pooler" in params:
        values["next_sentence"] = apply("next_sentence", values["pooled"][:, None])[:, 0]
    if "classifier" in params:
        if "pooled" in values:
            states = values["pooled"]
        elif classify_tokens or "transform" not in params:
            states = read(hidden)
        else:
            pooled = pool_instances(
                hidden, cls_positions=position, segment_ids=inputs.segment_ids, pooling=model.classifier_pooling
            )
            states = read(pooled)[:, 0]
        values["classifier"] = _linear(params["classifier"], states)
    if "qa_outputs" in params:
        values["qa_outputs"] = _linear(params["qa_outputs"], read(hidden))
    return Outputs(hidden=hidden, all_hidden=encoded.all_hidden, **values)


def _pooled_position(inputs: EncoderInputs, *, direction: str) -> Int[Array, "B 1"]:
    """Return the position that is read of sequences of one instance (`rows/layout.py`, `pooled_positions`)."""
    lengths = (inputs.segment_ids > 0).sum(1, keepdims=True, dtype=jnp.int32)
    return jnp.maximum(lengths - 1, 0) if direction == "left_to_right" else jnp.zeros_like(lengths)


def _linear(params: Mapping[str, Any], values: Float[Array, "*n D"]) -> Float[Array, "*n C"]:
    return (values @ params["kernel"] + jax.lax.broadcast_to_rank(params["bias"], values.ndim)).astype(jnp.float32)


def to_device(params: Any) -> Any:
    """Return the parameters on the default device."""
    return jax.tree.map(jnp.asarray, params)
