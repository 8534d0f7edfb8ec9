"""Initialization of a larger model from a smaller one: tiled weights, as ModernBERT-large was made from its base.

Each dimension of a weight is repeated around a copy in the middle (Phi's scheme, Warner et al. 2024, section 3.2).
Layer t of T takes the weights of layer round(t S / T) of S (Rae et al. 2021, appendix G.3.3).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from bert_jax.config import ModelConfig, model_preset
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import Entry, flatten, nest

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
# The axis of the heads of matrices, and of vectors, by the ends of their names: whole heads are repeated.
_HEADS = {"query/kernel": 1, "key/kernel": 1, "value/kernel": 1, "attention_output/kernel": 0}
_HEADS |= {"query/bias": 0, "key/bias": 0, "value/bias": 0}


def tile_to(source: PretrainedModel, *, preset: str, report: Callable[[str], None] = print) -> PretrainedModel:
    """Return a model of the sizes of a `preset`, initialized from `source`; everything else is that of `source`.

    Raises:
      UserError: if the preset is of another architecture or head size, or smaller in one of its sizes.
    """
    larger = model_preset(preset)
    small = source.model
    sizes = {name: getattr(larger, name) for name in _SIZES}
    large = dataclasses.replace(small, **sizes)
    if larger.architecture != small.architecture:
        raise UserError(
            f"--tile_to={preset} has architecture {larger.architecture}, {source.path} has {small.architecture}: "
            "choose a preset of that architecture"
        )
    smaller = [name for name in _SIZES if getattr(large, name) < getattr(small, name)]
    if smaller or _head_size(large) != _head_size(small):
        shown = f"{smaller[0]} {sizes[smaller[0]]}" if smaller else f"heads of size {_head_size(large)}"
        own = getattr(small, smaller[0]) if smaller else _head_size(small)
        raise UserError(
            f"--tile_to={preset} has {shown}, {source.path} has {own}: choose a preset that is at least as large in "
            "every size, with heads of the same size"
        )
    flat = flatten(source.params)
    for entry in architecture_of(small).names.of(source.parts):
        flat[entry.flax] = _tiled(entry, flat[entry.flax], small=small, large=large, labels=source.num_labels)
    changes = ", ".join(f"{name} {getattr(small, name)} -> {size}" for name, size in sizes.items())
    report(f"{source.path}: tiled to {preset}: {changes}")
    return dataclasses.replace(source, params=nest(flat), model=large, record={})


def _head_size(model: ModelConfig) -> int:
    return model.hidden_size // model.num_attention_heads


def _tiled(entry: Entry, array: np.ndarray, *, small: ModelConfig, large: ModelConfig, labels: int) -> np.ndarray:
    """Return our array of the large model."""
    if entry.stacked:
        array = _layers(entry, array, small=small, large=large)
    shape = entry.shape(large, num_labels=labels)
    first = 1 if entry.stacked else 0
    heads = next((axis for name, axis in _HEADS.items() if entry.flax.endswith(f"/{name}")), None)
    for axis in range(first, array.ndim):
        unit = _head_size(small) if heads == axis - first else 1
        array = np.take(array, _indices(array.shape[axis], shape[axis], unit=unit), axis=axis)
    return array


def _layers(entry: Entry, array: np.ndarray, *, small: ModelConfig, large: ModelConfig) -> np.ndarray:
    """Return the array with the layers of the large model; a norm that the layer before lacks begins with ones."""
    count, target = small.num_hidden_layers, large.num_hidden_layers
    chosen = [min(round(layer * count / target), count - 1) for layer in range(entry.first_layer, target)]
    missing = np.ones_like(array[0])
    return np.stack([array[layer - entry.first_layer] if layer >= entry.first_layer else missing for layer in chosen])


def _indices(size: int, target: int, *, unit: int) -> np.ndarray:
    """Return where each of `target` values comes from: a copy of `size` values in the middle, repeated to both sides.

    The copy begins at a multiple of `unit`.
    """
    offset = (target - size) // 2 // unit * unit
    return (np.arange(target) - offset) % size
