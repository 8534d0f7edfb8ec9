"""A step with a teacher: the same on any mesh and with accumulation; the teacher is read and never changed."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from tiny_model import SPECIAL, random_rows, tiny_config, tiny_model, worst_difference

from bert_jax.config import Config, DistillationConfig, MeshConfig, ModelConfig, PhaseConfig, TrainConfig
from bert_jax.errors import UserError
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import flatten
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.distillation_program import DistillationProgram
from bert_jax.types import LAYERS
from tests.rounding import encoder_bound
from tests.teachers import random_encoder

pytestmark = pytest.mark.numerics

ROWS = random_rows(0, batch=16, length=32, instances=2, empty_rows=1)
TEACHER = tiny_model(hidden_size=64, num_hidden_layers=3)  # twice the student's width
MODERN = tiny_model(
    architecture="modernbert",
    type_vocab_size=2,
    hidden_act="gelu",
    layer_norm_eps=1e-5,
    global_attn_every_n_layers=2,
    local_attention=8,
    num_hidden_layers=3,
)


def config(*, accumulation: int = 1, weight: float = 0.5, model: ModelConfig | None = None) -> Config:
    """Return sixteen sequences of two instances per step, in eight relation heads, dropout 0.1."""
    train = TrainConfig(
        num_steps=40,
        batch_size=16,
        gradient_accumulation_steps=accumulation,
        phases=(PhaseConfig(max_seq_length=32, max_predictions_per_seq=6),),
    )
    made = tiny_config(
        model=model,
        train=train,
        distill=DistillationConfig(relation_heads=8, pretraining_weight=weight),
    )
    return dataclasses.replace(made, data=dataclasses.replace(made.data, objective="mlm"))


@functools.cache
def opened(made: Config, shape: tuple[int, ...] = (1, 1, 1), *, teacher: ModelConfig = TEACHER) -> DistillationProgram:
    """Return the program on the first devices, its teacher placed."""
    mesh = meshes.make_mesh(MeshConfig(*shape), devices=jax.devices()[: int(np.prod(shape))])
    program = DistillationProgram(made, mesh=mesh, teacher=teacher)
    program.place_teacher(random_encoder(teacher))
    return program


@functools.cache
def start(made: Config) -> Any:
    """Return the state of step 3 (where the rate is not 0), on the host."""
    state = opened(dataclasses.replace(made, train=config().train)).random_state()
    return jax.device_get(dataclasses.replace(state, step=state.step + 3))


@functools.cache
def take_step(made: Config, shape: tuple[int, ...] = (1, 1, 1), *, teacher: ModelConfig = TEACHER) -> Any:
    """Return the state and the metrics after a step, on the host."""
    program = opened(made, shape, teacher=teacher)
    placed = jax.device_put(start(dataclasses.replace(made, train=config().train)), program.state_shardings)
    step = program.train_step(program.phases[0], special=SPECIAL)
    return jax.device_get(step(placed, meshes.to_global(ROWS, mesh=program.mesh)))


def moments(state: Any) -> Any:
    """Return the gradients times 0.1, without the keys' biases (`test_steps.py`)."""
    leaves = jax.tree.leaves(state.opt_state, is_leaf=lambda leaf: hasattr(leaf, "mu"))
    tree = jax.tree.map(np.asarray, next(leaf for leaf in leaves if hasattr(leaf, "mu")).mu)
    tree["encoder"]["layers"]["key"].pop("bias", None)
    return tree


@pytest.mark.parametrize(
    ("shape", "accumulation"),
    [
        pytest.param((2, 1, 1), 1, marks=pytest.mark.slow),
        pytest.param((1, 2, 2), 1, marks=pytest.mark.slow),
        pytest.param((4, 1, 1), 2, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), 2, marks=pytest.mark.slow),
        pytest.param((8, 1, 1), 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_mesh_and_accumulation_change_neither_loss_nor_gradients_nor_metrics(
    shape: tuple[int, ...], accumulation: int
) -> None:
    state, output = take_step(config(accumulation=accumulation), shape)
    first_state, first = take_step(config())
    # The forward passes of both models, and the student's backward pass.
    tolerance = encoder_bound(TEACHER) + 2 * encoder_bound(config().model)
    assert output.means.keys() == first.means.keys()
    assert {"relation_loss", "query_relation_loss", "mlm_loss", "loss"} <= output.means.keys()
    for name, mean in first.means.items():
        assert output.means[name].weight == mean.weight, name
        np.testing.assert_allclose(output.means[name].total, mean.total, rtol=tolerance, err_msg=name)
    assert worst_difference(moments(state), moments(first_state)) < tolerance
    assert bool(output.finite)


@pytest.mark.slow
def test_the_loss_is_the_relations_and_the_weight_times_pretraining() -> None:
    _, output = take_step(config())
    means = {name: float(mean.value()) for name, mean in output.means.items()}
    kinds = sum(means[f"{kind}_relation_loss"] for kind in ("query", "key", "value"))
    assert means["relation_loss"] == pytest.approx(kinds, rel=1e-6)
    assert means["loss"] == pytest.approx(means["relation_loss"] + 0.5 * means["mlm_loss"], rel=1e-6)
    assert means["relation_loss"] > 0.01


@pytest.mark.parametrize("student", [None, pytest.param(MODERN, marks=pytest.mark.slow)], ids=["bert", "modernbert"])
def test_without_pretraining_only_what_the_relations_reach_is_updated(student: ModelConfig | None) -> None:
    made = config(weight=0.0, model=student)
    state, output = take_step(made)
    before, after = flatten(start(made).params), flatten(state.params)
    reached = architecture_of(made.model).projections
    assert reached is not None
    for name, values in before.items():
        moved = values != after[name]
        if not name.startswith("encoder/"):
            assert not moved.any(), name
        elif name.startswith(LAYERS):
            assert moved[:-1].any() or len(values) == 1, name
            assert moved[-1].any() == (name.split("/")[2] in reached.parameters), name
        elif name != "encoder/final_layer_norm/scale":
            assert moved.any(), name
    assert "mlm_loss" not in output.means


@pytest.mark.slow
def test_the_teacher_is_on_the_mesh_as_given_and_stays_so() -> None:
    state, _ = take_step(config(accumulation=2), (2, 2, 2))
    program = opened(config(accumulation=2), (2, 2, 2))
    assert worst_difference(jax.device_get(program._teacher_params), random_encoder(TEACHER)) == 0
    kernel = program._teacher_params["layers"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size  # over fsdp and tensor
    assert (
        {name.partition("/")[0] for name in flatten(state.params)}
        == set(state.params)
        <= set(architecture_of(config().model).pretraining_parts)
    )


@pytest.mark.slow
def test_modernbert_learns_from_bert_and_bert_from_modernbert() -> None:
    teacher = dataclasses.replace(MODERN, hidden_size=64)
    for made, given in ((config(model=MODERN), TEACHER), (config(), teacher)):
        _, output = take_step(made, (2, 2, 2), teacher=given)
        _, alone = take_step(made, teacher=given)
        assert float(output.means["relation_loss"].value()) == pytest.approx(
            float(alone.means["relation_loss"].value()), rel=encoder_bound(given) + encoder_bound(made.model)
        )


def test_heads_of_the_teacher_that_do_not_divide_over_the_mesh_are_one_line() -> None:
    teacher = dataclasses.replace(TEACHER, num_attention_heads=2, hidden_size=64)
    with pytest.raises(UserError, match=r"config.mesh.tensor=8 does not divide the teacher's num_attention_heads=2"):
        opened(config(), (1, 1, 8), teacher=teacher)
