"""Tables of parameter names: in our Flax model, in HuggingFace, and in google-research/bert (TF1).

Import, export, expected shapes and the parts of each HuggingFace class derive from an architecture's `NameTable`.

Axis letters: V vocab_size, T max_position_embeddings, Y type_vocab_size, D hidden_size, F intermediate_size, C labels.
L is the number of layers. A number is a size, or multiplies the letter after it ("2F"); "D/2" is half of D. A
parameter under `LAYERS` is one array per layer in the other formats, and one array stacked over layers (first axis) in
flax.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.config import ModelConfig
from bert_jax.types import LAYERS


def initializer_range(model: ModelConfig) -> float:
    """Return the usual standard deviation of initial weights."""
    return model.initializer_range


@dataclasses.dataclass(frozen=True)
class Entry:
    """The names of one parameter. `{layer}` stands for the number of the layer; `tf1` is "" if TF1 lacks it.

    `axes` are those of our array, without the layers; `*_transposed` means that the other format swaps them.
    `first_layer` is the first layer that has it. `block` (k, n) means that it is the k-th of n equal blocks of rows of
    HuggingFace's tensor. `stddev` returns the standard deviation of initial weights.
    """

    flax: str
    huggingface: str
    tf1: str
    axes: tuple[str, ...]
    huggingface_transposed: bool = False
    tf1_transposed: bool = False
    first_layer: int = 0
    block: tuple[int, int] = (0, 1)
    stddev: Callable[[ModelConfig], float] = initializer_range

    @property
    def part(self) -> str:
        """Return the part of the model that the parameter belongs to."""
        return self.flax.partition("/")[0]

    @property
    def stacked(self) -> bool:
        """Return whether our parameter is stacked over layers."""
        return self.flax.startswith(LAYERS)

    def shape(self, model: ModelConfig, *, num_labels: int = 0, stacked: bool = True) -> tuple[int, ...]:
        """Return the shape of our array; with `stacked` False, that of one layer."""
        shape = tuple(_size(axis, model=model, num_labels=num_labels) for axis in self.axes)
        return (model.num_hidden_layers - self.first_layer, *shape) if self.stacked and stacked else shape

    def external_shape(self, model: ModelConfig, *, side: str, num_labels: int = 0) -> tuple[int, ...]:
        """Return the shape of a tensor of `side`, one layer's if it is stacked."""
        shape = self.shape(model, num_labels=num_labels, stacked=False)
        shape = shape[::-1] if self.transposed(side=side) else shape
        return (shape[0] * self.block[1], *shape[1:])

    def names(self, *, side: str, num_layers: int) -> list[str]:
        """Return the names of the parameter in `side` ("huggingface" or "tf1"): one, or one per layer."""
        name: str = getattr(self, side)
        layers = range(self.first_layer, num_layers)
        return [name.format(layer=layer) for layer in layers] if self.stacked else [name]

    def transposed(self, *, side: str) -> bool:
        """Return whether `side` swaps the axes."""
        return bool(getattr(self, f"{side}_transposed"))


def _size(axis: str, *, model: ModelConfig, num_labels: int) -> int:
    factor, letter, half = re.fullmatch(r"(\d*)([A-Z]?)(/2)?", axis).groups()  # type: ignore[union-attr]
    sizes = {
        "V": model.vocab_size,
        "T": model.max_position_embeddings,
        "L": model.num_hidden_layers,
        "Y": model.type_vocab_size,
        "D": model.hidden_size,
        "F": model.intermediate_size,
        "C": num_labels,
        "": 1,
    }
    return int(factor or 1) * sizes[letter] // (2 if half else 1)


@dataclasses.dataclass(frozen=True)
class NameTable:
    """All parameters of an architecture, and the other tensors in its HuggingFace folders.

    Attributes:
      entries: one per parameter.
      prefix: the prefix of the encoder's tensors ("bert."), which the class of the bare encoder omits.
      buffers: tensors that are not weights.
      tied: second names of tied parameters; if both are present, they must have the same bits.
      old_endings: suffixes of names in old files, and their replacements.
    """

    entries: tuple[Entry, ...]
    prefix: str
    buffers: tuple[str, ...] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    old_endings: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """Return all parts, in the table's order."""
        return tuple(dict.fromkeys(entry.part for entry in self.entries))

    def of(self, parts: Sequence[str]) -> list[Entry]:
        """Return the entries of `parts`, in the table's order."""
        return [entry for entry in self.entries if entry.part in parts]

    def full_name(self, name: str, *, prefixed: bool) -> str:
        """Return the table's name of the HuggingFace tensor `name`, from a folder with or without the prefix."""
        inside = {
            entry.huggingface.removeprefix(self.prefix).partition(".")[0]
            for entry in self.entries
            if entry.huggingface.startswith(self.prefix)
        }
        if not prefixed and name.partition(".")[0] in inside:
            name = f"{self.prefix}{name}"
        for old, new in self.old_endings.items():
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name


def from_external(
    entry: Entry, arrays: Sequence[np.ndarray], *, side: str, shape: tuple[int, ...], dtype: Any = np.float32
) -> np.ndarray:
    """Return our array of `shape` from the arrays of `side`, one per layer if it is stacked; the values are exact."""
    result = np.empty(shape, dtype)
    number, count = entry.block
    for target, array in zip(result if entry.stacked else [result], arrays, strict=True):
        rows = len(array) // count if count > 1 else 0
        block = array[number * rows : (number + 1) * rows] if count > 1 else array
        target[...] = block.T if entry.transposed(side=side) else block
    return result


def to_external(entry: Entry, array: np.ndarray, *, side: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and the contiguous arrays of `side`; of a tensor of several blocks, only this entry's block."""
    array = np.asarray(array)
    layers = array if entry.stacked else [array]
    for name, layer in zip(entry.names(side=side, num_layers=len(layers) + entry.first_layer), layers, strict=True):
        yield name, np.ascontiguousarray(layer.T if entry.transposed(side=side) else layer)


def external_tensors(
    entries: Sequence[Entry], flat: Mapping[str, np.ndarray], *, side: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and the arrays of `side` for our arrays by name, the blocks of a tensor joined."""
    for _, group in itertools.groupby(entries, key=lambda entry: getattr(entry, side)):
        blocks = [to_external(entry, flat[entry.flax], side=side) for entry in group]
        for named in zip(*blocks, strict=True):
            yield named[0][0], named[0][1] if len(named) == 1 else np.concatenate([array for _, array in named])


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested tree from slash-joined names."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def flatten(tree: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Return a flat dict with slash-joined names from a nested tree."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, prefix=f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
