"""State once how every parameter is called by us, by HuggingFace and by google-research/bert (TF1).

Reading, writing, expected shapes and the parts of each architecture all derive from `TABLE`.

Axis letters: V vocab_size, T max_position_embeddings, Y type_vocab_size, D hidden_size, F intermediate_size, C labels.
An entry under `encoder/layers/` is one array a layer elsewhere and one stacked array, layers first, here.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.config import ModelConfig

LAYERS = "encoder/layers/"

# HuggingFace's classes and the parts of ours that each holds. In BertModel the pooler is optional.
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "BertForPreTraining": ("encoder", "pooler", "masked_lm", "next_sentence"),
    "BertForMaskedLM": ("encoder", "masked_lm"),
    "BertForNextSentencePrediction": ("encoder", "pooler", "next_sentence"),
    "BertModel": ("encoder", "pooler"),
    "BertForSequenceClassification": ("encoder", "pooler", "classifier"),
    "BertForMultipleChoice": ("encoder", "pooler", "classifier"),
    "BertForTokenClassification": ("encoder", "classifier"),
    "BertForQuestionAnswering": ("encoder", "qa_outputs"),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Hold the names of one parameter; `{layer}` stands for the number of the layer.

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
        sizes = {
            "V": model.vocab_size,
            "T": model.max_position_embeddings,
            "Y": model.type_vocab_size,
            "D": model.hidden_size,
            "F": model.intermediate_size,
            "C": num_labels,
            "2": 2,
        }
        shape = tuple(sizes[axis] for axis in self.axes)
        return (model.num_hidden_layers, *shape) if self.stacked and stacked else shape


def _dense(ours: str, huggingface: str, tf1: str, axes: str) -> tuple[Entry, Entry]:
    inner, outer = axes.split()
    return (
        Entry(f"{ours}/kernel", f"{huggingface}.weight", f"{tf1}/kernel", (inner, outer), huggingface_transposed=True),
        Entry(f"{ours}/bias", f"{huggingface}.bias", f"{tf1}/bias", (outer,)),
    )


def _output(ours: str, huggingface: str, tf1: str, axes: str) -> tuple[Entry, Entry]:
    """Return a dense layer that google-research/bert made by hand: [C, D] `output_weights` and `output_bias`."""
    inner, outer = axes.split()
    return (
        Entry(f"{ours}/kernel", f"{huggingface}.weight", f"{tf1}output_weights", (inner, outer), True, True),
        Entry(f"{ours}/bias", f"{huggingface}.bias", f"{tf1}output_bias", (outer,)),
    )


def _norm(ours: str, huggingface: str, tf1: str) -> tuple[Entry, Entry]:
    return (
        Entry(f"{ours}/scale", f"{huggingface}.weight", f"{tf1}/gamma", ("D",)),
        Entry(f"{ours}/bias", f"{huggingface}.bias", f"{tf1}/beta", ("D",)),
    )


def _table(name: str, axis: str) -> Entry:
    return Entry(f"encoder/embeddings/{name}", f"bert.embeddings.{name}.weight", f"bert/embeddings/{name}", (axis, "D"))


def _layer(ours: str, huggingface: str) -> tuple[str, str, str]:
    """Return the three names of something in a layer; TF1's are HuggingFace's with slashes."""
    tf1 = huggingface.replace(".", "/")
    return f"{LAYERS}{ours}", f"bert.encoder.layer.{{layer}}.{huggingface}", f"bert/encoder/layer_{{layer}}/{tf1}"


TABLE: tuple[Entry, ...] = (
    _table("word_embeddings", "V"),
    _table("position_embeddings", "T"),
    _table("token_type_embeddings", "Y"),
    *_norm("encoder/embeddings/layer_norm", "bert.embeddings.LayerNorm", "bert/embeddings/LayerNorm"),
    *_dense(*_layer("query", "attention.self.query"), "D D"),
    *_dense(*_layer("key", "attention.self.key"), "D D"),
    *_dense(*_layer("value", "attention.self.value"), "D D"),
    *_dense(*_layer("attention_output", "attention.output.dense"), "D D"),
    *_norm(*_layer("attention_layer_norm", "attention.output.LayerNorm")),
    *_dense(*_layer("intermediate", "intermediate.dense"), "D F"),
    *_dense(*_layer("output", "output.dense"), "F D"),
    *_norm(*_layer("output_layer_norm", "output.LayerNorm")),
    *_dense("pooler/dense", "bert.pooler.dense", "bert/pooler/dense", "D D"),
    *_dense("masked_lm/transform", "cls.predictions.transform.dense", "cls/predictions/transform/dense", "D D"),
    *_norm("masked_lm/layer_norm", "cls.predictions.transform.LayerNorm", "cls/predictions/transform/LayerNorm"),
    Entry("masked_lm/bias", "cls.predictions.bias", "cls/predictions/output_bias", ("V",)),
    *_output("next_sentence/dense", "cls.seq_relationship", "cls/seq_relationship/", "D 2"),
    *_output("classifier", "classifier", "", "D C"),
    *_output("qa_outputs", "qa_outputs", "cls/squad/", "D 2"),
)


def entries(parts: Sequence[str]) -> list[Entry]:
    """Return the entries of `parts`, in the table's order."""
    return [entry for entry in TABLE if entry.part in parts]


def unstacked_names(entry: Entry, *, side: str, num_layers: int) -> list[str]:
    """Return what `side` ("huggingface" or "tf1") calls the parameter: one name, or one a layer."""
    name: str = getattr(entry, side)
    return [name.format(layer=layer) for layer in range(num_layers)] if entry.stacked else [name]


def from_theirs(
    entry: Entry, arrays: Sequence[np.ndarray], *, side: str, shape: tuple[int, ...], dtype: Any = np.float32
) -> np.ndarray:
    """Return our array of `shape` from theirs, one a layer where it is stacked; the values are exactly theirs."""
    transposed = getattr(entry, f"{side}_transposed")
    result = np.empty(shape, dtype)
    for place, array in zip(result if entry.stacked else [result], arrays, strict=True):
        place[...] = array.T if transposed else array
    return result


def to_theirs(entry: Entry, array: np.ndarray, *, side: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield `side`'s names with their arrays, contiguous."""
    array = np.asarray(array)
    layers = array if entry.stacked else [array]
    names = unstacked_names(entry, side=side, num_layers=len(layers))
    transposed = getattr(entry, f"{side}_transposed")
    for name, layer in zip(names, layers, strict=True):
        yield name, np.ascontiguousarray(layer.T if transposed else layer)


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


def flat_params(tree: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Return the slash-joined names of a tree."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= (
            flat_params(value, prefix=f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return flat
