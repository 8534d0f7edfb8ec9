"""The names of ModernBERT's parameters in our Flax model and in HuggingFace."""

from typing import Any

from bert_jax.config import ModelConfig
from bert_jax.model.modernbert.encoder import output_stddev
from bert_jax.model.parameter_names import Entry, NameTable
from bert_jax.types import LAYERS

_LAYER = "model.layers.{layer}"


def classifier_stddev(config: ModelConfig) -> float:
    """Return the initial standard deviation of the classifiers' matrices."""
    return float(config.hidden_size**-0.5)


def _matrix(flax: str, huggingface: str, axes: str, **options: Any) -> Entry:
    """Return a matrix without a bias."""
    return Entry(
        f"{flax}/kernel",
        f"{huggingface}.weight",
        "",
        tuple(axes.split()),
        huggingface_transposed=True,
        **options,
    )


def _scale(flax: str, huggingface: str, **options: Any) -> Entry:
    return Entry(f"{flax}/scale", f"{huggingface}.weight", "", ("D",), **options)


def _classifier(flax: str, axis: str) -> tuple[Entry, Entry]:
    return (
        _matrix(flax, "classifier", f"D {axis}", stddev=classifier_stddev),
        Entry(f"{flax}/bias", "classifier.bias", "", (axis,)),
    )


NAMES = NameTable(
    (
        Entry("encoder/embeddings/word_embeddings", "model.embeddings.tok_embeddings.weight", "", ("V", "D")),
        _scale("encoder/embeddings/layer_norm", "model.embeddings.norm"),
        _scale(f"{LAYERS}attention_layer_norm", f"{_LAYER}.attn_norm", first_layer=1),
        _matrix(f"{LAYERS}query", f"{_LAYER}.attn.Wqkv", "D D", block=(0, 3)),
        _matrix(f"{LAYERS}key", f"{_LAYER}.attn.Wqkv", "D D", block=(1, 3)),
        _matrix(f"{LAYERS}value", f"{_LAYER}.attn.Wqkv", "D D", block=(2, 3)),
        _matrix(f"{LAYERS}attention_output", f"{_LAYER}.attn.Wo", "D D", stddev=output_stddev),
        _scale(f"{LAYERS}mlp_layer_norm", f"{_LAYER}.mlp_norm"),
        _matrix(f"{LAYERS}intermediate", f"{_LAYER}.mlp.Wi", "D F", block=(0, 2)),
        _matrix(f"{LAYERS}gate", f"{_LAYER}.mlp.Wi", "D F", block=(1, 2)),
        _matrix(f"{LAYERS}output", f"{_LAYER}.mlp.Wo", "F D", stddev=output_stddev),
        _scale("encoder/final_layer_norm", "model.final_norm"),
        _matrix("transform/dense", "head.dense", "D D", stddev=output_stddev),
        _scale("transform/layer_norm", "head.norm"),
        Entry("masked_lm/bias", "decoder.bias", "", ("V",)),
        *_classifier("classifier", "C"),
        *_classifier("qa_outputs", "2"),
    ),
    prefix="model.",
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
