"""A kind of output says the same to every part of the code base: heads, folders, baselines, answers."""

import itertools

import numpy as np
import pytest

from bert_jax.config.task_options import DataOptions, OwnOptions
from bert_jax.finetuning.initial import find_baseline
from bert_jax.kinds.classification import Classification
from bert_jax.kinds.multilabel import MultiLabel
from bert_jax.kinds.regression import Regression
from bert_jax.kinds.table import KINDS, kind_of_model
from bert_jax.kinds.tags import Tags
from bert_jax.model.architectures import ARCHITECTURES
from bert_jax.prediction.model import TASKS
from bert_jax.tasks.interface import Instances, Split
from bert_jax.tasks.own_data import OWN_TASKS
from bert_jax.tasks.registry import open_task


def test_every_kind_has_own_data_and_a_prediction():
    assert OWN_TASKS.keys() == KINDS.keys()
    for name, kind in KINDS.items():
        assert kind.name == name
        assert set(kind.prediction_tasks) <= set(TASKS)


@pytest.mark.parametrize("name", KINDS)
def test_a_model_of_a_kind_is_read_back_as_that_kind(name: str):
    kind = KINDS[name]
    fields = kind.label_fields(["a", "b"] if kind.has_label_names else [])
    problem = fields.get("problem_type", "")
    architecture = ARCHITECTURES["bert"].huggingface.class_for(kind.huggingface_class)
    assert kind_of_model(architecture, problem_type=problem, num_labels=2) is kind


@pytest.mark.parametrize(
    ("architecture", "problem_type", "num_labels", "kind"),
    [
        ("BertForSequenceClassification", "", 3, Classification),
        ("BertForSequenceClassification", "", 1, Regression),
        ("BertForSequenceClassification", "single_label_classification", 1, Classification),
        ("BertForSequenceClassification", "regression", 3, Regression),
        ("BertForSequenceClassification", "multi_label_classification", 1, MultiLabel),
        ("OtherForTokenClassification", "single_label_classification", 1, Tags),
        ("BertForPreTraining", "", 0, None),
        ("", "", 0, None),
    ],
)
def test_problem_type_tells_kinds_of_one_class_apart(architecture: str, problem_type: str, num_labels: int, kind: type):
    assert kind_of_model(architecture, problem_type=problem_type, num_labels=num_labels) is kind


@pytest.mark.parametrize("seed", range(20))
def test_the_baseline_of_several_labels_is_the_best_constant_answer(seed: int):
    rng = np.random.default_rng(seed)
    labels = ("a", "b", "c", "d")
    task = open_task("own", data=DataOptions(), own=OwnOptions(kind="multilabel", labels=",".join(labels)))
    targets = list((rng.random((12, 4)) < rng.random(4)).astype(np.float32))
    ids = [np.ones(3, np.int32)] * len(targets)
    split = Split("dev", [None] * len(targets), Instances(ids, np.full(len(ids), 3, np.int32), targets))
    every = itertools.product((-1.0, 1.0), repeat=len(labels))
    best = max(task.score(split, [np.array(answer, np.float32)] * len(targets))["micro_f1"] for answer in every)
    assert find_baseline(task, split).score == best


def test_the_baseline_of_a_classification_names_its_label():
    task = open_task("own", data=DataOptions(), own=OwnOptions(kind="classification", labels="bad,good"))
    targets = [0, 1, 1]
    ids = [np.ones(3, np.int32)] * len(targets)
    split = Split("dev", [None] * len(targets), Instances(ids, np.full(len(ids), 3, np.int32), targets))
    assert find_baseline(task, split).answer == "always answering 'good'"
    assert find_baseline(task, split).score == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", KINDS)
def test_the_baseline_of_every_kind_has_a_score_and_a_name(name: str):
    kind = KINDS[name](num_labels=2, group=2)
    baseline = kind.baseline(lambda outputs: 0.5, lengths=[3, 3], targets=[np.eye(2)[0]], labels=["a", "b"])
    assert 0 < baseline.score <= 1
    assert baseline.answer


def test_answers_of_several_labels_are_those_above_a_half_and_no_logit_overflows():
    answer = MultiLabel.answer(np.array([800.0, -800.0, 1e-9, 0.0]), labels=["a", "b", "c", "d"])
    assert answer == {"labels": ["a", "c"], "probabilities": {"a": 1.0, "b": 0.0, "c": 0.5, "d": 0.5}}
