"""The mesh: shapes that cannot be, what divides and what is left whole."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec
from tiny_model import FACTORS, SLICED, random_rows, tiny_config, tiny_model

from bert_jax.config import Config, MeshConfig, PhaseConfig, TrainConfig, model_preset
from bert_jax.data.loader import PretrainingBatches
from bert_jax.errors import UserError
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.axes import TABLE
from bert_jax.pretrain.mesh_checks import validate_for_mesh
from bert_jax.pretrain.program import PretrainingProgram


def refused(config: Config, mesh_config: MeshConfig) -> str:
    """Return the line with which a config is refused on a mesh."""
    mesh = meshes.make_mesh(mesh_config)
    with pytest.raises(UserError) as caught:
        validate_for_mesh(config, mesh=mesh)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shape", FACTORS + SLICED)
def test_every_factorisation_makes_a_mesh_of_all_devices(shape: tuple[int, ...]) -> None:
    mesh = meshes.make_mesh(MeshConfig(*shape))
    sizes: dict[str, int] = dict(zip(("data", "fsdp", "tensor", "slices"), (*shape, 1)[:4], strict=True))
    assert tuple(mesh.shape.items()) == tuple((axis.name, sizes[axis.name]) for axis in TABLE)
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=1, fsdp=-1), (1, 8, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=-1), (2, 2, 2)),
        (MeshConfig(data=-1, tensor=4), (2, 1, 4)),
    ],
)
def test_minus_one_takes_the_rest(config: MeshConfig, shape: tuple[int, int, int]) -> None:
    mesh = meshes.make_mesh(config)
    assert tuple(mesh.shape[axis] for axis in ("data", "fsdp", "tensor")) == shape


@pytest.mark.parametrize(
    "config",
    [MeshConfig(data=3), MeshConfig(fsdp=3), MeshConfig(fsdp=16), MeshConfig(4, 4, 1), MeshConfig(1, 1, 1)],
    ids=str,
)
def test_a_mesh_of_another_number_of_devices_is_one_clear_line(config: MeshConfig) -> None:
    with pytest.raises(UserError, match=r"config\.mesh: .* 8 devices") as caught:
        meshes.make_mesh(config)
    assert "\n" not in str(caught.value)


class OfAMachine:
    """Stand for a GPU or CPU device; each machine of a run has a slice_index of its own."""

    platform = "gpu"
    device_kind = "NVIDIA H200"

    def __init__(self, number: int):
        self.id, self.process_index, self.slice_index = number, number // 2, number // 2


def test_machines_without_tpus_are_no_slices() -> None:
    mesh = meshes.make_mesh(MeshConfig(), devices=[OfAMachine(number) for number in range(4)])
    assert dict(mesh.shape) == {"slices": 1, "data": 4, "fsdp": 1, "tensor": 1}


def test_fewer_devices_can_be_named() -> None:
    mesh = meshes.make_mesh(MeshConfig(data=2), devices=jax.devices()[:2])
    assert list(mesh.devices.flat) == jax.devices()[:2]


def test_a_batch_that_does_not_divide_is_named_with_one_that_does() -> None:
    config = tiny_config(train=TrainConfig(batch_size=20, phases=(PhaseConfig(max_seq_length=32),)))
    text = refused(config, MeshConfig(data=4, fsdp=2))
    assert "config.train.batch_size=20" in text
    assert "24" in text
    validate_for_mesh(config, mesh=meshes.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))


def test_accumulation_must_leave_each_device_a_row() -> None:
    train = TrainConfig(batch_size=16, gradient_accumulation_steps=4, phases=(PhaseConfig(max_seq_length=32),))
    text = refused(tiny_config(train=train), MeshConfig(data=8))
    assert "gradient_accumulation_steps" in text
    assert "32" in text


def test_the_batch_of_a_phase_is_named_as_such() -> None:
    train = TrainConfig(batch_size=16, phases=(PhaseConfig(max_seq_length=32, batch_size=12),))
    assert "config.train.phases[0].batch_size=12" in refused(tiny_config(train=train), MeshConfig())


@pytest.mark.parametrize(("field", "value"), [("num_attention_heads", 4), ("intermediate_size", 60)])
def test_heads_and_inner_layer_must_divide_over_tensor(field: str, value: int) -> None:
    config = tiny_config(model=tiny_model(**{field: value}))
    text = refused(config, MeshConfig(data=1, tensor=8))
    assert "config.mesh.tensor=8" in text
    assert f"config.model.{field}={value}" in text


def test_rows_become_global_arrays_sharded_by_row() -> None:
    mesh = meshes.make_mesh(MeshConfig(2, 2, 2))
    rows = random_rows(0, batch=8, length=16)
    placed = meshes.to_global(rows, mesh=mesh)
    for mine, theirs in zip(jax.tree.leaves(rows), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert theirs.sharding.spec == PartitionSpec(("slices", "data", "fsdp"))
        assert {shard.data.shape[0] for shard in theirs.addressable_shards} == {2}


@pytest.mark.parametrize("shape", FACTORS + SLICED, ids=str)
def test_what_the_loader_reads_is_on_the_devices_bit_for_bit_on_every_mesh(
    shape: tuple[int, ...], tiny_dataset: Path
) -> None:
    mesh = meshes.make_mesh(MeshConfig(*shape))
    shares, share_count = meshes.batch_shards(mesh)
    batches = functools.partial(PretrainingBatches, tiny_dataset, max_seq_length=32, batch_size=16, seed=5)
    alone = batches().iterate(start=3, stop=5)
    for whole, local in zip(
        alone, batches(shards=shares, num_shards=share_count).iterate(start=3, stop=5), strict=True
    ):
        placed = meshes.to_global(local, mesh=mesh)
        assert placed.keys() == whole.keys()
        for name, expected in whole.items():
            np.testing.assert_array_equal(placed[name], expected)
            assert placed[name].dtype == expected.dtype


def test_what_does_not_divide_is_left_whole() -> None:
    mesh = meshes.make_mesh(MeshConfig(1, 4, 2))
    boxed = {
        "fits": nn.LogicallyPartitioned(jnp.zeros((6, 8)), names=("vocab", "embed")),
        "odd": nn.LogicallyPartitioned(jnp.zeros((7, 6)), names=("vocab", "embed")),
        "stacked": nn.LogicallyPartitioned(jnp.zeros((3, 8, 8)), names=("layers", "embed", "mlp")),
        "plain": jnp.zeros(()),
    }
    specs = jax.tree.map(lambda sharding: sharding.spec, meshes.tree_shardings(boxed, mesh=mesh))
    assert specs["fits"] == PartitionSpec("tensor", "fsdp")
    assert specs["odd"] == PartitionSpec(None, None)
    assert specs["stacked"] == PartitionSpec(None, "fsdp", "tensor")
    assert specs["plain"] == PartitionSpec()


def state_bytes(program: PretrainingProgram) -> tuple[int, int]:
    """Return the bytes of the state on one device and in all."""
    shapes = program.state_shapes
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    return meshes.bytes_per_device(shapes, shardings=program.state_shardings), whole


@pytest.mark.parametrize("preset", ["tiny", "base", "large"])
@pytest.mark.parametrize("mesh", [MeshConfig(data=1, fsdp=8), MeshConfig(data=1, fsdp=4, tensor=2)], ids=str)
def test_sharded_state_takes_at_most_its_share_of_each_device(preset: str, mesh: MeshConfig) -> None:
    config = dataclasses.replace(Config(), model=model_preset(preset))
    a_device, whole = state_bytes(PretrainingProgram(config, mesh=meshes.make_mesh(mesh)))
    assert whole / 8 <= a_device <= 1.15 * whole / 8


def test_the_stated_bytes_are_those_on_the_device() -> None:
    program = PretrainingProgram(tiny_config(), mesh=meshes.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)))
    state = program.random_state()
    for device in jax.devices():
        held = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(state)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert held == state_bytes(program)[0]


def test_fresh_parameters_do_not_depend_on_the_mesh() -> None:
    states = [
        jax.device_get(PretrainingProgram(tiny_config(), mesh=meshes.make_mesh(mesh)).random_state().params)
        for mesh in (MeshConfig(), MeshConfig(2, 2, 2))
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_vocabulary_that_does_not_divide_over_tensor_is_left_whole() -> None:
    # tests/test_steps.py trains this one on every mesh.
    program = PretrainingProgram(tiny_config(), mesh=meshes.make_mesh(MeshConfig(2, 1, 4)))
    assert program.config.model.vocab_size % 4
    assert dict(program.rules)["vocab"] is None
    shardings: Any = program.state_shardings.params
    assert shardings["encoder"]["embeddings"]["word_embeddings"].spec == PartitionSpec(None, "fsdp")


def test_a_vocabulary_that_divides_is_sharded_over_tensor() -> None:
    program = PretrainingProgram(
        tiny_config(model=tiny_model(vocab_size=104)), mesh=meshes.make_mesh(MeshConfig(2, 1, 4))
    )
    shardings: Any = program.state_shardings.params
    assert shardings["encoder"]["embeddings"]["word_embeddings"].spec[0] == "tensor"
    assert shardings["masked_lm"]["bias"].spec[0] == "tensor"
