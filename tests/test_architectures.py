"""A second architecture needs its own files and a line in the table: everything else takes it as it is."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from source_helpers import assert_same_params, vocabulary
from tiny_model import SPECIAL, random_rows, to_device
from toy_architecture import TOY, random_params, toy_model

from bert_jax.config import MaskingConfig, ModelConfig
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.huggingface import read_tensors
from bert_jax.convert.loading import initial_params, load_pretrained, model_of
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.convert.vocabulary_extension import extend_source
from bert_jax.data.tokenization import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.model.architectures import ARCHITECTURES, architecture_of
from bert_jax.model.dropout import Dropout
from bert_jax.model.heads import PretrainingModel
from bert_jax.model.parameter_names import flatten
from bert_jax.model.task_heads import SequenceClassifier, TokenClassifier
from bert_jax.prediction.model import Model
from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.rows.layout import encoder_inputs
from bert_jax.training.optimizers import DECAY_POLICY, STACKED_POLICY
from bert_jax.training.policy import apply_policy
from tests.rounding import assert_rounded_alike, assert_trees_rounded_alike, encoder_bound, gradient_bound

pytestmark = pytest.mark.numerics


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "toy", TOY)


def pretraining_params(model: ModelConfig) -> Any:
    one = jnp.zeros((1, 1), jnp.int32)
    inputs = encoder_inputs(to_device(random_rows(0, batch=1, length=8)))
    return random_params(PretrainingModel(model), inputs=inputs, positions=one, cls_positions=one)


def toy_source(huggingface_class: str = "ToyForPreTraining", *, num_labels: int = 3) -> PretrainedModel:
    words = vocabulary()
    model = toy_model(vocab_size=words.size)
    if huggingface_class == "ToyForSequenceClassification":
        inputs = encoder_inputs(to_device(random_rows(0, batch=1, length=8)))
        first = jnp.zeros((1, 1), jnp.int32)
        params = random_params(SequenceClassifier(model, num_labels), inputs=inputs, pooled_positions=first)
    else:
        params = pretraining_params(model)
    parts = {part: params[part] for part in TOY.huggingface.classes[huggingface_class]}
    return PretrainedModel(
        Path("toy"), "huggingface", model, huggingface_class, parts, "float32", WordPieceTokenizer(words)
    )


def objective(model: ModelConfig, *, next_sentence: bool = False) -> PretrainingObjective:
    return PretrainingObjective(model, MaskingConfig(), SPECIAL, max_predictions=8, next_sentence=next_sentence)


def test_it_pretrains_with_finite_gradients_scanned_or_unrolled_with_dropout() -> None:
    params = pretraining_params(toy_model())
    rows = to_device(random_rows(3, batch=4, length=32, instances=2))

    def loss_and_gradients(**changes: Any) -> tuple[jax.Array, Any]:
        task = objective(toy_model(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **changes))
        batch = task.prepare(rows, key=jax.random.key(1))

        @jax.jit
        def compute(params: Any) -> Any:
            def loss(params: Any) -> jax.Array:
                return task.loss(params, batch=batch, weights=task.weights(batch), key=jax.random.key(2))[0]

            return jax.value_and_grad(loss)(params)

        return compute(params)

    loss, gradients = loss_and_gradients()
    unrolled, others = loss_and_gradients(scan_layers=False, remat="full")
    for name, leaf in flatten(gradients).items():
        assert np.abs(leaf).max() > 0, name
    assert_trees_rounded_alike((loss, gradients), (unrolled, others), bound=gradient_bound(toy_model(), tokens=4 * 32))


def test_an_objective_that_it_has_no_head_for_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match=r"architecture=toy has no next-sentence head: set config\.data\.objective=mlm"):
        objective(toy_model(), next_sentence=True)


@pytest.mark.slow
def test_instances_of_a_packed_row_see_their_own_positions_alone() -> None:
    model = toy_model()
    params = to_device(pretraining_params(model)["encoder"])
    rows = to_device(random_rows(5, batch=2, length=32, instances=2))
    inputs = encoder_inputs(rows)
    hidden = TOY.encoder(model).apply({"params": params}, inputs).hidden
    for row in range(2):
        for number in range(1, int(inputs.segment_ids[row].max()) + 1):
            where = np.flatnonzero(inputs.segment_ids[row] == number)
            alone = jax.tree.map(lambda leaf, row=row, where=where: leaf[row : row + 1, where], inputs)
            alone = dataclasses.replace(alone, segment_ids=jnp.ones_like(alone.segment_ids))
            expected = TOY.encoder(model).apply({"params": params}, alone).hidden[0]
            assert_rounded_alike(hidden[row, where], expected, bound=encoder_bound(model))


def test_policies_of_training_know_every_parameter_of_it() -> None:
    params = pretraining_params(toy_model())
    stacked = flatten(apply_policy(STACKED_POLICY, params=params))
    decays = flatten(apply_policy(DECAY_POLICY, params=params))
    assert stacked["encoder/layers/query/kernel"]
    assert not stacked["encoder/word_embeddings"]
    assert decays["encoder/word_embeddings"]
    assert not decays["encoder/layers/mlp_layer_norm/scale"]


@pytest.mark.parametrize("huggingface_class", list(TOY.huggingface.classes))
def test_it_is_exported_compared_with_its_reference_and_comes_back_bit_for_bit(
    tmp_path: Path, huggingface_class: str
) -> None:
    source = toy_source(huggingface_class)
    done = export_folder(source, out=tmp_path / "out", report=lambda line: None)
    assert 0 < done.largest_difference < 1e-5
    bare = huggingface_class == "ToyModel"
    assert ("tok_embeddings.weight" if bare else "model.tok_embeddings.weight") in read_tensors(tmp_path / "out")
    loaded = load_pretrained(tmp_path / "out")
    assert_same_params(source, loaded)
    assert (loaded.architecture, loaded.model.architecture) == (huggingface_class, "toy")
    assert "- toy\n" in (tmp_path / "out" / "README.md").read_text()


def test_training_begins_from_it_and_not_from_another_architecture() -> None:
    source = toy_source("ToyModel")
    params = initial_params(source, model=source.model, init_missing=["masked_lm"])
    assert set(params) == {"encoder", "masked_lm"}
    assert model_of(source, model=ModelConfig()).architecture == "toy"
    with pytest.raises(UserError, match=r"--config\.model\.architecture=toy"):
        initial_params(source, model=dataclasses.replace(source.model, architecture="bert"))


def test_it_predicts_and_its_vocabulary_can_be_extended() -> None:
    source = toy_source()
    model = Model(extend_source(source, words=["heart", "lung", "liver", "bone"], report=lambda line: None))
    assert model.embed(["the cat", "the heart"]).shape == (2, 32)
    assert len(model.fill_mask("the [MASK] sat", top_k=3)[0]) == 3
    with pytest.raises(UserError, match="ToyForPreTraining has no pooler, next_sentence"):
        model.nsp([("the cat", "sat")])


@pytest.mark.parametrize("kind", [SequenceClassifier, TokenClassifier])
def test_fine_tuning_heads_are_put_on_it(kind: Any) -> None:
    module = kind(toy_model(hidden_dropout_prob=0.1), 3)
    inputs = encoder_inputs(to_device(random_rows(1, batch=2, length=16)))
    first = jnp.zeros((2, 1), jnp.int32)
    params = random_params(module, inputs=inputs, pooled_positions=first)
    assert set(params) == {"encoder", "pooler", "classifier"} - ({"pooler"} if kind is TokenClassifier else set())

    def total(params: Any) -> jax.Array:
        dropout = Dropout.create(jax.random.key(0), rows=jnp.arange(2))
        logits = module.apply({"params": params}, inputs, pooled_positions=first, dropout=dropout)
        return jnp.square(logits).sum()

    for name, leaf in flatten(jax.jit(jax.grad(total))(params)).items():
        assert np.abs(leaf).max() > 0, name


def test_flops_are_its_own() -> None:
    model = toy_model()
    row = {"max_seq_length": 32, "max_predictions": 5}
    bert = dataclasses.replace(model, architecture="bert")
    of_toy, of_bert = (architecture_of(m).train_flops_per_row(m, **row) for m in (model, bert))
    # A third matrix in the feed-forward network; no pooler and no transform before the decoder.
    assert of_toy - of_bert == 2 * 6 * 32 * 32 * 48 - 6 * 5 * 32**2 - 6 * 32**2


def test_an_architecture_that_is_not_there_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"config\.model\.architecture='nonsense': choose one of bert, modernbert, lstm, lstm_pair, toy"
    ):
        architecture_of(ModelConfig(architecture="nonsense"))
