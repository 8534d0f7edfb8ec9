"""Plans: options, slices, data sets and sweeps by the TPU compiler; bad input in one line."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jax.experimental import topologies
from test_configs import load

from bert_jax.chips import CHIPS
from bert_jax.config import Config, DataConfig, MeshConfig, PhaseConfig, TrainConfig, model_preset
from bert_jax.data.builder import build_dataset
from bert_jax.errors import UserError
from bert_jax.model.chip import is_vector_bound, writes_norms
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.axes import AXES
from bert_jax.parallel.compiler_options import table_of
from bert_jax.planning import compiling, scaling, sweep
from bert_jax.planning import report as reports
from bert_jax.planning.collectives import LINKS
from bert_jax.planning.compiling import CompiledStep
from bert_jax.planning.estimate import memory_json
from bert_jax.planning.topology import parse_topology
from tests.tpu_plans import plan, plan_config, thin


def told_on(topology: str) -> tuple[bool, bool]:
    """Say what the model is told about the chip, in the process with the compiler."""
    program = compiling.make_program(thin(load("base_tpu"), chips=4), topology=parse_topology(topology))
    with meshes.use_mesh(program.mesh, rules=program.rules):
        return is_vector_bound(), writes_norms()


def test_the_model_knows_the_chip_that_it_is_compiled_for(compiler: Callable[..., Any]) -> None:
    told = {name: compiler(told_on, name) for name in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v4:2x2x1")}
    nothing = (False, False)
    assert told == {"v5e:2x2": nothing, "v5p:2x2x1": (False, True), "v6e:2x2": (True, True), "v4:2x2x1": nothing}


def options_on(topology: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options of a run, and those that the compiler refuses, in the process with the compiler."""
    program = compiling.make_program(thin(load("base_tpu"), chips=4), topology=parse_topology(topology))
    return dict(program.compiler_options.values), dict(program.compiler_options.refused)


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_compiler_knows_every_option_of_the_table(topology: str, compiler: Callable[..., Any]) -> None:
    values, refused = compiler(options_on, topology)
    assert not refused
    assert values == table_of(topology.partition(":")[0], devices=4)


def test_chips_of_two_devices_are_planned(compiler: Callable[..., Any]) -> None:
    result, _ = compiler(plan_config, thin(load("base_tpu"), chips=8), "tpu7x:2x2x1")
    assert (result["chips"], result["mesh"]["data"]) == (4, 8)
    for phase in result["phases"]:
        assert phase["batch_size_per_chip"] == 16
        assert phase["hbm"]["capacity_bytes"] == 96 * 2**30
        assert 0 < phase["mfu"] <= phase["mfu_before_collectives"] < 1


def mesh_of_two_slices(config: MeshConfig) -> list[int]:
    """Return the slice of each device of a mesh in its order, in the process with the compiler."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2).devices
    return [device.slice_index for device in meshes.make_mesh(config, devices=devices).devices.flat]


def test_slices_are_the_outermost_axis(compiler: Callable[..., Any]) -> None:
    assert compiler(mesh_of_two_slices, MeshConfig(slices=2)) == [0] * 4 + [1] * 4


@pytest.mark.parametrize("slices", [1, 4])
def test_another_number_of_slices_is_refused_in_one_line(slices: int, compiler: Callable[..., Any]) -> None:
    says = rf"config.mesh.slices={slices}, but the TPUs are 2 slices.*: set config.mesh.slices=2"
    with pytest.raises(UserError, match=says) as caught:
        compiler(mesh_of_two_slices, MeshConfig(slices=slices))
    assert "\n" not in str(caught.value)


def test_two_slices_exchange_shards_of_the_gradients_alone(compiler: Callable[..., Any]) -> None:
    config = thin(load("base_tpu"), chips=8)
    phases = (PhaseConfig(max_seq_length=128),)
    config = dataclasses.replace(
        config, mesh=MeshConfig(slices=2), train=dataclasses.replace(config.train, phases=phases)
    )
    result, _ = compiler(plan_config, config, "2xv5e:2x2")
    assert (result["chips"], result["topology"], result["mesh"]["slices"]) == (8, "2xv5e:2x2", 2)
    (phase,) = result["phases"]
    between = [item for item in phase["collectives"] if item["network"] == "network"]
    assert {(item["kind"], item["chips"]) for item in between} == {("all-reduce", 2)}
    # A quarter of the gradients in bfloat16, and the small rest whole in float32: biases, norms, 2 % of this model.
    shards = 2 * result["parameters"] / 4
    assert shards <= sum(item["bytes"] for item in between) < 1.15 * shards
    inside = [item for item in phase["collectives"] if item["network"] == "links"]
    assert max(item["chips"] for item in inside) == 4
    assert "all-reduce" in reports.as_table(result)
    assert "2 chips across slices" in reports.as_table(result)


def plan_scaled(config: Config, topology: str, most: int) -> dict[str, Any]:
    """Plan as if the compiler took `most` chips at most, in the process with the compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "MAX_COMPILED_CHIPS", most)
        return plan_config(config, topology)[0]


