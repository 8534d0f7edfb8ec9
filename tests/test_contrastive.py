"""The contrastive loss spans the global batch, on every mesh and with GradCache; equal texts are no negatives."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.training.contrastive import Examples, cosent, info_nce, matryoshka
from tests.embed_data import embed_config, loss_and_gradients, open_embedder, write_embed_data
from tests.finetune_data import tiny_model, tiny_source
from tests.rounding import (
    NOTICED,
    assert_rounded_alike,
    assert_trees_rounded_alike,
    contrast_bound,
    encoder_bound,
    gradient_bound,
)

TEMPERATURE = 0.5
# Of examples with embeddings of 6 numbers and up to nine texts.
BOUND = contrast_bound(6, texts=9, temperature=TEMPERATURE)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PretrainedModel:
    """Return a tiny encoder with dropout."""
    folder = tmp_path_factory.mktemp("source")
    return tiny_source(folder, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, source: PretrainedModel) -> Any:
    """Return the function from form, accumulation and mesh to loss and gradients."""

    @functools.cache
    def compute(form: str, accumulation: int = 1, shape: tuple[int, int, int] = (1, 1, 1)) -> tuple[float, Any]:
        folder = write_embed_data(tmp_path_factory.mktemp("data"), form=form, count=16)
        train = {"batch_size": 16, "gradient_accumulation_steps": accumulation}
        dimensions = {"form": form, "dimensions": (8,), "temperature": TEMPERATURE / 10}
        config = embed_config(folder, form=form, train=train, embed=dimensions)
        program, split = open_embedder(config, source, shape=shape)
        return loss_and_gradients(program, split, source.params)

    return compute


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("form", "accumulation", "shape"),
    [
        pytest.param("triplets", 1, (2, 1, 1), marks=pytest.mark.slow),
        pytest.param("triplets", 1, (4, 1, 1), marks=pytest.mark.slow),
        pytest.param("triplets", 1, (8, 1, 1), marks=pytest.mark.slow),
        pytest.param("triplets", 1, (2, 2, 2), marks=pytest.mark.slow),
        pytest.param("triplets", 4, (1, 1, 1), marks=pytest.mark.slow),
        pytest.param("triplets", 2, (4, 1, 1), marks=pytest.mark.slow),
        ("scores", 2, (2, 1, 1)),
    ],
)
def test_neither_mesh_nor_accumulation_changes_loss_or_gradients(
    outcome: Any, form: str, accumulation: int, shape: tuple[int, int, int]
):
    loss, gradients = outcome(form, accumulation, shape)
    expected, expected_gradients = outcome(form)
    # A similarity is a product of two embeddings over the temperature; the loss and the probabilities of its gradient
    # are off by as much, and the way back adds its own. There are two losses, of all 32 numbers and of 8.
    similarity = 2 * encoder_bound(tiny_model()) * 10 / TEMPERATURE
    assert_rounded_alike(loss, expected, bound=2 * similarity)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected_gradients))
    bound = similarity + gradient_bound(tiny_model(), tokens=16 * 32)
    assert bound < NOTICED
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=bound), gradients, expected_gradients
    )


def examples(texts: list[list[int]], *, seed: int = 0, weights: list[float] | None = None) -> Examples:
    """Return random embeddings of examples whose texts have these numbers; equal texts have equal embeddings."""
    numbers = np.array(texts, np.int32)
    table = np.random.default_rng(seed).standard_normal((numbers.max() + 1, 6)).astype(np.float32)
    return Examples(
        embeddings=jnp.asarray(np.where(numbers[..., None] > 0, table[numbers], 0)),
        texts=jnp.asarray(numbers),
        labels=jnp.zeros(len(texts)),
        weights=jnp.asarray(np.ones(len(texts)) if weights is None else weights, jnp.float32),
        numbers=jnp.arange(len(texts)),
    )


def cosines(batch: Examples) -> np.ndarray:
    """Return the cosine of each text with each, [n, G, n, G], divided by the temperature."""
    vectors = np.asarray(batch.embeddings, np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return np.einsum("igd,jhd->igjh", vectors, vectors) / TEMPERATURE


def cross_entropy(positive: float, others: list[float]) -> float:
    return float(np.logaddexp.reduce([positive, *others]) - positive)


def expected_losses(batch: Examples, negatives_of: dict[int, list[tuple[int, int]]]) -> list[float]:
    """Return the loss of each example whose negatives are given as (example, text)."""
    table = cosines(batch)
    return [
        cross_entropy(table[i, 0, i, 1], [table[i, 0, j, g] for j, g in others]) for i, others in negatives_of.items()
    ]


@pytest.mark.numerics
def test_equal_texts_and_their_counterparts_are_no_negatives():
    """0 and 1 have the same first text, 2 has the second text of 0, 3 has the first text of 0 as its second."""
    batch = examples([[1, 2], [1, 3], [4, 2], [5, 1]])
    losses = info_nce(batch, batch, temperature=TEMPERATURE, symmetric=False).losses
    negatives = {0: [], 1: [(2, 1)], 2: [(1, 1), (3, 1)], 3: [(0, 1), (1, 1), (2, 1)]}
    assert_rounded_alike(losses, expected_losses(batch, negatives), bound=BOUND)


@pytest.mark.numerics
def test_hard_negatives_of_all_examples_count_and_missing_or_equal_ones_do_not():
    """The negative of 1 is missing, that of 2 is the second text of 0."""
    batch = examples([[1, 2, 7], [3, 4, 0], [5, 6, 2]])
    losses = info_nce(batch, batch, temperature=TEMPERATURE, symmetric=False).losses
    negatives = {0: [(1, 1), (2, 1), (0, 2)], 1: [(0, 1), (2, 1), (0, 2), (2, 2)], 2: [(0, 1), (1, 1), (0, 2), (2, 2)]}
    assert_rounded_alike(losses, expected_losses(batch, negatives), bound=BOUND)


@pytest.mark.numerics
def test_empty_slots_change_neither_losses_nor_gradients():
    full = examples([[1, 2], [3, 4]])
    padded = examples([[1, 2], [3, 4], [0, 0]], weights=[1, 1, 0])
    for symmetric in (False, True):

        def total(embeddings: Any, batch: Examples, symmetric: bool = symmetric) -> Any:
            batch = dataclasses.replace(batch, embeddings=embeddings)
            contrast = info_nce(batch, batch, temperature=TEMPERATURE, symmetric=symmetric)
            return (contrast.losses * batch.weights).sum()

        value, gradient = jax.value_and_grad(total)(full.embeddings, full)
        padded_value, padded_gradient = jax.value_and_grad(total)(padded.embeddings, padded)
        assert_rounded_alike(padded_value, value, bound=2 * BOUND)
        assert_trees_rounded_alike(padded_gradient[:2], gradient, bound=2 * BOUND)
        assert not np.asarray(padded_gradient[2]).any()


@pytest.mark.numerics
def test_the_same_text_twice_is_its_own_positive():
    """SimCSE: the two embeddings of a text differ by dropout alone, and all other texts are negatives."""
    batch = examples([[1, 1], [2, 2], [3, 3]])
    losses = info_nce(batch, batch, temperature=TEMPERATURE, symmetric=False).losses
    negatives = {i: [(j, 1) for j in range(3) if j != i] for i in range(3)}
    assert_rounded_alike(losses, expected_losses(batch, negatives), bound=BOUND)


@pytest.mark.numerics
def test_cosent_sums_over_pairs_of_different_scores():
    batch = examples([[1, 2], [3, 4], [5, 6], [0, 0]], weights=[1, 1, 1, 0])
    batch = dataclasses.replace(batch, labels=jnp.asarray([0.0, 2.0, 2.0, 9.0]))
    loss = cosent(batch, batch, temperature=TEMPERATURE).losses
    own = [cosines(batch)[i, 0, i, 1] for i in range(3)]
    expected = np.logaddexp.reduce([0.0, own[0] - own[1], own[0] - own[2]])
    assert_rounded_alike(loss, [expected] * 4, bound=BOUND)


@pytest.mark.numerics
def test_matryoshka_adds_the_loss_of_each_truncation():
    batch = examples([[1, 2], [3, 4], [5, 6]])
    loss = functools.partial(info_nce, temperature=TEMPERATURE, symmetric=False)
    parts = [dataclasses.replace(batch, embeddings=batch.embeddings[..., :size]) for size in (6, 2, 4)]
    expected = sum(np.asarray(loss(part, part).losses) for part in parts)
    assert_rounded_alike(matryoshka(loss, dimensions=(2, 4))(batch, batch).losses, expected, bound=3 * BOUND)
