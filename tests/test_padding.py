"""Rows that steps on TPUs add to tables: in no loss, no parameter count, no checkpoint and no model."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import SPECIAL, VOCAB_SIZE, random_rows, tiny_config, tiny_model

from bert_jax.config import Config, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from bert_jax.convert.loading import load_pretrained
from bert_jax.finetuning.fine_tuner import FineTuner
from bert_jax.model.embedding import tied_logits
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel import padding
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.pretrain.run import pretrain
from bert_jax.runs.checkpoint import Checkpointer
from bert_jax.training.cross_entropy import cross_entropy
from tests.finetune_data import own_config, write_sentiment
from tests.rounding import (
    UPDATE_SIZE,
    assert_rounded_alike,
    assert_trees_rounded_alike,
    cross_entropy_bound,
    encoder_bound,
    gradient_bound,
    sum_bound,
)
from tests.runs import figures, newest_arrays
from tests.test_finetune_run import experiment

RATE = 1e-12
OPTIMIZER = OptimizerConfig(warmup_steps=2, learning_rate=1e-2)
ROWS = random_rows(0, batch=16, length=32)


@pytest.fixture
def pad(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a way to pad on CPU devices, as on TPUs, and small tables like large ones."""
    monkeypatch.setattr(meshes, "MIN_SHARDED_ELEMENTS", 512)

    def switch(on: bool, *, multiple: int = 8) -> None:
        monkeypatch.setattr(padding, "_is_tpu", lambda mesh: on)
        monkeypatch.setattr(padding, "_TILE_ROWS", multiple)

    return switch


def program(shape: tuple[int, ...], **model: Any) -> PretrainingProgram:
    """Return the program of 16 sequences per step on a mesh."""
    config = tiny_config(optimizer=OPTIMIZER)
    train = dataclasses.replace(config.train, batch_size=16)
    config = dataclasses.replace(config, train=train, model=dataclasses.replace(config.model, **model))
    return PretrainingProgram(
        config, mesh=meshes.make_mesh(MeshConfig(*shape), devices=jax.devices()[: int(np.prod(shape))])
    )


def table(tree: Any) -> Any:
    """Return the word embeddings of a tree of parameters."""
    return tree["encoder"]["embeddings"]["word_embeddings"]


def moments(state: Any) -> Any:
    """Return the first moments, after one step 0.1 times the gradients; a key's bias has none but rounding."""
    (tree,) = (part.mu for part in jax.device_get(state.opt_state) if hasattr(part, "mu"))
    tree["encoder"]["layers"]["key"].pop("bias")
    return tree


@pytest.mark.numerics
def test_rows_that_no_token_has_get_neither_probability_nor_gradient() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, table, bias = (
        jax.random.normal(key, shape) for key, shape in zip(keys, [(2, 3, 8), (11, 8), (11,)], strict=True)
    )
    labels = jnp.asarray([[0, 10, 4], [3, 3, 9]])

    def loss(hidden: Any, table: Any, bias: Any) -> tuple[Any, Any]:
        losses, correct = cross_entropy(tied_logits(hidden, table, bias), labels)
        return losses.sum(), correct

    both = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    (expected, correct), grads = both(hidden, table, bias)
    (found, also), padded_grads = both(hidden, jnp.pad(table, ((0, 5), (0, 0))), bias)
    bound = cross_entropy_bound(11, largest=float(np.abs(tied_logits(hidden, table, bias)).max()))
    assert_rounded_alike(found, expected, bound=labels.size * bound)
    np.testing.assert_array_equal(also, correct)
    assert not np.asarray(padded_grads[1])[11:].any()
    cut = (padded_grads[0], padded_grads[1][:11], padded_grads[2])
    assert_trees_rounded_alike(cut, grads, bound=bound + sum_bound(11))


@pytest.mark.numerics
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (4, 2, 1)], ids=str)
def test_a_step_is_the_same_and_the_rows_stay_zero(shape: tuple[int, ...], pad: Any) -> None:
    pad(False)
    plain = program(shape)
    rows = meshes.to_global(ROWS, mesh=plain.mesh)
    expected, one = plain.train_step(plain.phases[0], special=SPECIAL)(plain.random_state(), rows)
    pad(True)
    padded = program(shape)
    step = padded.train_step(padded.phases[0], special=SPECIAL)
    state, other = step(padded.random_state(), rows)
    bound = gradient_bound(tiny_model(), tokens=16 * 32)
    for name in ("loss", "mlm_loss", "mlm_accuracy", "grad_norm"):
        assert_trees_rounded_alike(other.means[name].total, one.means[name].total, bound=bound)
    assert_trees_rounded_alike(moments(padded.stored(state)), moments(expected), bound=bound)
    state, _ = step(state, rows)
    assert table(state.params).shape[0] == 128  # a multiple of 8 times 8 replicas
    assert table(state.params).sharding.spec[0] == ("data", "fsdp")
    (adam,) = (part for part in state.opt_state if hasattr(part, "mu"))
    for tree in (state.params, adam.mu, adam.nu):
        assert np.asarray(table(tree))[:VOCAB_SIZE].any()
        assert not np.asarray(table(tree))[VOCAB_SIZE:].any()
    # What a plan or a dry run counts, and what a checkpoint restores into, has no such rows.
    assert jax.tree.map(lambda leaf: leaf.shape, padded.state_shapes) == jax.tree.map(
        lambda leaf: leaf.shape, plain.state_shapes
    )
    jax.tree.map(np.testing.assert_array_equal, padded.placed(padded.stored(state)), state)


