"""Every config is compiled by the TPU compiler, made thin, and its plan is consistent."""

from collections.abc import Callable
from typing import Any

import pytest
from test_configs import CONFIGS, load

from bert_jax.parallel.compiler_options import table_of
from bert_jax.planning import report as reports
from tests.tpu_plans import plan_config, thin

NOT_PLANNED = ("tiny_cpu", "distill_minilm")  # a teacher is not planned
SLOW = ("base_tpu:modernbert-base", "large_tpu", "large_tpu:lamb_64k")
PLANNED = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in CONFIGS
    if name not in NOT_PLANNED and ":L-" not in name  # sizes of programs that are there
]


@pytest.mark.parametrize("name", PLANNED)
def test_every_config_is_planned(name: str, compiler: Callable[..., Any]) -> None:
    config = thin(load(name), chips=4)
    result, said = compiler(plan_config, config, "v5e:2x2")
    assert result["fits"]
    assert result["chips"] == 4
    said = [line for line in said if not line.endswith(" so far")]  # of a machine that is slow
    assert len(result["phases"]) == len(said) == len(config.train.phases)
    for phase in result["phases"]:
        assert phase["estimated_cycles"] > 0
        assert 0 < phase["mfu"] <= phase["mfu_before_collectives"] < 1
        assert phase["hbm"]["total_bytes"] < phase["hbm"]["capacity_bytes"]
        assert any(item["kind"] in ("all-reduce", "reduce-scatter") for item in phase["collectives"])
        for item in phase["collectives"]:
            assert item["hidden_seconds"] + item["exposed_seconds"] >= item["seconds"] * 0.999
            assert item["limited_by"] or item["exposed_seconds"] < 1e-6
            assert 0 <= item["first_issued_seconds"] <= item["last_issued_seconds"] <= phase["step_seconds"]
        # The weights in bfloat16 and small float32 tensors are gathered, never the state (12 bytes a parameter).
        gathered = sum(item["bytes"] for item in phase["collectives"] if item["kind"] == "all-gather")
        assert gathered < 2.5 * result["parameters"]
    seconds = sum(phase["step_seconds"] * phase["steps"] for phase in result["phases"])
    assert result["days"] == pytest.approx(seconds / 86400)
    assert result["chip_hours"] == pytest.approx(4 * seconds / 3600)
    assert result["compiler_options"] == table_of("v5e", devices=4)
    assert "chip-hours" in reports.as_table(result)
    waits = [phase["exposed_collective_seconds"] > 0.25 * phase["step_seconds"] for phase in result["phases"]]
    assert waits == [
        any(f"phase {index}: " in note and "waiting for communication" in note for note in result["notes"])
        for index in range(len(waits))
    ]
