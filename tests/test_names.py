"""The name table: one entry a parameter, the shapes of the model, and a way back for each side."""

import jax
import numpy as np
import pytest
from source_helpers import flat, random_source

from bert_jax.model.architectures import ARCHITECTURES
from bert_jax.model.heads import PretrainingModel
from bert_jax.model.parameter_names import flatten, from_external, to_external
from bert_jax.model.task_heads import SequenceClassifier, SpanClassifier, TokenClassifier
from bert_jax.types import EncoderInputs

LABELS = 3
BERT = ARCHITECTURES["bert"]
TABLE = BERT.names.entries


def shapes_of_model(architecture: str, model) -> dict[str, tuple[int, ...]]:
    sample = jax.numpy.zeros((1, 4), "int32")
    inputs = EncoderInputs(sample, sample, sample, sample)
    modules = {
        "BertForSequenceClassification": SequenceClassifier(model, LABELS),
        "BertForTokenClassification": TokenClassifier(model, LABELS),
        "BertForQuestionAnswering": SpanClassifier(model),
        "BertForMultipleChoice": SequenceClassifier(model, 1),
    }
    extra = {"pooled_positions": sample[:, :1]}
    if architecture == "BertForPreTraining":
        extra = {"cls_positions": sample[:, :1], "positions": sample[:, :2]}
    module = modules.get(architecture, PretrainingModel(model))
    boxed = jax.eval_shape(lambda key: module.init(key, inputs, **extra)["params"], jax.random.key(0))
    return {name: leaf.shape for name, leaf in flatten(jax.tree.map(lambda leaf: leaf, unboxed(boxed))).items()}


def unboxed(tree):
    from flax import linen as nn

    return nn.meta.unbox(tree)


@pytest.mark.parametrize(
    "architecture",
    [
        "BertForPreTraining",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "BertForMultipleChoice",
    ],
)
def test_table_names_every_parameter_of_the_model_with_its_shape(architecture):
    source = random_source(architecture=architecture, num_labels=LABELS)
    expected = shapes_of_model(architecture, source.model)
    assert {name: array.shape for name, array in flat(source).items()} == expected


@pytest.mark.parametrize("side", ["huggingface", "tf1"])
def test_no_two_parameters_share_a_name(side):
    every = [name for entry in TABLE for name in entry.names(side=side, num_layers=12)]
    assert len(every) == len(set(every))


@pytest.mark.parametrize("side", ["huggingface", "tf1"])
@pytest.mark.parametrize("architecture", list(BERT.huggingface.classes))
def test_there_and_back_is_exact(architecture, side):
    source = random_source(architecture=architecture)
    theirs: dict[str, np.ndarray] = {}
    for entry in BERT.names.of(source.parts):
        theirs |= dict(to_external(entry, flat(source)[entry.flax], side=side))
    labels = source.num_labels
    for entry in BERT.names.of(source.parts):
        wanted = entry.names(side=side, num_layers=source.model.num_hidden_layers)
        back = from_external(
            entry,
            [theirs.pop(name) for name in wanted],
            side=side,
            shape=entry.shape(source.model, num_labels=labels),
        )
        assert back.tobytes() == flat(source)[entry.flax].tobytes()
    assert not theirs


def test_transposed_entries_are_those_that_the_other_side_stores_transposed():
    kernels = {entry.flax for entry in TABLE if entry.huggingface_transposed}
    assert kernels == {entry.flax for entry in TABLE if entry.flax.endswith("kernel")}
    by_hand = {entry.flax for entry in TABLE if entry.tf1_transposed}
    assert by_hand == {"next_sentence/dense/kernel", "classifier/kernel", "qa_outputs/kernel"}
