"""The losses: NumPy transcripts, packing, empty rows, and what is left out."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from packed_rows import instances_alone
from tiny_model import SPECIAL, VOCAB_SIZE, random_rows, tiny_model, to_device

from bert_jax.config import MaskingConfig
from bert_jax.model.heads import PretrainingModel
from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.types import EncoderInputs, PretrainingBatch, PretrainingLogits
from tests.rounding import (
    FUNCTION,
    assert_trees_rounded_alike,
    encoder_bound,
    gradient_bound,
    rounded,
    sum_bound,
)

pytestmark = pytest.mark.numerics

LENGTH, SLOTS = 32, 6
# Relative, of losses and of gradients.
LOSS_BOUND, GRADIENT_BOUND = encoder_bound(tiny_model()), gradient_bound(tiny_model(), tokens=16 * LENGTH)

OBJECTIVE = PretrainingObjective(
    model=tiny_model(), masking=MaskingConfig(), special=SPECIAL, max_predictions=SLOTS, next_sentence=True
)


@functools.cache
def params() -> Any:
    """Return fresh parameters."""
    sample = jnp.zeros((1, 1), jnp.int32)
    inputs = EncoderInputs(sample, sample, sample, sample)
    init = jax.jit(
        lambda: PretrainingModel(tiny_model()).init(jax.random.key(0), inputs, positions=sample, cls_positions=sample)
    )
    return nn.meta.unbox(init()["params"])


@functools.cache
def jitted(objective: PretrainingObjective, dropout: bool = False) -> Any:
    """Return the compiled loss, figures and gradients of a batch."""

    def run(parameters: Any, batch: PretrainingBatch) -> Any:
        def loss(p: Any) -> Any:
            key = jax.random.key(7) if dropout else None
            return objective.loss(p, batch=batch, weights=objective.weights(batch), key=key)

        return jax.value_and_grad(loss, has_aux=True)(parameters)

    return jax.jit(run)


@functools.cache
def some_batch() -> PretrainingBatch:
    """Return sixteen rows of up to two instances, three of them empty."""
    rows = random_rows(0, batch=16, length=LENGTH, instances=2, empty_rows=3)
    return OBJECTIVE.prepare(to_device(rows), key=jax.random.key(1))


def cross_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return mean loss and accuracy in float64, by loops."""
    losses, right = [], []
    for row in np.ndindex(labels.shape):
        if weights[row]:
            values = np.asarray(logits[row], np.float64)
            losses.append(np.log(np.exp(values - values.max()).sum()) + values.max() - values[labels[row]])
            right.append(values.argmax() == labels[row])
    return float(np.mean(losses)), float(np.mean(right))


def test_loss_and_figures_equal_a_transcript() -> None:
    batch = some_batch()
    (loss, means), _ = jitted(OBJECTIVE)(params(), batch)
    apply = PretrainingModel(tiny_model()).apply
    result = apply({"params": params()}, batch.inputs, positions=batch.positions, cls_positions=batch.cls_positions)
    logits = cast(PretrainingLogits, result)
    host = jax.device_get(batch)
    mlm, mlm_right = cross_entropy(np.asarray(logits.masked_lm), host.labels, host.weights)
    nsp, nsp_right = cross_entropy(
        np.asarray(logits.next_sentence), host.next_sentence_labels, host.next_sentence_weights
    )
    figures = {name: float(mean.value()) for name, mean in means.items()}
    expected = {
        "mlm_loss": mlm,
        "mlm_accuracy": mlm_right,
        "nsp_loss": nsp,
        "nsp_accuracy": nsp_right,
        "padding_fraction": float((host.inputs.segment_ids == 0).mean()),
        "instances_per_row": float(host.next_sentence_weights.sum(1).mean()),
    }
    assert figures.keys() == expected.keys()
    assert_trees_rounded_alike(figures, expected, bound=LOSS_BOUND)
    assert_trees_rounded_alike(loss, mlm + nsp, bound=LOSS_BOUND)
    assert 0 < nsp_right < 1


def test_without_next_sentence_nothing_of_it_is_left() -> None:
    alone = dataclasses.replace(OBJECTIVE, next_sentence=False)
    (loss, means), gradients = jitted(alone)(params(), some_batch())
    (_, both), _ = jitted(OBJECTIVE)(params(), some_batch())
    assert_trees_rounded_alike(loss, both["mlm_loss"].value(), bound=LOSS_BOUND)
    assert not [name for name in means if name.startswith("nsp")]
    for part in ("pooler", "next_sentence"):
        assert not any(leaf.any() for leaf in jax.tree.leaves(gradients[part]))


