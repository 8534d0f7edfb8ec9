"""Compiler options: a table by chip, a setting that changes it, and a compiler that has the last word."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_model import SPECIAL, random_rows, tiny_config

from bert_jax.chips import CHIPS
from bert_jax.config import Config, MeshConfig, parse_compiler_options, validate
from bert_jax.errors import UserError
from bert_jax.parallel import compiler_options as options
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.program import PretrainingProgram

UNKNOWN = "xla_no_such_option"


@pytest.fixture
def as_v5e(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the CPU devices for v5e chips, whose table has an option that a CPU knows and one that it does not."""
    monkeypatch.setattr(options, "chip_of", lambda kind: CHIPS["v5e"])
    monkeypatch.setattr(options, "TABLE", {"v5e": {"xla_cpu_enable_fast_min_max": False, UNKNOWN: True}})
    monkeypatch.setattr(options, "LOOPS", {})


def program(setting: str, *, devices: int = 8) -> PretrainingProgram:
    """Return the program of a tiny config on CPU devices."""
    config = tiny_config(mesh=MeshConfig(compiler_options=setting))
    return PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh, devices=jax.devices()[:devices]))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("auto", {"a": True, "b": 3}),
        ("none", {}),
        ("c=x,d=-4", {"c": "x", "d": -4}),
        ("auto,a=false,c=True", {"a": False, "b": 3, "c": True}),
        ("a=false,auto", {"a": True, "b": 3}),
    ],
)
def test_a_setting_takes_the_place_of_the_table_or_changes_it(setting: str, expected: dict[str, Any]) -> None:
    assert parse_compiler_options(setting, table={"a": True, "b": 3}) == expected


@pytest.mark.parametrize("setting", ["", "off", "auto,", "xla_x", "xla_x=", "=true", "XLA X=1"])
def test_a_setting_of_another_form_is_refused_before_anything_starts(setting: str) -> None:
    with pytest.raises(UserError, match=r"config\.mesh\.compiler_options=.*write auto, none, or NAME=VALUE") as caught:
        validate(Config(mesh=MeshConfig(compiler_options=setting)))
    assert "\n" not in str(caught.value)


def test_options_of_one_chip_are_given_to_no_other() -> None:
    # libtpu: v5e's fusions may give wrong results or hang on other chips.
    assert set(options.TABLE["v5e"]).isdisjoint({*options.TABLE["v5p"], *options.TABLE["v6e"]})
    assert {name for name in options.TABLE if any("fuse_all_reduce" in option for option in options.TABLE[name])} == {
        "v5e"
    }
    for setting in ("auto", "none"):
        nothing = options.compiler_options(setting, mesh=meshes.make_mesh(MeshConfig()))
        assert (nothing.values, nothing.refused, nothing.lines()) == ({}, {}, [])


def test_what_the_compiler_does_not_know_is_left_out_and_named_once(as_v5e: None) -> None:
    made = program("auto").compiler_options
    assert made.values == {"xla_cpu_enable_fast_min_max": False}
    kept, left_out = made.lines()
    assert kept.startswith("compiler options for cpu: xla_cpu_enable_fast_min_max=false")
    assert left_out.count(UNKNOWN) >= 1
    assert "left out" in left_out
    assert "\n" not in left_out


def test_a_single_device_has_nothing_to_hide(as_v5e: None) -> None:
    assert program("auto", devices=1).compiler_options.lines() == []


def test_loops_are_compiled_alike_on_one_device_and_on_many() -> None:
    assert options.table_of("v5e", devices=1) == options.LOOPS
    assert options.table_of("v5e", devices=16) == {**options.TABLE["v5e"], **options.LOOPS}
    assert options.table_of("v4", devices=1) == {}  # not compiled with it


@pytest.mark.slow
def test_a_step_is_compiled_with_the_options_and_computes_the_same(as_v5e: None, tmp_path: Path) -> None:
    rows = random_rows(0, batch=8, length=32)
    losses = []
    for setting in ("none", f"auto,xla_dump_to={tmp_path}"):
        made = program(setting)
        step = made.train_step(made.phases[0], special=SPECIAL)
        dumped = len(list(tmp_path.iterdir()))  # of the empty program on which options are tried
        _, output = step(made.random_state(), meshes.to_global(rows, mesh=made.mesh))
        losses.append(np.asarray(output.means["loss"].total))
        assert (len(list(tmp_path.iterdir())) > dumped) is (setting != "none")
    assert losses[0] == losses[1]
