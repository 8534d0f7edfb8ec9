"""The training step of HuggingFace Flax's `FlaxBertForPreTraining` as its users write it, for `tpu_step.py`.

The step follows the documentation and the language-modeling example of transformers 4.57.6, the last version with Flax
models:

* the class with its defaults: erf GELU, dropout 0.1, attention dropout shared by sequences and heads, JAX's default
  random numbers; `dtype=bfloat16`;
* float32 parameters, `optax.adamw`, a donated state;
* masked-LM logits at all positions against one-hot labels, plus the next-sentence loss;
* data parallelism: replicated state, sharded batch, gradients reduced by the compiler.
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.config import ModelConfig

_SHAPE = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    "type_vocab_size hidden_dropout_prob attention_probs_dropout_prob"
)


class State(struct.PyTreeNode):
    """The training state."""

    params: Any
    opt_state: Any
    dropout_rng: jax.Array


def lower_step(
    shape: ModelConfig,
    *,
    devices: Any,
    batch_size: int,
    max_seq_length: int,
    hidden_act: str = "gelu",
    prng: str = "threefry2x32",
    remat: bool = False,
) -> jax.stages.Lowered:
    """Return the step on `batch_size` sequences over all `devices`, lowered from shapes only."""
    transformers: Any = importlib.import_module("transformers")
    config = transformers.BertConfig(hidden_act=hidden_act, **{name: getattr(shape, name) for name in _SHAPE.split()})
    model = transformers.FlaxBertForPreTraining(
        config, dtype=jnp.bfloat16, _do_init=False, gradient_checkpointing=remat
    )
    optimizer = optax.adamw(1e-4, weight_decay=0.01)

    def init() -> State:
        params = model.init_weights(jax.random.key(0), (1, 1))
        return State(params, optimizer.init(params), jax.random.key(0, impl=prng))

    def loss_of(params: Any, batch: dict[str, jax.Array], dropout_rng: jax.Array) -> jax.Array:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        output = model(**inputs, params=params, dropout_rng=dropout_rng, train=True)
        labels, answers = batch["labels"], batch["next_sentence_label"]
        is_masked = labels >= 0  # -100 elsewhere
        losses = optax.softmax_cross_entropy(output.prediction_logits, jax.nn.one_hot(labels, config.vocab_size))
        next_sentence = optax.softmax_cross_entropy(output.seq_relationship_logits, jax.nn.one_hot(answers, 2))
        return (losses * is_masked).sum() / is_masked.sum() + next_sentence.mean()

    def step(state: State, batch: dict[str, jax.Array]) -> tuple[State, jax.Array]:
        dropout_rng, next_rng = jax.random.split(state.dropout_rng)
        loss, gradients = jax.value_and_grad(loss_of)(state.params, batch, dropout_rng)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state, next_rng), loss

    mesh = Mesh(np.asarray(devices).reshape(-1), ("data",), axis_types=(AxisType.Auto,))
    whole, by_row = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    state = jax.eval_shape(init)
    ids = jax.ShapeDtypeStruct((batch_size, max_seq_length), jnp.int32)
    answers = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    batch = {
        "input_ids": ids,
        "attention_mask": ids,
        "token_type_ids": ids,
        "labels": ids,
        "next_sentence_label": answers,
    }
    jitted = jax.jit(step, donate_argnums=0, in_shardings=(whole, by_row), out_shardings=whole)
    return jitted.lower(state, batch)
