"""Bidirectional LSTMs over sequences of one or several instances, each as PyTorch's `nn.LSTM` computes it alone."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from bert_jax.model.parameter_names import flatten

BILSTM = "bilstm"  # the part of a fine-tuned model between encoder and head


def run_lstm(
    cell: nn.OptimizedLSTMCell, values: Float[Array, "B T D"], *, begins: Bool[Array, "B T"], reverse: bool = False
) -> Float[Array, "B T H"]:
    """Return the outputs of an LSTM from left to right or in `reverse`; its state is 0 where an instance `begins`."""

    def step(cell: nn.OptimizedLSTMCell, carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple:
        value, is_first = inputs
        carry = jax.tree.map(lambda state: jnp.where(is_first[:, None], 0, state), carry)
        return cell(carry, value)

    scan = nn.scan(
        step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1, reverse=reverse
    )
    zeros = jnp.zeros((len(values), cell.features), jnp.float32)
    _, outputs = scan(cell, (zeros, zeros), (values, begins))
    return outputs


def instance_begins(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Return whether a position is the first of its instance, or of the padding."""
    return jnp.diff(segment_ids, axis=1, prepend=-1) != 0


def instance_ends(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Return whether a position is the last of its instance, or of the padding."""
    return jnp.diff(segment_ids, axis=1, append=-1) != 0


def bilstm_layer(
    values: Float[Array, "B T D"],
    *,
    segment_ids: Int[Array, "B T"],
    cells: tuple[nn.OptimizedLSTMCell, nn.OptimizedLSTMCell],
) -> Float[Array, "B T H"]:
    """Return the outputs of one layer, forward ones first; segment 0 is padding."""
    forward = run_lstm(cells[0], values, begins=instance_begins(segment_ids))
    backward = run_lstm(cells[1], values, begins=instance_ends(segment_ids), reverse=True)
    return jnp.concatenate([forward, backward], axis=-1)


class BiLSTM(nn.Module):
    """Layers of two LSTMs of `hidden_size`; the parameters of layer l are in `forward_l` and `backward_l`."""

    hidden_size: int
    num_layers: int

    @nn.compact
    def __call__(self, values: Float[Array, "B T D"], *, segment_ids: Int[Array, "B T"]) -> Float[Array, "B T H"]:
        """Return the outputs of the last layer, of twice `hidden_size`."""
        for layer in range(self.num_layers):
            forward, backward = (
                nn.OptimizedLSTMCell(self.hidden_size, name=f"{direction}_{layer}")
                for direction in ("forward", "backward")
            )
            values = bilstm_layer(values, segment_ids=segment_ids, cells=(forward, backward))
        return values


def bilstm_of(width: int, *, num_layers: int) -> BiLSTM:
    """Return the BiLSTM between an encoder of `width` and a head, which reads states of the same width."""
    return BiLSTM(width // 2, num_layers)


def bilstm_shapes(width: int, *, num_layers: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of `bilstm_of` by its slash-joined name."""
    module, one = bilstm_of(width, num_layers=num_layers), jnp.zeros((1, 1), jnp.int32)
    init = functools.partial(module.init, segment_ids=one)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1, width)))["params"]
    return {name: leaf.shape for name, leaf in flatten(shapes).items()}
