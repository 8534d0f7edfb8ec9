"""The names of BERT's parameters in our Flax model, in HuggingFace and in google-research/bert (TF1)."""

from bert_jax.model.parameter_names import Entry, NameTable
from bert_jax.types import LAYERS


def _dense(flax: str, huggingface: str, tf1: str, axes: str) -> tuple[Entry, Entry]:
    inner, outer = axes.split()
    return (
        Entry(f"{flax}/kernel", f"{huggingface}.weight", f"{tf1}/kernel", (inner, outer), huggingface_transposed=True),
        Entry(f"{flax}/bias", f"{huggingface}.bias", f"{tf1}/bias", (outer,)),
    )


def _output(flax: str, huggingface: str, tf1: str, axes: str) -> tuple[Entry, Entry]:
    """Return a dense layer that google-research/bert writes out by hand: [C, D] `output_weights` and `output_bias`."""
    inner, outer = axes.split()
    return (
        Entry(f"{flax}/kernel", f"{huggingface}.weight", f"{tf1}output_weights", (inner, outer), True, True),
        Entry(f"{flax}/bias", f"{huggingface}.bias", f"{tf1}output_bias", (outer,)),
    )


def _norm(flax: str, huggingface: str, tf1: str) -> tuple[Entry, Entry]:
    return (
        Entry(f"{flax}/scale", f"{huggingface}.weight", f"{tf1}/gamma", ("D",)),
        Entry(f"{flax}/bias", f"{huggingface}.bias", f"{tf1}/beta", ("D",)),
    )


def _table(name: str, axis: str) -> Entry:
    return Entry(f"encoder/embeddings/{name}", f"bert.embeddings.{name}.weight", f"bert/embeddings/{name}", (axis, "D"))


def _layer(flax: str, huggingface: str) -> tuple[str, str, str]:
    """Return the three names of a layer's parameter; TF1's is HuggingFace's with slashes."""
    tf1 = huggingface.replace(".", "/")
    return f"{LAYERS}{flax}", f"bert.encoder.layer.{{layer}}.{huggingface}", f"bert/encoder/layer_{{layer}}/{tf1}"


_ENTRIES: tuple[Entry, ...] = (
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

NAMES = NameTable(
    _ENTRIES,
    prefix="bert.",
    # Old versions saved them; the values are 0, 1, 2, ... or zeros.
    buffers=("bert.embeddings.position_ids", "bert.embeddings.token_type_ids"),
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    # TensorFlow's names, in the files of the oldest released models.
    old_endings={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
)
