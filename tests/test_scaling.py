"""Plans beyond what is compiled: the part that stands for a large slice, and what is scaled from it."""

import dataclasses

import pytest
from test_hlo import PROGRAM

from bert_jax.config import Config, MeshConfig, OptimizerConfig, PhaseConfig, TrainConfig
from bert_jax.errors import UserError
from bert_jax.planning.collectives import find_collectives
from bert_jax.planning.hlo import parse_hlo
from bert_jax.planning.scaling import compiled_part, scale_down
from bert_jax.planning.topology import parse_topology

CONFIG = Config(train=TrainConfig(batch_size=8192, phases=(PhaseConfig(),)))


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        ("v5e:16x16", "v5e:16x16"),
        ("v5p:4x8x8", "v5p:4x8x8"),
        ("v5p:8x8x8", "v5p:4x8x8"),
        ("v4:16x16x16", "v4:4x8x8"),
        ("v5p:16x16x24", "v5p:8x8x4"),
        ("v5p:4x4x20", "v5p:4x4x4"),
    ],
)
def test_the_part_is_the_largest_that_the_compiler_takes(whole: str, part: str) -> None:
    assert compiled_part(parse_topology(whole)).name == part


@pytest.mark.parametrize(
    ("name", "words"),
    [("v5e:32x32", "at most 256 chips"), ("v6e:16x32", "at most 256"), ("v5p:6x8x8", "multiple of 4")],
)
def test_a_large_slice_that_does_not_exist_is_one_line(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        compiled_part(parse_topology(name))


def test_every_chip_of_the_part_has_as_many_rows() -> None:
    train = TrainConfig(batch_size=8192, phases=(PhaseConfig(fraction=0.5), PhaseConfig(fraction=0.5, batch_size=4096)))
    config = dataclasses.replace(CONFIG, train=train, mesh=MeshConfig(data=-1, fsdp=8))
    scaling = scale_down(config, topology=parse_topology("v5p:16x16x16"))
    assert scaling.part.num_chips == 256
    assert scaling.config.train.batch_size / 256 == 8192 / 4096
    assert [phase.batch_size for phase in scaling.config.train.phases] == [0, 4096 // 16]
    assert scaling.config.mesh == MeshConfig(data=32, fsdp=8, tensor=1)
    assert scaling.mesh_shape({"data": 32, "fsdp": 8, "tensor": 1}) == {"data": 512, "fsdp": 8, "tensor": 1}
    # All chips, those along `data` alone; not those along `fsdp` alone.
    assert [scaling.group_size(size) for size in (256, 32, 8)] == [4096, 512, 8]


def test_a_slice_that_is_compiled_is_not_scaled() -> None:
    scaling = scale_down(CONFIG, topology=parse_topology("v5e:16x16"))
    assert scaling.config is CONFIG
    assert [scaling.group_size(size) for size in (256, 16, 1)] == [256, 16, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": TrainConfig(batch_size=8000)}, "train.batch_size=8000 does not divide over 4096"),
        ({"mesh": MeshConfig(data=2, fsdp=8, tensor=256)}, "config.mesh: neither data=2 nor fsdp=8"),
        ({"mesh": MeshConfig(data=3, fsdp=-1)}, "does not make 4096 devices"),
        ({"optimizer": OptimizerConfig(clip_replicas=4096)}, "clip_replicas=4096"),
    ],
)
def test_what_does_not_divide_over_the_large_slice_is_one_line(change: dict, words: str) -> None:
    model = dataclasses.replace(CONFIG.model, num_attention_heads=256, hidden_size=1024, intermediate_size=4096)
    with pytest.raises(UserError, match=words):
        scale_down(dataclasses.replace(CONFIG, model=model, **change), topology=parse_topology("v4:16x16x16"))


def test_collectives_are_as_long_as_the_large_slices_rings() -> None:
    program = parse_hlo(PROGRAM)
    small, large = parse_topology("v4:4x4x1"), parse_topology("v4:4x4x4")
    here = find_collectives(program, topology=small)
    scaled = find_collectives(program, topology=large, num_devices=16, spans=lambda size: 4 * size)
    assert [item.bytes for item in here] == [item.bytes for item in scaled]
    assert {item.group_size for item in scaled} == {4 * item.group_size for item in here}
    for one, other in zip(here, scaled, strict=True):
        # (n - 1) / n of the buffer over n chips, on the links that the large slice has.
        rings = [
            (n - 1) / n / t.collective_bandwidth(n) for n, t in ((one.group_size, small), (other.group_size, large))
        ]
        assert other.seconds / one.seconds == pytest.approx(rings[1] / rings[0])
