"""How parameters are called by us, by HuggingFace and by google-research/bert (TF1): the form of every such table.

Reading, writing, expected shapes and the parts of each HuggingFace class derive from an architecture's `NameTable`.

Axis letters: V vocab_size, T max_position_embeddings, Y type_vocab_size, D hidden_size, F intermediate_size, C labels;
a number is itself, or multiplies the letter after it ("2F"). An entry below `LAYERS` is one array per layer elsewhere
and one stacked array, layers first, here.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.config import ModelConfig
from bert_jax.types import LAYERS


@dataclasses.dataclass(frozen=True)
class Entry:
    """The names of one parameter; `{layer}` is replaced by the number of the layer, `tf1` is "" where TF1 has none.

    `axes` are those of one array as we hold it (without the layers); `*_transposed` says that the other side swaps
    them.
    """

    ours: str
    huggingface: str
    tf1: str
    axes: tuple[str, ...]
    huggingface_transposed: bool = False
    tf1_transposed: bool = False

    @property
    def part(self) -> str:
        """Return the part of the model that the parameter belongs to."""
        return self.ours.partition("/")[0]

    @property
    def stacked(self) -> bool:
        """Return whether ours is one array over all layers."""
        return self.ours.startswith(LAYERS)

    def shape(self, model: ModelConfig, *, num_labels: int = 0, stacked: bool = True) -> tuple[int, ...]:
        """Return the shape of our array, or with `stacked` False that of one layer."""
        shape = tuple(_size(axis, model=model, num_labels=num_labels) for axis in self.axes)
        return (model.num_hidden_layers, *shape) if self.stacked and stacked else shape

    def names(self, *, side: str, num_layers: int) -> list[str]:
        """Return what `side` ("huggingface" or "tf1") calls the parameter: one name, or one per layer."""
        name: str = getattr(self, side)
        return [name.format(layer=layer) for layer in range(num_layers)] if self.stacked else [name]

    def transposed(self, *, side: str) -> bool:
        """Return whether `side` swaps the axes."""
        return bool(getattr(self, f"{side}_transposed"))


def _size(axis: str, *, model: ModelConfig, num_labels: int) -> int:
    factor, letter = re.fullmatch(r"(\d*)(\D?)", axis).groups()  # type: ignore[union-attr]
    sizes = {
        "V": model.vocab_size,
        "T": model.max_position_embeddings,
        "Y": model.type_vocab_size,
        "D": model.hidden_size,
        "F": model.intermediate_size,
        "C": num_labels,
        "": 1,
    }
    return int(factor or 1) * sizes[letter]


@dataclasses.dataclass(frozen=True)
class NameTable:
    """All parameters of an architecture, and what else its HuggingFace folders may hold.

    Attributes:
      entries: one per parameter.
      prefix: what the encoder's tensors begin with, but in the class that is the encoder alone ("bert.").
      buffers: tensors that hold no weights.
      tied: second names of tied parameters; where both are present they must hold the same bits.
      old_endings: endings of names in old files, and what they are now.
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
        """Return how the table calls the HuggingFace tensor `name`, of a folder whose names are `prefixed` or not."""
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


def from_theirs(
    entry: Entry, arrays: Sequence[np.ndarray], *, side: str, shape: tuple[int, ...], dtype: Any = np.float32
) -> np.ndarray:
    """Return our array of `shape` from theirs, one per layer where it is stacked; the values are exactly theirs."""
    result = np.empty(shape, dtype)
    for target, array in zip(result if entry.stacked else [result], arrays, strict=True):
        target[...] = array.T if entry.transposed(side=side) else array
    return result


def to_theirs(entry: Entry, array: np.ndarray, *, side: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield `side`'s names with their arrays, contiguous."""
    array = np.asarray(array)
    layers = array if entry.stacked else [array]
    for name, layer in zip(entry.names(side=side, num_layers=len(layers)), layers, strict=True):
        yield name, np.ascontiguousarray(layer.T if entry.transposed(side=side) else layer)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of slash-joined names."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def flatten(tree: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Return the slash-joined names of a tree."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, prefix=f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
