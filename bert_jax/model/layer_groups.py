"""Layers whose kind depends on `index % period`: layer 0, then groups of `period` layers, scanned or unrolled.

The stacked parameters are those of `layers.py`. A parameter that layer 0 lacks is stacked over the layers after it.
"""

import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.model.layers import rematerialized, unstack


@runtime_checkable
class ApplyKind(Protocol):
    """One layer of the kind of its `place`, which is its index modulo the period."""

    def __call__(
        self, hidden: Float[Array, "B T D"], params: Any, index: Int[Array, ""], /, *, place: int
    ) -> Float[Array, "B T D"]:
        """Return the hidden states after the layer."""
        ...


def apply_layer_groups(
    apply_layer: ApplyKind,
    embedded: Float[Array, "B T D"],
    *,
    params: Any,
    config: ModelConfig,
    period: int,
    output_hidden_states: bool,
) -> tuple[Float[Array, "B T D"], Float[Array, "n B T D"] | None]:
    """Return the last hidden states and, if requested, those of every layer: n = L + 1, the embeddings first.

    Arguments and result are those of `layers.apply_layers`. With `config.scan_layers` one program serves all groups;
    layer 0 and the layers after the last whole group are unrolled.
    """
    kinds = [rematerialized(functools.partial(apply_layer, place=place), config=config) for place in range(period)]
    states = [embedded[None]]

    def unrolled(hidden: Array, layers: list[Any], first: int) -> Array:
        for index, layer in enumerate(layers, start=first):
            hidden = kinds[index % period](hidden, layer, jnp.asarray(index))
            states.append(hidden[None])
        return hidden

    count = config.num_hidden_layers
    groups = (count - 1) // period if config.scan_layers else 0
    if not groups:
        hidden = unrolled(embedded, unstack(params, count), 0)
        return hidden, jnp.concatenate(states) if output_hidden_states else None

    def group(hidden: Array, group_in: tuple[Any, Array]) -> tuple[Array, Array | None]:
        layers, start = group_in
        outputs = []
        for number in range(period):
            layer = jax.tree.map(lambda leaf, number=number: leaf[number], layers)
            hidden = kinds[(number + 1) % period](hidden, layer, start + number)
            outputs.append(hidden)
        return hidden, jnp.stack(outputs) if output_hidden_states else None

    first, grouped, rest = _split(params, count=count, groups=groups, period=period)
    hidden = unrolled(embedded, first, 0)
    hidden, scanned = jax.lax.scan(group, hidden, (grouped, 1 + period * jnp.arange(groups)))
    if scanned is not None:
        states.append(scanned.reshape(-1, *embedded.shape))
    hidden = unrolled(hidden, rest, 1 + groups * period)
    return hidden, jnp.concatenate(states) if output_hidden_states else None


def _split(params: Any, *, count: int, groups: int, period: int) -> tuple[list[Any], Any, list[Any]]:
    """Return the parameters of layer 0, those of the groups, [groups, period, ...], and those of the layers after."""
    inner = groups * period

    def part(leaf: Array, number: int) -> Array:
        outer = len(leaf) - (count - 1)  # 1, or 0 for a parameter that layer 0 lacks
        return jax.lax.split(leaf, (outer, inner, len(leaf) - outer - inner))[number]

    first, middle, rest = (jax.tree.map(functools.partial(part, number=number), params) for number in range(3))
    grouped = jax.tree.map(lambda leaf: leaf.reshape(groups, period, *leaf.shape[1:]), middle)
    return unstack(first, 1), grouped, unstack(rest, count - 1 - inner)
