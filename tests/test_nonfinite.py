"""As many steps as a config allows may have a loss that is not finite; they are counted, and the bound is the run's."""

import json
from pathlib import Path

import pytest

from tests.runs import run, train_command

# After the first step the parameters are so large that every later loss is not finite.
FIELDS = (
    *("train.num_steps=12", "checkpoint.every=2", "eval.every=100", "log.every=1"),
    *("optimizer.learning_rate=1e30", "optimizer.max_grad_norm=1e30"),
)


@pytest.mark.slow
def test_a_run_skips_as_many_steps_in_all_its_starts_together(tiny_dataset: Path, tmp_path: Path) -> None:
    first = run(train_command(tmp_path, *FIELDS, "train.max_nonfinite_steps=3", data=tiny_dataset))
    assert first.returncode == 2
    assert "after 3 that config.train.max_nonfinite_steps allows" in first.stderr
    assert "update skipped (3 of at most 3)" in first.stdout
    again = run(train_command(tmp_path, *FIELDS, "train.max_nonfinite_steps=5", data=tiny_dataset))
    assert again.returncode == 2
    assert "resuming at step" in again.stdout  # another bound is the same run
    assert "update skipped (5 of at most 5)" in again.stdout
    assert "update skipped (1 of" not in again.stdout  # those before the checkpoint count
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/nonfinite_steps"] for line in lines][-1] == 5
    assert all("train/loss" not in line for line in lines if line["train/nonfinite_steps"] > 0)