def test_only_tables_over_several_replicas_of_whole_layers_are_padded(pad: Any) -> None:
    pad(True)
    for shape, expected in [((8, 1, 1), 27), ((2, 2, 1), 27), ((1, 1, 1), 0), ((2, 1, 4), 0)]:
        added = program(shape).added_rows.params
        assert table(added) == expected, shape
        assert sum(jax.tree.leaves(added)) == expected
    assert table(program((8, 1, 1), vocab_size=128).added_rows.params) == 0
    pad(False)
    assert not any(jax.tree.leaves(program((8, 1, 1)).added_rows))


@pytest.mark.slow
def test_a_checkpoint_is_that_of_a_run_without_the_rows_and_restores_on_any_mesh(pad: Any, tmp_path: Path) -> None:
    pad(True)
    padded = program((8, 1, 1))
    start = padded.random_state()
    with Checkpointer(tmp_path / "padded", config=tiny_config().checkpoint, report=lambda line: None) as checkpointer:
        checkpointer.save(1, state=padded.stored(start), metadata={})
        checkpointer.wait()
        for on, shape in [(False, (1, 1, 1)), (False, (2, 2, 1)), (True, (4, 1, 1))]:
            pad(on)
            other = program(shape)
            restored = checkpointer.restore(other.abstract_state())
            assert restored is not None
            assert table(restored.state.params).shape == (VOCAB_SIZE, 32)
            state = other.placed(restored.state)
            assert jax.tree.map(lambda leaf: leaf.shape, state) == jax.tree.map(
                lambda leaf: leaf.shape, other.step_shapes
            )
            jax.tree.map(np.testing.assert_array_equal, other.stored(state), padded.stored(start))


def run_of(dataset: Path, *, steps: int) -> Config:
    """Return a run that evaluates and saves every two steps."""
    config = tiny_config(optimizer=OPTIMIZER, data=DataConfig(directory=str(dataset)))
    train = TrainConfig(num_steps=steps, batch_size=16, phases=config.train.phases)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=512),
        train=train,
        checkpoint=dataclasses.replace(config.checkpoint, every=2),
        eval=dataclasses.replace(config.eval, every=2, max_examples=32),
        log=dataclasses.replace(config.log, every=1),
    )


@pytest.mark.slow
@pytest.mark.numerics
def test_a_run_from_before_resumes_with_the_rows_as_if_they_were_not_there(
    pad: Any, tiny_dataset: Path, tmp_path: Path
) -> None:
    pad(False)
    assert pretrain(run_of(tiny_dataset, steps=4), workdir=tmp_path / "whole") == 0
    assert pretrain(run_of(tiny_dataset, steps=2), workdir=tmp_path / "parts") == 0
    pad(True, multiple=24)  # 512 pieces: 64 divides them
    assert pretrain(run_of(tiny_dataset, steps=4), workdir=tmp_path / "parts") == 0
    first, second = (newest_arrays(tmp_path / name) for name in ("parts", "whole"))
    assert {name: len(array) for name, array in first.items()} == {name: len(array) for name, array in second.items()}
    whole, parts = (
        [line["train/loss"] for line in figures(tmp_path / name) if "train/loss" in line] for name in ("whole", "parts")
    )
    assert parts[:2] == whole[:2]
    # Of the restored parameters.
    assert_trees_rounded_alike(parts[2], whole[2], bound=encoder_bound(run_of(tiny_dataset, steps=4).model))
    assert table(load_pretrained(tmp_path / "parts").params).shape == (512, 32)


@pytest.mark.slow
def test_fine_tuning_keeps_the_best_parameters_without_the_rows(pad: Any, tmp_path: Path) -> None:
    models, steps = [], 0
    for on in (False, True):
        pad(on)
        config = own_config(
            write_sentiment(tmp_path / "data", train=64), train={"num_epochs": 1.0}, optimizer={"learning_rate": RATE}
        )
        steps = 64 // config.train.batch_size
        here = experiment(tmp_path, config, workdir=f"padded_{on}")
        here.run_all()
        assert bool(sum(jax.tree.leaves(cast(FineTuner, here.learner).program.added_rows))) is on
        models.append(load_pretrained(tmp_path / f"padded_{on}").params)
    # At this rate the best parameters are those of the start, on whatever layout a step had them: in a step a number is
    # moved by the rate times an update and what decays of it.
    bound = 2 * steps * (UPDATE_SIZE + 1) * RATE
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=bound), *models)