def test_a_slice_planned_by_scaling_costs_what_it_costs_when_it_is_compiled(compiler: Callable[..., Any]) -> None:
    config = thin(load("base_tpu"), chips=128)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, phases=(PhaseConfig(),)))
    compiled, scaled = (compiler(plan_scaled, config, "v4:4x4x8", most) for most in (128, 64))
    assert (compiled["compiled_for"], scaled["compiled_for"]) == ("v4:4x4x8", "v4:4x4x4")
    scaling_notes = [[note for note in plan["notes"] if "compiled for" in note] for plan in (compiled, scaled)]
    assert not scaling_notes[0]
    assert "compiled for v4:4x4x4" in scaling_notes[1][0]
    for name in ("chips", "mesh", "parameters"):
        assert scaled[name] == compiled[name]
    (one,), (other,) = compiled["phases"], scaled["phases"]
    for name in ("batch_size", "batch_size_per_chip", "steps"):
        assert other[name] == one[name]
    # The update of the state's share, larger in the part, is what differs; and how XLA groups small collectives.
    assert other["estimated_cycles"] == pytest.approx(one["estimated_cycles"], rel=0.05)
    gradients = [phase["gradient_cycles_per_sequence"] for phase in (one, other)]
    assert gradients[0] == pytest.approx(gradients[1], rel=0.02)
    assert 0.5 < gradients[0] / one["cycles_per_sequence"] < 1
    assert other["step_seconds"] == pytest.approx(one["step_seconds"], rel=0.05)
    assert other["mfu"] == pytest.approx(one["mfu"], rel=0.05)


def test_a_data_set_says_what_packed_rows_hold(tmp_path: Path, compiler: Callable[..., Any]) -> None:
    text = tmp_path / "text.txt"
    lines = (f"Sentence {n} of a document.\nAnother one of it.\nAnd a third, about {n * n} things." for n in range(200))
    text.write_text("\n\n".join(lines))
    data = DataConfig(input=str(text), format="sentences", pack=True, num_workers=1)
    info = build_dataset(data, out=tmp_path / "rows", max_seq_lengths=(128,), vocab_size=200, report=lambda line: None)
    config = thin(load("base_tpu"), chips=4)
    train = TrainConfig(batch_size=32, phases=(PhaseConfig(),))
    config = dataclasses.replace(config, train=train, data=data)
    unknown, _ = compiler(plan_config, config, "v5e:2x2")
    assert "upper bound" in unknown["notes"][0]
    assert unknown["phases"][0]["real_tokens_per_second"] is None
    given = dataclasses.replace(config, data=dataclasses.replace(data, directory=str(info.directory)))
    known, _ = compiler(plan_config, given, "v5e:2x2")
    (phase,) = known["phases"]
    assert not any("upper bound" in note for note in known["notes"])
    assert phase["instances_per_second"] == pytest.approx(info.mean_instances * phase["sequences_per_second"])
    filled = 1 - info.statistics["padding_share"]
    assert phase["real_tokens_per_second"] == pytest.approx(filled * phase["tokens_per_second"])
    assert phase["mfu"] < unknown["phases"][0]["mfu"]
    assert "instances/s" in reports.as_table(known)
    longer = dataclasses.replace(given, train=TrainConfig(batch_size=32, phases=(PhaseConfig(max_seq_length=256),)))
    with pytest.raises(UserError, match="256"):
        compiler(plan_config, longer, "v5e:2x2")


