"""The training step: the same whatever accumulation and mesh; no update where a gradient is not finite."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec
from tiny_model import SPECIAL, SWEEP, random_rows, tiny_config, tiny_model, worst_difference

from bert_jax.config import Config, MeshConfig, OptimizerConfig, PhaseConfig, TrainConfig
from bert_jax.parallel import data_parallel
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.data_parallel import DataParallel
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.training.metrics import Mean, Means
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput, TrainStep
from tests.rounding import (
    SUMS_A_LAYER,
    UNIT_BFLOAT16,
    assert_trees_rounded_alike,
    gradient_bound,
    sum_bound,
)

pytestmark = pytest.mark.numerics

# Relative; of loss and metrics too, which are means of what comes from the last states.
BOUND = gradient_bound(tiny_model(), tokens=16 * 32)
ROWS = random_rows(0, batch=16, length=32, instances=2, empty_rows=1)


def config(accumulation: int = 1, **sections: Any) -> Config:
    """Return sixteen rows of two instances a step, dropout 0.1."""
    train = TrainConfig(
        num_steps=40,
        batch_size=16,
        gradient_accumulation_steps=accumulation,
        phases=(PhaseConfig(max_seq_length=32, max_predictions_per_seq=6),),
    )
    made = tiny_config(train=train, **sections)
    assert made.model.hidden_dropout_prob == made.model.attention_probs_dropout_prob == 0.1
    return made


@functools.cache
def program(accumulation: int, shape: tuple[int, ...]) -> PretrainingProgram:
    """Return the program on a mesh of the first devices."""
    devices = jax.devices()[: int(np.prod(shape))]
    return PretrainingProgram(config(accumulation), mesh=meshes.make_mesh(MeshConfig(*shape), devices=devices))


@functools.cache
def start() -> Any:
    """Return the state of step 3 (where the rate is not 0), on the host."""
    state = program(1, (1, 1, 1)).random_state()
    return jax.device_get(dataclasses.replace(state, step=state.step + 3))


@functools.cache
def stepper(accumulation: int, shape: tuple[int, ...]) -> Any:
    """Return the compiled step."""
    here = program(accumulation, shape)
    return here.train_step(here.phases[0], special=SPECIAL)


def take_step(
    accumulation: int = 1, shape: tuple[int, ...] = (1, 1, 1), *, state: Any = None
) -> tuple[TrainState, StepOutput]:
    """Take one step from `state`, on the host; the moments are the clipped gradients times 1 - beta."""
    here = program(accumulation, shape)
    placed = jax.device_put(start() if state is None else state, here.state_shardings)
    return jax.device_get(stepper(accumulation, shape)(placed, meshes.to_global(ROWS, mesh=here.mesh)))


def gradients(state: TrainState) -> Any:
    """Return the first moments, which after one step are the gradients times 0.1, without the keys' biases.

    What is added to every score of a query does not change its softmax: those gradients are 0 but for rounding.
    """
    moments = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    tree = jax.tree.map(np.asarray, moments.mu)
    tree["encoder"]["layers"]["key"].pop("bias")
    return tree


def assert_same_step(actual: tuple[TrainState, StepOutput]) -> None:
    """Compare loss, gradients and figures with those of one device and no accumulation."""
    (state, output), (expected_state, expected) = actual, take_step()
    assert output.means.keys() == expected.means.keys()
    for name, mean in expected.means.items():
        assert output.means[name].weight == mean.weight, name
        assert_trees_rounded_alike(output.means[name].total, mean.total, bound=BOUND)
    assert_trees_rounded_alike(gradients(state), gradients(expected_state), bound=BOUND)
    assert bool(output.finite)
    assert state.step == 4


@pytest.mark.parametrize("accumulation", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_accumulation_changes_neither_loss_nor_gradients_nor_figures(accumulation: int) -> None:
    assert_same_step(take_step(accumulation))


@pytest.mark.parametrize("shape", SWEEP)
def test_the_mesh_changes_neither_loss_nor_gradients_nor_figures(shape: tuple[int, ...]) -> None:
    assert_same_step(take_step(shape=shape))


def test_accumulation_on_a_mesh_changes_nothing_either() -> None:
    assert_same_step(take_step(2, (4, 2, 1)))


def clipped_step(shape: tuple[int, ...], **changes: Any) -> tuple[TrainState, StepOutput]:
    """Take a step from `start()` whose four replicas are clipped one by one."""
    made = config(optimizer=OptimizerConfig(warmup_steps=4, max_grad_norm=0.5, clip_replicas=4), **changes)
    here = PretrainingProgram(
        made, mesh=meshes.make_mesh(MeshConfig(*shape), devices=jax.devices()[: int(np.prod(shape))])
    )
    placed = jax.device_put(start(), here.state_shardings)
    step = here.train_step(here.phases[0], special=SPECIAL)
    return jax.device_get(step(placed, meshes.to_global(ROWS, mesh=here.mesh)))


@pytest.mark.slow
def test_replicas_are_clipped_one_by_one_as_the_original_did_on_any_number_of_devices() -> None:
    # optimization.py clips what run_pretraining.py's loss of one replica's rows gives, then the optimizer averages.
    here = program(1, (1, 1, 1))
    objective = here.objective(here.phases[0], special=SPECIAL)
    prepare_key, dropout_key = jax.random.split(jax.random.fold_in(here._keys.step, 3))
    batch = objective.prepare(jax.tree.map(jnp.asarray, ROWS), key=prepare_key)
    clipped, losses = [], []
    for replica in range(4):
        rows = jax.tree.map(lambda leaf, at=replica: leaf[4 * at : 4 * at + 4], batch)
        weights = objective.weights(rows)
        loss, grads = jax.value_and_grad(
            lambda p, b=rows, w=weights: objective.loss(p, batch=b, weights=w, key=dropout_key)[0]
        )(jax.tree.map(jnp.asarray, start().params))
        norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
        assert norm > 0.5
        clipped.append(jax.tree.map(lambda g, n=norm: np.asarray(g) * (0.5 / n), grads))
        losses.append(float(loss))
    mean = jax.tree.map(lambda *parts: sum(parts) / 4, *clipped)
    mean["encoder"]["layers"]["key"].pop("bias")
    for shape in [(1, 1, 1), (4, 1, 1)]:
        state, output = clipped_step(shape)
        assert_trees_rounded_alike(output.means["loss"].total, np.mean(losses), bound=BOUND)
        moments = jax.tree.map(lambda m: m / (1 - 0.9), gradients(state))
        assert_trees_rounded_alike(moments, mean, bound=BOUND)


def test_a_step_is_a_function_of_state_and_rows() -> None:
    jax.tree.map(np.testing.assert_array_equal, take_step(), take_step())


def test_each_step_draws_its_own_masks_and_dropout() -> None:
    _, first = take_step()
    _, second = take_step(state=dataclasses.replace(start(), step=np.int32(4)))
    assert first.means["mlm_loss"].total != second.means["mlm_loss"].total
    assert first.means["nsp_loss"].total != second.means["nsp_loss"].total


def test_the_state_is_donated() -> None:
    here = program(1, (1, 1, 1))
    state = jax.device_put(start(), here.state_shardings)
    stepper(1, (1, 1, 1))(state, meshes.to_global(ROWS, mesh=here.mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_nan_in_the_model_leaves_the_state_bit_equal() -> None:
    poisoned = jax.tree.map(np.array, start())
    poisoned.params["pooler"]["dense"]["kernel"][1, 2] = np.nan
    state, output = take_step(state=poisoned)
    assert not output.finite
    assert output.bad_parameters["pooler"]["dense"]["kernel"]
    assert state.step == 4
    jax.tree.map(np.testing.assert_array_equal, state.params, poisoned.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, poisoned.opt_state)


@struct.dataclass
class Points:
    """Hold a toy batch."""

    x: jax.Array
    weight: jax.Array


class Roots:
    """Sum w (a x + sqrt(b)): the gradient of `b` is infinite at 0, that of `a` is finite."""

    def prepare(self, rows: Points, *, key: jax.Array) -> Points:
        """Add noise that depends on the key, so that the order of things can be seen."""
        return dataclasses.replace(rows, x=rows.x + jax.random.normal(key, rows.x.shape))

    def weights(self, batch: Points) -> dict[str, jax.Array]:
        """Return the sum of the weights."""
        return {"points": batch.weight.sum()}

    def loss(
        self, params: Any, *, batch: Points, weights: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, Means]:
        """Return the part's share."""
        values = params["a"]["kernel"] * batch.x + jnp.sqrt(params["b"]["kernel"])
        mean = Mean.of(values, weights=batch.weight)
        return mean.total / weights["points"], {"value": mean}


