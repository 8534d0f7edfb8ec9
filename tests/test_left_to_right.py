"""Left-to-right models: heads read the last token, the causal loss sees no future, and NSP is refused."""

import functools
import json
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from packed_rows import instances_alone
from rounding import UNIT, encoder_bound
from tiny_model import SPECIAL, instance_spans, random_rows, tiny_model, to_device

import bert_jax
from bert_jax.config import MaskingConfig, from_config_dict, from_saved
from bert_jax.errors import UserError
from bert_jax.kinds.classification import Classification
from bert_jax.model.heads import PretrainingModel
from bert_jax.model.parts import apply_parts
from bert_jax.pretrain.causal import CausalObjective, next_token_batch
from bert_jax.pretrain.evaluation import describe, unigram_log_probs, verdict
from bert_jax.rows.layout import encoder_inputs, pooled_positions
from bert_jax.types import EncoderInputs, InstanceRows, PretrainingBatch, PretrainingLogits, Rows
from tests.runs import figures, run, train_command

DIRECTION = "left_to_right"
MODEL = tiny_model(attention_direction=DIRECTION, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
LENGTH = 24
OBJECTIVE = CausalObjective(
    model=MODEL, masking=MaskingConfig(), special=SPECIAL, max_predictions=LENGTH, next_sentence=False
)


@functools.cache
def params() -> Any:
    """Return random parameters of the pre-training model."""
    one = jnp.zeros((1, 1), jnp.int32)
    inputs = EncoderInputs(one, one, one, one)
    init = jax.jit(lambda: PretrainingModel(MODEL).init(jax.random.key(0), inputs, positions=one, cls_positions=one))
    return nn.meta.unbox(init()["params"])


def packed(seed: int = 0, *, batch: int = 6) -> Rows:
    return random_rows(seed, batch=batch, length=LENGTH, instances=3, empty_rows=1)


def test_heads_read_the_last_token_of_every_instance() -> None:
    rows = packed(3, batch=32)
    positions = np.asarray(pooled_positions(to_device(rows), direction="left_to_right"))
    for row in range(32):
        last = [end - 1 for _, _, end in instance_spans(rows, row)]
        assert positions[row].tolist() == last + [0] * (3 - len(last))
        assert all(rows.input_ids[row, position] == SPECIAL.sep_id for position in last)


@pytest.mark.numerics
def test_a_classifier_tells_sentences_apart_packed_and_in_prediction_alike() -> None:
    rng = np.random.default_rng(0)
    lengths = [7, 5, 9]
    texts = [np.concatenate([[2], rng.integers(5, 101, length - 2), [3]]).astype(np.int32) for length in lengths]
    module = Classification(num_labels=3).model(MODEL)
    one = jnp.zeros((1, 1), jnp.int32)
    tree = jax.jit(lambda: module.init(jax.random.key(1), EncoderInputs(one, one, one, one), pooled_positions=one))()
    weights = nn.meta.unbox(tree["params"])
    both = np.zeros((1, LENGTH), np.int32)
    both[0, : sum(lengths)] = np.concatenate(texts)
    rows = InstanceRows(jnp.asarray(both), jnp.asarray([[[length, 0] for length in lengths]]))
    positions = pooled_positions(rows, direction=MODEL.attention_direction)
    logits = np.asarray(module.apply({"params": weights}, encoder_inputs(rows), pooled_positions=positions))[0]
    alone = []
    for text in texts:
        padded = np.zeros((1, 16), np.int32)
        padded[0, : len(text)] = text
        one_row = InstanceRows(jnp.asarray(padded), jnp.asarray([[[len(text), 0]]]))
        alone.append(np.asarray(apply_parts(weights, encoder_inputs(one_row), model=MODEL).classifier)[0])
    np.testing.assert_allclose(logits, alone, atol=encoder_bound(MODEL))
    assert min(np.abs(logits[i] - logits[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.01


def test_no_position_sees_the_future_or_another_instance() -> None:
    rows = to_device(packed())
    inputs = encoder_inputs(rows)
    batch = next_token_batch(rows, direction=DIRECTION)

    def log_likelihoods(words: jax.Array) -> jax.Array:
        tree = params()
        embeddings = {**tree["encoder"]["embeddings"], "word_embeddings": words}
        tree = {**tree, "encoder": {**tree["encoder"], "embeddings": embeddings}}
        result = PretrainingModel(MODEL).apply(
            {"params": tree}, inputs, positions=batch.positions, cls_positions=batch.cls_positions
        )
        return cast(PretrainingLogits, result).masked_lm[0, :, 7]

    # A row for each token of the first sequence alone: the gradient with respect to row t is that of token t's input.
    ids = jnp.arange(LENGTH, dtype=jnp.int32) + 40
    inputs = jax.tree.map(lambda leaf: leaf[:1], inputs).replace(input_ids=ids[None])
    batch = jax.tree.map(lambda leaf: leaf[:1], batch)
    gradients = np.asarray(jax.jit(jax.jacrev(log_likelihoods))(params()["encoder"]["embeddings"]["word_embeddings"]))
    sees = np.abs(gradients[:, 40 : 40 + LENGTH]).max(-1) > 0
    segments = np.asarray(inputs.segment_ids)[0]
    real = segments > 0
    position = np.arange(LENGTH)
    allowed = (segments[:, None] == segments[None]) & (position[:, None] >= position[None])
    assert len(set(segments[real])) > 1
    # The output row of token 7 is another row of the table, so only inputs count.
    assert not (sees & ~allowed)[real].any()
    assert (sees | ~allowed)[real].all()


def test_labels_are_the_next_tokens_within_an_instance() -> None:
    rows = packed(5, batch=32)
    batch = jax.device_get(next_token_batch(to_device(rows), direction=DIRECTION))
    expected = np.zeros((32, LENGTH), bool)
    for row in range(32):
        for begin, _, end in instance_spans(rows, row):
            expected[row, begin : end - 1] = True
            np.testing.assert_array_equal(batch.labels[row, begin : end - 1], rows.input_ids[row, begin + 1 : end])
    np.testing.assert_array_equal(batch.weights > 0, expected)
    np.testing.assert_array_equal(batch.inputs.input_ids, rows.input_ids)


@pytest.mark.numerics
def test_packed_instances_have_the_loss_that_each_has_alone() -> None:
    rows = packed(1)
    batch, weights = OBJECTIVE.prepare(to_device(rows), key=jax.random.key(0)), params()

    @jax.jit
    def loss(part: PretrainingBatch) -> jax.Array:
        return OBJECTIVE.loss(weights, batch=part, weights=OBJECTIVE.weights(part), key=None)[0]

    alone = to_device(instances_alone(rows, jax.device_get(batch)))
    value = float(loss(batch))
    assert value == pytest.approx(float(loss(alone)), abs=encoder_bound(MODEL, size=value))


def test_the_unigram_model_counts_what_is_predicted() -> None:
    rows = packed(2, batch=16)
    arrays = {name: np.asarray(getattr(rows, name)) for name in ("input_ids", "segment_lengths")}
    counted = unigram_log_probs([arrays], vocab_size=MODEL.vocab_size, unpredicted=OBJECTIVE.unpredicted_ids)
    batch = jax.device_get(next_token_batch(to_device(rows), direction=DIRECTION))
    labels = batch.labels[batch.weights > 0]
    expected = np.bincount(labels, minlength=MODEL.vocab_size) / len(labels)
    # A logarithm below 8 is rounded to as many units.
    np.testing.assert_allclose(np.exp(counted)[expected > 0], expected[expected > 0], rtol=8 * UNIT)
    assert expected[SPECIAL.sep_id] > 0


@pytest.mark.parametrize(
    ("train", "model", "more", "message"),
    [
        ("auto", "left_to_right", {}, r"config\.data\.objective=mlm\+nsp classifies \[CLS\].*objective=causal, or mlm"),
        ("causal", "bidirectional", {}, r"config\.train\.objective=causal.*attention_direction=left_to_right"),
        ("causal", "left_to_right", {"masking": {"rate": 0.3}}, r"config\.masking: .*leave config\.masking and"),
    ],
)
def test_an_objective_that_the_direction_cannot_learn_is_refused(train: str, model: str, more: Any, message: str):
    record = {"train": {"objective": train}, "model": {"attention_direction": model}, **more}
    with pytest.raises(UserError, match=message):
        from_config_dict(record)


def test_runs_of_earlier_versions_are_still_read() -> None:
    record = {"model": {"attention_direction": "left_to_right"}}
    assert from_saved(record).next_sentence


def test_a_causal_run_trains_on_pairs_and_evaluates_what_it_trained(tiny_dataset: Path, tmp_path: Path) -> None:
    options = ("train.num_steps=4", "checkpoint.every=4", "eval.every=4", "log.every=2")
    options += ("train.objective=causal", "model.attention_direction=left_to_right")
    done = run(train_command(tmp_path / "run", *options, data=tiny_dataset))
    assert done.returncode == 0, done.stderr
    assert "left-to-right LM loss" in done.stdout
    last = [line for line in figures(tmp_path / "run") if "eval/clm_loss" in line][-1]
    assert last["eval/loss"] == last["eval/clm_loss"]
    assert not any("mlm" in name or "nsp" in name for name in last)
    assert last["eval/unigram_loss"] < 8
    command = [*train_command(tmp_path / "run")[:2], "bert_jax.evaluate", f"--model={tmp_path / 'run'}"]
    again = run(command)
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert {name: result[name] for name in last if name.startswith("eval/")} == {
        name: value for name, value in last.items() if name.startswith("eval/")
    }
    metrics = {name: float(value) for name, value in last.items()}
    assert "left-to-right LM" in describe(metrics)
    assert "of tokens correct" in verdict(metrics)
    model = bert_jax.load(tmp_path / "run")
    assert model.source.untrained == ("pooler", "next_sentence")
    with pytest.raises(UserError, match="no loss trained its pooler, next_sentence, so --task=nsp"):
        model.nsp([("a", "b")])
    with pytest.raises(UserError, match="type --pooling=lasttoken"):
        model.embed("a text", pooling="cls")
