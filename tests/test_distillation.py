"""A student learns a teacher's outputs; a student may begin as some of a model's layers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.convert.pruned_layers import with_layers
from bert_jax.errors import UserError
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.fine_tuner import FineTuner
from bert_jax.finetuning.finetune import Request, finetune, open_config_task
from bert_jax.finetuning.results import ExperimentOptions
from bert_jax.finetuning.settings import RunSettings, step_settings
from bert_jax.kinds.base import Gold
from bert_jax.kinds.choice import Choice
from bert_jax.kinds.regression import Regression
from bert_jax.training.divergence import sigmoid_divergence, softmax_divergence
from tests.finetune_data import open_runtime, own_config, tiny_model, tiny_source, write_sentiment, write_source
from tests.rounding import assert_rounded_alike, divergence_bound, encoder_bound, gradient_bound

LABELS = {"id2label": {"0": "bad", "1": "good"}, "problem_type": "single_label_classification"}


def teacher_of(source: PretrainedModel, *, labels: dict[str, Any] | None = None) -> PretrainedModel:
    """Return the model with a random classifier of two labels."""
    rng = np.random.default_rng(3)
    width = source.model.hidden_size
    head = {"kernel": rng.standard_normal((width, 2)).astype(np.float32), "bias": np.ones(2, np.float32)}
    return dataclasses.replace(
        source,
        params={**source.params, "classifier": head},
        architecture="BertForSequenceClassification",
        label_fields=labels or LABELS,
    )


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def kl(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


@pytest.mark.numerics
def test_divergences_are_those_of_the_distributions_and_0_of_equal_logits():
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 5, 3)) * 3
    logits = jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
    largest = float(np.abs(logits).max())
    bound = divergence_bound(3, largest=largest, temperature=2.0)
    assert_rounded_alike(softmax_divergence(*logits, temperature=2.0), kl(student, teacher, 2), bound=bound)
    p, q = (1 / (1 + np.exp(-values / 4)) for values in (teacher, student))
    expected = 16 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(-1)
    bound = divergence_bound(2, largest=largest, temperature=4.0)
    assert_rounded_alike(sigmoid_divergence(*logits, temperature=4.0), expected, bound=bound)
    for divergence in (softmax_divergence, sigmoid_divergence):
        bound = divergence_bound(3, largest=largest, temperature=3.0)
        np.testing.assert_allclose(divergence(logits[0], logits[0], temperature=3.0), 0, atol=bound)


@pytest.mark.numerics
def test_endings_that_do_not_exist_are_not_imitated():
    student, teacher = jnp.array([[[1.0, 2.0, 7.0]]]), jnp.array([[[0.5, -1.0, -9.0]]])
    gold = Gold(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)), jnp.array([[1, 1, 2, 2]]))
    losses = Choice(group=3).imitation_losses(student, teacher, gold=gold, temperature=1.0)
    expected = [kl(np.array([[1.0, 2.0]]), np.array([[0.5, -1.0]]), 1.0)]
    assert_rounded_alike(losses, expected, bound=divergence_bound(2, largest=2.0, temperature=1.0))
    number = Regression().imitation_losses(student[..., :1], teacher[..., :1], gold=gold, temperature=5.0)
    np.testing.assert_allclose(number, [[0.25]])


def open_student(folder: Path, config: FinetuneConfig, *, student: PretrainedModel, teacher: PretrainedModel) -> Any:
    """Return the learner of an experiment."""
    folder.mkdir()
    experiment = Experiment(
        config,
        task=open_config_task(config),
        pretrained=student,
        options=ExperimentOptions(runs=(RunSettings(16, 1e-3, 1.0, 0),), teacher=teacher),
        runtime=open_runtime(folder),
        directory=folder,
    )
    assert isinstance(experiment.learner, FineTuner)
    return experiment


def first_step(experiment: Any) -> tuple[dict[str, float], Any]:
    """Return the metrics of the first step, and the state before it."""
    learner, (run,) = experiment.learner, experiment.options.runs
    learner.prepare()
    state = learner.initial_state(run)
    before = jax.device_get(state.params)
    fixed = step_settings(run, num_steps=10, warmup_fraction=0)
    _, output = learner.train_step(state, next(learner.batches(run, start=0, end=1)), fixed)
    return {name: float(mean.value()) for name, mean in output.means.items()}, before


@pytest.mark.numerics
def test_the_loss_is_the_labels_and_the_teachers_in_the_configs_proportion(tmp_path: Path):
    data = write_sentiment(tmp_path / "data", train=16, dev=8)  # one batch is all of train
    teacher = teacher_of(tiny_source(tmp_path, num_hidden_layers=3))
    config = own_config(data, distill={"weight": 0.25, "temperature": 3.0})
    experiment = open_student(tmp_path / "a", config, student=tiny_source(tmp_path), teacher=teacher)
    metrics, params = first_step(experiment)
    train = experiment.data.train
    student_logits = np.stack(experiment.learner.outputs(params, train))
    peer = open_student(tmp_path / "b", own_config(data), student=teacher, teacher=teacher).learner
    teacher_params = {part: teacher.params[part] for part in peer.program.state_shapes.params}
    teacher_logits = np.stack(peer.outputs(peer.program.place_params(teacher_params), train))
    imitation = kl(student_logits.astype(np.float64), teacher_logits.astype(np.float64), 3.0).mean()
    labels = -np.log(softmax(student_logits.astype(np.float64))[np.arange(16), train.features.targets]).mean()
    # Its slope by a pair of logits is the temperature times a difference of probabilities, at most 1 each.
    largest = max(float(np.abs(logits).max()) for logits in (student_logits, teacher_logits))
    moved = 2 * encoder_bound(tiny_model(num_hidden_layers=3), size=largest)
    bound = 2 * 3.0 * moved + divergence_bound(2, largest=largest, temperature=3.0)
    assert_rounded_alike(metrics["imitation_loss"], imitation, bound=bound)
    assert_rounded_alike(metrics["loss"], 0.75 * labels + 0.25 * imitation, bound=0.75 * moved + 0.25 * bound)


@pytest.mark.numerics
def test_a_model_has_nothing_to_learn_from_itself(tmp_path: Path):
    teacher = teacher_of(tiny_source(tmp_path))
    config = own_config(write_sentiment(tmp_path / "data", train=16, dev=8), distill={"weight": 1.0})
    metrics, _ = first_step(open_student(tmp_path / "a", config, student=teacher, teacher=teacher))
    # What another teacher would be learned from: the relative errors of what is 0 but for rounding are those of that.
    kernel = -teacher.params["classifier"]["kernel"]
    head = {**teacher.params["classifier"], "kernel": kernel}
    other = dataclasses.replace(teacher, params={**teacher.params, "classifier": head})
    apart, _ = first_step(open_student(tmp_path / "b", config, student=teacher, teacher=other))
    bound = gradient_bound(tiny_model(), tokens=16 * 32)
    assert abs(metrics["imitation_loss"]) <= bound * apart["imitation_loss"]
    assert metrics["grad_norm"] <= bound * apart["grad_norm"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"label_fields": {"id2label": {"0": "no", "1": "yes"}}}, "with no, yes: give a model .* with bad, good"),
        ({"params": "encoder"}, "is a BertForSequenceClassification with no head: give a model"),
        ({"tokenizer": "other"}, "has another vocabulary than --init="),
    ],
)
def test_a_teacher_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], match: str):
    source = tiny_source(tmp_path)
    teacher = teacher_of(source)
    if "params" in changes:
        changes = {"params": source.params}
    if "tokenizer" in changes:
        from bert_jax.data.tokenization import WordPieceTokenizer
        from bert_jax.data.vocabulary import Vocabulary
        from tests.finetune_data import PIECES

        changes = {"tokenizer": WordPieceTokenizer(Vocabulary(PIECES[:-1], do_lower_case=True))}
    config = own_config(write_sentiment(tmp_path / "data", train=8, dev=8))
    with pytest.raises(UserError, match=match) as caught:
        open_student(tmp_path / "a", config, student=source, teacher=dataclasses.replace(teacher, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_distills_into_some_layers_and_another_teacher_is_refused_on_resume(tmp_path: Path):
    data = write_sentiment(tmp_path / "data", train=32, dev=16)
    write_source(tmp_path / "source", num_hidden_layers=4)
    source = load_pretrained(tmp_path / "source")
    for name, labels in (("teacher", LABELS), ("other", LABELS)):
        teacher = teacher_of(source, labels=labels)
        if name == "other":
            teacher.params["classifier"]["bias"][:] = 0
        export_folder(teacher, out=tmp_path / name, report=lambda line: None)
    request = Request(init=str(tmp_path / "source"), workdir=str(tmp_path / "work"), init_layers=("0", "2"))

    def run(teacher: str) -> int:
        config = own_config(data, distill={"teacher": str(tmp_path / teacher)}, train={"num_epochs": 1.0})
        return finetune(config, request=request)

    assert run("teacher") == 0
    assert load_pretrained(tmp_path / "work").model.num_hidden_layers == 2
    lines = next((tmp_path / "work" / "runs").glob("*/metrics.jsonl")).read_text().splitlines()
    assert any("train/imitation_loss" in json.loads(line) for line in lines)
    with pytest.raises(
        UserError, match=r"its runs have teacher .*, this command has .* or give the previous --teacher"
    ):
        run("other")


def test_some_layers_of_a_model_are_kept_in_their_order(tmp_path: Path):
    source = tiny_source(tmp_path, num_hidden_layers=4)
    kept = with_layers(source, layers=("1", "3"))
    assert kept.model.num_hidden_layers == 2
    jax.tree.map(
        lambda new, old: np.testing.assert_array_equal(new, old[[1, 3]]),
        kept.params["encoder"]["layers"],
        source.params["encoder"]["layers"],
    )
    assert kept.params["pooler"] is not None
    export_folder(kept, out=tmp_path / "out", report=lambda line: None)  # computes it, and compares
    for wrong in (("4",), ("-1",), ("x",)):
        with pytest.raises(UserError, match=r"--init_layers=.* has 4 layers: give numbers from 0 to 3"):
            with_layers(source, layers=wrong)