def toy_step(b: float, *, accumulation: int = 1) -> tuple[TrainState, TrainState, StepOutput]:
    """Return a toy state, the one behind it, and what the step said."""
    params = {"a": {"kernel": jnp.float32(2.0)}, "b": {"kernel": jnp.float32(b)}}
    optimizer = optax.adam(0.1)
    step = TrainStep(Roots(), optimizer=optimizer, key=jax.random.key(1), gradient_accumulation_steps=accumulation)
    rng = np.random.default_rng(0)
    rows = Points(x=jnp.asarray(rng.normal(size=12), jnp.float32), weight=jnp.arange(12.0))
    state = TrainState(step=jnp.int32(5), params=params, opt_state=optimizer.init(params))
    return state, *jax.jit(step)(state, rows)


@pytest.mark.slow
def test_a_gpus_step_branches_nowhere_and_names_the_same_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned = jax.tree.map(np.array, start())
    poisoned.params["pooler"]["dense"]["kernel"][1, 2] = np.nan
    _, expected = take_step(state=poisoned)
    monkeypatch.setattr(DataParallel, "is_on_gpu", True)
    made = PretrainingProgram(config(), mesh=meshes.make_mesh(MeshConfig(), devices=jax.devices()[:1]))
    step = made.train_step(made.phases[0], special=SPECIAL)
    rows = meshes.to_global(ROWS, mesh=made.mesh)
    compiled = step.lower(made.abstract_state(), rows).compile()  # type: ignore[attr-defined]
    assert " conditional(" not in compiled.as_text()
    _, output = step(jax.device_put(poisoned, made.state_shardings), rows)
    jax.tree.map(np.testing.assert_array_equal, output.bad_parameters, expected.bad_parameters)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [True, False])
