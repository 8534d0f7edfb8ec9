"""A model with some of its layers: the start of a smaller student (DistilBERT takes every second layer)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.model.parameter_names import flatten, nest
from bert_jax.types import LAYERS


def with_layers(source: PretrainedModel, *, layers: Sequence[str]) -> PretrainedModel:
    """Return the model with the layers of these numbers, from 0, in this order. Other parts are kept.

    Raises:
      UserError: if a number is not that of a layer.
    """
    count = source.model.num_hidden_layers
    if not all(layer.strip().isdecimal() and int(layer) < count for layer in layers):
        raise UserError(
            f"--init_layers={','.join(layers)}: {source.path} has {count} layers: give numbers from 0 to {count - 1}, "
            "separated by commas"
        )
    numbers = np.array([int(layer) for layer in layers])
    flat = flatten(source.params)
    stacked = [name for name in flat if name.startswith(LAYERS)]
    if any(len(flat[name]) != count for name in stacked):
        raise UserError(
            f"--init_layers: the layers of {source.path} ({source.model.architecture}) differ, so none can be left "
            "out: omit it"
        )
    flat |= {name: flat[name][numbers] for name in stacked}
    model = dataclasses.replace(source.model, num_hidden_layers=len(numbers))
    return dataclasses.replace(source, model=model, params=nest(flat))


def up_to_layer(source: PretrainedModel, *, number: int) -> PretrainedModel:
    """Return the model without the layers after that of `number`, from 1. Other parts are kept."""
    left_out = source.model.num_hidden_layers - number
    flat = flatten(source.params)
    # A parameter that layer 0 lacks is stacked over the layers after it.
    flat |= {name: flat[name][: len(flat[name]) - left_out] for name in flat if name.startswith(LAYERS)}
    model = dataclasses.replace(source.model, num_hidden_layers=number)
    return dataclasses.replace(source, model=model, params=nest(flat))