@pytest.mark.usefixtures("compiler")
def test_the_door_prints_json_and_keeps_the_program(tmp_path: Path) -> None:
    hlo = tmp_path / "step.hlo"
    done = plan("--config=configs/tiny_cpu.py", "--topology=v5e:2x2", f"--hlo={hlo}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["topology"] == "v5e:2x2"
    assert hlo.read_text().startswith("HloModule")
    assert len(done.stderr.splitlines()) == 1  # what is being compiled; nothing of the TPU library


def sweep_config(config: Config, variants: dict[str, list[str]]) -> dict[str, Any]:
    """Sweep, in the process with the compiler."""
    return sweep.sweep(config, topology=parse_topology("v5e:2x2"), variants=variants, report=lambda text: None)


def test_a_sweep_names_the_fastest_that_fits(compiler: Callable[..., Any]) -> None:
    config = thin(load("base_tpu"), chips=4)
    train = TrainConfig(batch_size=32, phases=(PhaseConfig(max_seq_length=128),))
    config = dataclasses.replace(config, train=train)
    variants = sweep.parse_variants("batch=2,16")
    result = compiler(sweep_config, config, variants)
    assert [item["variant"] for item in result["plans"]] == [{"batch": "2"}, {"batch": "16"}]
    assert result["best"] == 1  # two rows a chip do not keep a TPU busy
    assert "* batch=16" in sweep.as_table(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/tiny_cpu.py"], "--topology is missing"),
        (["--topology=v5e:4x4"], "--config is missing"),
        (["--config=configs/tiny_cpu.py", "--topology=v7:4x4"], "one of v4, v5e, v5p, v6e"),
        (["--config=configs/tiny_cpu.py", "--topology=v5e-16"], "for example v5e:4x4"),
        (["--config=configs/tiny_cpu.py", "--topology=v5p:4x4"], "3 axes"),
        (["--config=configs/tiny_cpu.py", "--topology=v5e:4x4", "--sweep=rows=3"], "name one of batch, mesh"),
        (["--config=configs/tiny_cpu.py", "--topology=v5e:4x4", "--hlo=/nowhere/step.hlo"], "there is no folder"),
        (["--config=configs/tiny_cpu.py", "--topology=v5e:4x4", "--hlo=x", "--sweep=batch=2"], "leave out --sweep"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str) -> None:
    done = plan(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout


@pytest.mark.parametrize(
    ("topology", "words"), [("v5e:3x5", "no such slice"), ("v5e:32x32", "at most 256 chips")], ids=str
)
def test_a_slice_that_does_not_exist_is_one_line(topology: str, words: str, compiler: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=words):
        compiler(plan_config, thin(load("base_tpu"), chips=4), topology)


@pytest.mark.parametrize(
    "text", ["", "batch", "batch=", "batch=x", "batch=0", "batch=²", "attention=cudnn", "remat=some", "mesh=tensor"]
)
def test_a_wrong_sweep_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--sweep"):
        sweep.parse_variants(text)


def test_what_does_not_fit_says_what_to_change() -> None:
    config = dataclasses.replace(Config(), model=model_preset("large"))
    line = reports.advice(config, needed=20 * 2**30, topology=parse_topology("v5e:4x4"))
    for word in ("20.0 GiB of 16 GiB", "gradient_accumulation_steps=2", "remat=dots", "mesh.fsdp=8"):
        assert word in line
    alone = reports.advice(config, needed=None, topology=parse_topology("v5e:1x1"))
    assert "fsdp" not in alone
    full = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="full"))
    assert "remat" not in reports.advice(full, needed=None, topology=parse_topology("v5e:4x4"))


def planned(*, fits: bool) -> dict[str, Any]:
    """Return a plan as `plan_run` makes it, with a collective that is nothing in the units of the table."""
    collective = {
        "kind": "all-reduce", "count": 2, "chips": 16, "network": LINKS, "bytes": 2**20, "seconds": 2e-3, "fused": 0,
        "overlapped": True, "exposed_seconds": 1e-3, "limited_by": "", "first_issued_seconds": 0.0,
        "last_issued_seconds": 0.01,
    }  # fmt: skip
    nothing = collective | {"kind": "all-gather", "bytes": 900, "seconds": 1e-6, "exposed_seconds": 1e-6}
    phase = {
        "phase": 0, "steps": 1000, "max_seq_length": 128, "batch_size": 512, "batch_size_per_chip": 32,
        "gradient_accumulation_steps": 1, "unestimated": {}, "collectives": [collective, nothing],
        "hbm": {"total_bytes": 2**32, "capacity_bytes": 2**34, "argument_bytes": 2**30, "temporary_bytes": 2**30},
        "compute_seconds": 0.049, "exposed_collective_seconds": 0.001, "step_seconds": 0.05, "seconds": 50.0,
        "sequences_per_second": 10_000.0, "tokens_per_second": 1e6, "real_tokens_per_second": None, "mfu": 0.4,
        "mfu_before_collectives": 0.41, **({} if fits else {"advice": "a step needs more"}),
    }  # fmt: skip
    plan = {
        "topology": "v5e:4x4", "chips": 16, "parameters": 10**8, "compiler_options": {},
        "mesh": {name: 16 if name == "data" else 1 for name in AXES},
        "fits": fits, "notes": ["a caveat"], "phases": [phase],
    }  # fmt: skip
    return plan | ({"days": 0.5, "chip_hours": 192.0} if fits else {})


def test_the_last_lines_of_a_table_are_what_a_user_decides_by() -> None:
    lines = reports.as_table(planned(fits=True)).splitlines()
    assert lines[-5:] == [
        "",
        "note: a caveat",
        "",
        "phase 0 fits: 4.00 of 16 GiB, 50.0 ms per step, MFU 40.0%, 50 s for 1,000 steps",
        "whole schedule: 12 h 00 min (0.50 days), 192 chip-hours",
    ]
    assert any(line.startswith("  all-reduce") for line in lines)
    assert not any(line.startswith("  all-gather") for line in lines)
    refused = reports.as_table(planned(fits=False)).splitlines()
    assert refused[-1] == "phase 0 does not fit: a step needs more"


def test_a_step_that_compiles_but_is_larger_than_a_chip_does_not_fit() -> None:
    step = CompiledStep(hlo="", argument_bytes=9 * 2**30, temporary_bytes=8 * 2**30, output_bytes=0, code_bytes=0)
    assert memory_json(step, topology=parse_topology("v5e:4x4"))["fits"] is False
    assert memory_json(step, topology=parse_topology("v6e:4x4"))["fits"] is True


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_the_clock_that_peak_and_flops_a_cycle_imply_is_a_tpus(chip: Any) -> None:
    assert 0.9e9 < chip.clock < 2.3e9  # v5e 1.5 GHz, v6e and, assumed, TPU7x: 1.75 and 2.2
