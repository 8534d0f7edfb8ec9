"""Traces hold the steps that were asked for, also of a run that resumes or ends among them."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from bert_jax.runs.profiling import StepTracer


def traced(directory: Path, steps: range, *, window: str) -> list[Path]:
    """Run `steps` of a program under the tracer and return the traces it wrote."""
    tracer = StepTracer(lambda step: lambda state, rows: (state + rows, step), steps=window, directory=directory)
    state = jnp.zeros(3)
    for step in steps:
        state, _ = tracer(step)(state, jnp.ones(3))
    tracer.close()
    assert float(state[0]) == len(steps)
    return sorted(directory.rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("steps", "count"),
    [(range(6), 1), (range(3, 6), 1), (range(3), 1), (range(4, 6), 0)],
    ids=["all", "resumed among them", "ended among them", "resumed behind them"],
)
def test_a_trace_is_written_for_the_steps_asked_for(tmp_path: Path, steps: range, count: int):
    assert len(traced(tmp_path, steps, window="2:4")) == count


def test_nothing_is_traced_unasked(tmp_path: Path):
    assert traced(tmp_path, range(4), window="") == []
