"""The table of mesh axes: everything about an axis follows from its line there and its field of MeshConfig."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_model import random_rows

from bert_jax.config import MeshConfig
from bert_jax.errors import UserError
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel import validation
from bert_jax.parallel.axes import AXES, BATCH_AXES, LAYER_AXES, SLICE_AXIS, TABLE, Axis, StateLayout, describe
from tests.runs import run

# A gradient on a mesh with one axis more: the table and MeshConfig are changed before anything else reads them.
WITH_ANOTHER_AXIS = """
import dataclasses, sys, types
from pathlib import Path

from bert_jax import config

config.MeshConfig = dataclasses.make_dataclass(
    "MeshConfig", [("islands", int, 2)], bases=(config.MeshConfig,), frozen=True
)
path = Path("bert_jax/parallel/axes.py")
line = '    Axis("islands", divides_batch=True, state=StateLayout.WHOLE),\\n'
source = path.read_text().replace('    Axis("data",', line + '    Axis("data",')
assert line in source
module = types.ModuleType("bert_jax.parallel.axes")
sys.modules[module.__name__] = module
exec(compile(source, str(path), "exec"), module.__dict__)

import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from bert_jax.errors import UserError
from bert_jax.parallel import mesh as meshes, validation
from bert_jax.parallel.data_parallel import DataParallel

mesh = meshes.make_mesh(config.MeshConfig(data=2, fsdp=2))
assert dict(mesh.shape) == {"slices": 1, "islands": 2, "data": 2, "fsdp": 2, "tensor": 1}
rows, table = np.arange(64.0, dtype=np.float32).reshape(16, 4) % 7, np.ones((4, 8), np.float32)
placed = meshes.to_global(rows, mesh=mesh)
assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 4)}
sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
replicas = DataParallel(mesh, shardings=sharding, dtypes=jnp.float32, split=False)
assert replicas.size == 8

def loss(table, rows):
    return jnp.square(rows @ table).sum()

def replica(shares, rows):
    value, grads = jax.value_and_grad(loss)(replicas.gather(shares), rows)
    return replicas.total(value), replicas.scatter(grads)

value, grads = replicas.run(replica, jax.device_put(table, sharding), placed, reduced=(False, True))
expected, expected_grads = jax.value_and_grad(loss)(table, rows)  # of small integers: exact in any order
np.testing.assert_array_equal(value, expected)
np.testing.assert_array_equal(grads, expected_grads)
try:
    validation.check_batches({"batch": 12}, mesh=mesh, parts=1)
except UserError as error:
    print(error)
"""


def test_the_fields_of_the_config_are_the_axes() -> None:
    assert {field.name for field in dataclasses.fields(MeshConfig)} == {*AXES, "compiler_options"}
    assert len(AXES) == len(set(AXES))


def test_a_batch_that_no_machine_holds_is_refused_by_its_field() -> None:
    mesh = meshes.make_mesh(MeshConfig())
    validation.check_batches({"--batch_size": 1 << 24}, mesh=mesh, parts=1)
    for batch in (1 << 25, 1 << 63):
        with pytest.raises(UserError, match=rf"--batch_size={batch} is more than any machine holds"):
            validation.check_batches({"--batch_size": batch}, mesh=mesh, parts=1)


def test_the_order_is_from_the_outside_to_the_inside() -> None:
    assert AXES[0] == SLICE_AXIS  # each index of it is one slice, laid out by itself
    assert (*BATCH_AXES, *LAYER_AXES) == AXES  # the rows that devices share are neighbors (`mesh.batch_shards`)


@pytest.mark.parametrize("axis", TABLE, ids=lambda axis: axis.name)
def test_each_axis_divides_what_its_line_says(axis: Axis) -> None:
    mesh = meshes.make_mesh(dataclasses.replace(MeshConfig(1), **{axis.name: 8}))
    assert mesh.shape[axis.name] == mesh.size == 8
    assert meshes.batch_devices(mesh) == (8 if axis.divides_batch else 1)
    assert meshes.batch_shards(mesh)[1] == meshes.batch_devices(mesh)
    placed = meshes.to_global(random_rows(0, batch=8, length=16).input_ids, mesh=mesh)
    assert {shard.data.shape[0] for shard in placed.addressable_shards} == {1 if axis.divides_batch else 8}
    boxed = nn.LogicallyPartitioned(jnp.zeros((512, 1024)), names=("embed", "mlp"))
    size = meshes.bytes_per_device(boxed.value, shardings=meshes.tree_shardings(boxed, mesh=mesh))
    assert size == 512 * 1024 * 4 // (1 if axis.state is StateLayout.WHOLE else 8)


def test_one_slice_is_not_named_in_messages() -> None:
    sizes = dict.fromkeys(AXES, 2)
    assert describe(sizes | {SLICE_AXIS: 1}) == "data=2 x fsdp=2 x tensor=2"
    assert describe(sizes) == "slices=2 x data=2 x fsdp=2 x tensor=2"


def test_another_axis_is_a_line_of_the_table_and_a_field_of_the_config() -> None:
    done = run([sys.executable, "-c", WITH_ANOTHER_AXIS], devices=8)
    assert done.returncode == 0, done.stderr
    assert "batch=12 does not divide over 8 devices (mesh islands x data x fsdp)" in done.stdout


def test_slices_are_the_outermost_blocks_of_devices() -> None:
    mesh = meshes.make_mesh(MeshConfig(data=2, fsdp=2, slices=2))
    blocks = np.asarray(jax.devices()).reshape(2, 4)
    for index, block in enumerate(mesh.devices):
        assert list(block.flat) == list(blocks[index])
