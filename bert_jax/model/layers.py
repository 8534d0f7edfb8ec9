"""A stack of layers: stacked parameters, scanned or unrolled, with or without rematerialization."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from bert_jax.config import ModelConfig

# What the forward pass saves: "dots" saves the results of the weight matmuls and recomputes the rest, "full" saves
# nothing within a layer.
REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

# (hidden states, parameters of one layer, its index) -> hidden states after the layer.
ApplyLayer = Callable[[Float[Array, "B T D"], Any, Int[Array, ""]], Float[Array, "B T D"]]


def init_layers(init: Callable[[Key[Array, ""]], Any], key: Key[Array, ""], *, count: int) -> Any:
    """Return the parameters of `count` layers with a leading `layers` axis; `init` returns those of one layer."""
    stacked = jax.vmap(init)(jax.random.split(key, count))
    return nn.meta.add_axis(stacked, 0, {nn.meta.PARTITION_NAME: "layers"})


def apply_layers(
    apply_layer: ApplyLayer,
    embedded: Float[Array, "B T D"],
    *,
    params: Any,
    config: ModelConfig,
    output_hidden_states: bool,
) -> tuple[Float[Array, "B T D"], Float[Array, "n B T D"] | None]:
    """Return the last hidden states and, if requested, those of every layer: n = L + 1, the embeddings first.

    Each of `params` is stacked over layers, or a tuple with one array per layer: a training step with unrolled layers
    passes tuples, so that nothing is stacked. `config` determines whether to scan and what to recompute.
    """
    apply_layer = rematerialized(apply_layer, config=config)
    if config.scan_layers:

        def step(hidden: Array, layer_in: tuple[Any, Array]) -> tuple[Array, Array | None]:
            hidden = apply_layer(hidden, *layer_in)
            return hidden, hidden if output_hidden_states else None

        indices = jnp.arange(config.num_hidden_layers)
        hidden, states = jax.lax.scan(step, embedded, (params, indices))
    else:
        hidden, outputs = embedded, []
        for index, layer_params in enumerate(unstack(params, config.num_hidden_layers)):
            hidden = apply_layer(hidden, layer_params, jnp.asarray(index))
            outputs.append(hidden)
        states = jnp.stack(outputs) if output_hidden_states else None
    if states is not None:
        states = jnp.concatenate([embedded[None], states])
    return hidden, states


def rematerialized(apply_layer: Any, *, config: ModelConfig) -> Any:
    """Return a layer whose backward pass recomputes what `config.remat` says."""
    if config.remat == "none":
        return apply_layer
    return jax.checkpoint(apply_layer, policy=REMAT_POLICIES[config.remat])


def unstack(layers: Any, count: int) -> list[Any]:
    """Return each layer's parameters; the gradient of `lax.split` is a concatenation, that of indexing a padded sum.

    A parameter of fewer layers belongs to the last ones; the others have None.
    """
    leaves, tree = jax.tree.flatten(layers, is_leaf=lambda leaf: isinstance(leaf, tuple))
    split = [
        leaf if isinstance(leaf, tuple) else [part[0] for part in jax.lax.split(leaf, (1,) * len(leaf))]
        for leaf in leaves
    ]
    split = [[None] * (count - len(parts)) + list(parts) for parts in split]
    return [jax.tree.unflatten(tree, [leaf[index] for leaf in split]) for index in range(count)]