def test_replicas_with_bfloat16_weights_follow_one_device(scan_layers: bool) -> None:
    # Activations, gathered weights and reduced gradients are rounded to eight bits, and other sums round elsewhere. A
    # gradient of two layers has gone through 66 sums (11 a layer forward, twice as many back), each rounded on either
    # side, independently: 2 sqrt(66) roundings of up to two units, where it is below a power of two. The loss is a mean
    # over 96 predictions, each from one rounded state and one rounded table: 2 sqrt(2) such roundings / sqrt(96).
    results = []
    for shape in [(1, 1, 1), (8, 1, 1)]:
        model = tiny_model(dtype="bfloat16", scan_layers=scan_layers)
        made = PretrainingProgram(
            dataclasses.replace(config(), model=model),
            mesh=meshes.make_mesh(MeshConfig(*shape), devices=jax.devices()[: int(np.prod(shape))]),
        )
        placed = jax.device_put(start(), made.state_shardings)
        step = made.train_step(made.phases[0], special=SPECIAL)
        results.append(jax.device_get(step(placed, meshes.to_global(ROWS, mesh=made.mesh))))
    (one, first), (eight, second) = results
    bound = 2 * np.sqrt(2 / 96) * 2 * UNIT_BFLOAT16
    assert_trees_rounded_alike(first.means["loss"].total, second.means["loss"].total, bound=bound)
    sums = 3 * 2 * SUMS_A_LAYER
    assert worst_difference(gradients(one), gradients(eight)) < 2 * np.sqrt(sums) * 2 * UNIT_BFLOAT16


@pytest.mark.parametrize("from_size", [64, 4], ids=["at once", "in two moves"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (4, 2, 1)])
def test_what_is_gathered_is_the_whole(shape: tuple[int, ...], from_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_parallel, "_MIN_REPLICAS_TO_SPLIT", from_size)
    mesh = meshes.make_mesh(MeshConfig(*shape))
    whole = {"layers": jax.random.normal(jax.random.key(0), (2, 24, 16)), "table": jnp.arange(64.0).reshape(2, 32)}
    specs = {"layers": PartitionSpec(None, ("data", "fsdp")), "table": PartitionSpec(None, ("data", "fsdp"))}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    replicas = DataParallel(
        mesh,
        shardings=shardings,
        dtypes={"layers": jnp.bfloat16, "table": jnp.float32},
        split={"layers": True, "table": False},
    )
    params = jax.device_put(whole, shardings)
    found = replicas.run(lambda shares, _: replicas.gather(shares), params, jnp.zeros(8), reduced=False)
    np.testing.assert_array_equal(found["table"], whole["table"])
    np.testing.assert_array_equal(jnp.stack(found["layers"]), whole["layers"].astype(jnp.bfloat16))


def test_neighbours_are_gathered_first_then_groups_of_them() -> None:
    assert data_parallel._all_gathers({"data": 8, "fsdp": 4}) == [(("data", "fsdp"), None)]
    assert data_parallel._all_gathers({"data": 16, "fsdp": 4}) == [("fsdp", None), ("data", None)]
    (first, near), (second, far) = data_parallel._all_gathers({"data": 128, "fsdp": 1})
    assert first == second == "data"
    assert near is not None
    assert far is not None
    assert (near[1], far[1]) == (list(range(8, 16)), list(range(1, 128, 8)))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_infinite_gradient_leaves_parameters_and_moments_and_is_named(accumulation: int) -> None:
    before, after, output = toy_step(0.0, accumulation=accumulation)
    assert not bool(output.finite)
    assert jax.tree.map(bool, output.bad_parameters) == {"a": {"kernel": False}, "b": {"kernel": True}}
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (before.params, before.opt_state))
    assert int(after.step) == 6


def test_a_finite_gradient_flags_nothing_and_moves_every_parameter() -> None:
    before, after, output = toy_step(1.0)
    assert bool(output.finite)
    assert not any(jax.tree.leaves(jax.tree.map(bool, output.bad_parameters)))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(a != b), before.params, after.params)))


def test_weights_are_those_of_the_whole_batch() -> None:
    # Weights 0 to 11: the parts' own means would add up to another loss.
    results = [toy_step(1.0, accumulation=parts)[2].means for parts in (1, 2, 3, 12)]
    for means in results:
        found = {"loss": means["loss"].total, "mean": means["value"].value(), "norm": means["grad_norm"].total}
        loss, norm = (results[0][name].total for name in ("loss", "grad_norm"))
        assert_trees_rounded_alike(found, {"loss": loss, "mean": loss, "norm": norm}, bound=sum_bound(12))
        assert float(means["value"].weight) == 66.0