def test_every_parameter_gets_a_gradient() -> None:
    _, gradients = jitted(OBJECTIVE, True)(params(), some_batch())
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.abs(leaf).max() > 1e-7
    ]
    # Softmax does not see what is added to all scores of a query, and no row is longer than 32.
    assert [name for name in silent if "['key']['bias']" not in name] == []


def test_empty_rows_weigh_nothing_and_leave_no_nan() -> None:
    batch = some_batch()
    without = jax.tree.map(lambda leaf: leaf[:13], batch)
    for dropout in (False, True):
        (loss, means), gradients = jitted(OBJECTIVE, dropout)(params(), batch)
        (expected, expected_means), expected_gradients = jitted(OBJECTIVE, dropout)(params(), without)
        assert_trees_rounded_alike(loss, expected, bound=LOSS_BOUND)
        assert means["nsp_loss"].weight == expected_means["nsp_loss"].weight
        assert means["mlm_loss"].weight == expected_means["mlm_loss"].weight
        for tree in (gradients, expected_gradients):
            tree["encoder"]["layers"]["key"].pop("bias")
        assert_trees_rounded_alike(gradients, expected_gradients, bound=GRADIENT_BOUND)


def test_a_batch_of_nothing_but_padding_has_loss_and_gradients_zero() -> None:
    rows = random_rows(1, batch=16, length=LENGTH, instances=2, empty_rows=16)
    batch = OBJECTIVE.prepare(to_device(rows), key=jax.random.key(1))
    for dropout in (False, True):
        (loss, means), gradients = jitted(OBJECTIVE, dropout)(params(), batch)
        assert float(loss) == 0.0
        assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))
        assert float(means["mlm_loss"].value()) == 0.0
        assert float(means["padding_fraction"].value()) == 1.0


def test_packed_rows_have_the_loss_and_gradients_of_their_instances_alone() -> None:
    rows = random_rows(2, batch=16, length=LENGTH, instances=2)
    batch = jax.device_get(OBJECTIVE.prepare(to_device(rows), key=jax.random.key(3)))
    alone = instances_alone(rows, batch)
    assert len(alone.rows) > 24
    alone = to_device(alone)
    (loss, means), gradients = jitted(OBJECTIVE)(params(), to_device(batch))
    (expected, expected_means), expected_gradients = jitted(OBJECTIVE)(params(), alone)
    assert_trees_rounded_alike(loss, expected, bound=LOSS_BOUND)
    for name in ("mlm_accuracy", "nsp_accuracy"):
        assert means[name].weight == expected_means[name].weight
        assert means[name].total == expected_means[name].total
    for tree in (gradients, expected_gradients):
        tree["encoder"]["layers"]["key"].pop("bias")
    assert_trees_rounded_alike(gradients, expected_gradients, bound=GRADIENT_BOUND)


def test_evaluation_is_deterministic_and_scores_the_unigram_model_on_the_same_predictions() -> None:
    rows = to_device(random_rows(4, batch=16, length=LENGTH))
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(VOCAB_SIZE)).astype(np.float32)
    evaluate = jax.jit(functools.partial(OBJECTIVE.evaluate, unigram_log_probs=jnp.log(shares)))
    means = evaluate(params(), rows, key=jax.random.key(5))
    again = evaluate(params(), rows, key=jax.random.key(5))
    jax.tree.map(np.testing.assert_array_equal, means, again)
    batch = jax.device_get(OBJECTIVE.prepare(rows, key=jax.random.key(5)))
    labels = batch.labels[batch.weights > 0]
    scores = {"loss": means["unigram_loss"].value(), "accuracy": means["unigram_accuracy"].value()}
    counted = {"loss": -np.log(shares)[labels].mean(), "accuracy": (labels == shares.argmax()).mean()}
    assert_trees_rounded_alike(scores, counted, bound=rounded(FUNCTION) + sum_bound(len(labels)))
    assert means["unigram_loss"].weight == means["mlm_loss"].weight == len(labels)
    (_, plain), _ = jitted(OBJECTIVE)(params(), to_device(batch))
    assert_trees_rounded_alike(means["mlm_loss"].total, plain["mlm_loss"].total, bound=LOSS_BOUND)
