"""Options of the recipes of 2024 to 2026 in runs: masking rates per phase, warm-up, stable, decay, optimizers."""

import shutil
from pathlib import Path

import jax
import pytest

from bert_jax.config import (
    Config,
    DataConfig,
    MaskingConfig,
    MeshConfig,
    OptimizerConfig,
    PhaseConfig,
    TrainConfig,
    model_preset,
)
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.rows.special_ids import SpecialIds
from tests.runs import checksums, figures, run, train_command

SPECIAL = SpecialIds(cls_id=1, sep_id=2, mask_id=3, pad_id=0, vocab_size=1024)
EVERY = ("checkpoint.every=4", "eval.every=4", "log.every=4")


def test_a_phase_is_trained_at_its_masking_rate_and_evaluated_at_the_runs() -> None:
    phases = (
        PhaseConfig(fraction=0.5, max_seq_length=64, masking_rate=0.3),
        PhaseConfig(fraction=0.25, max_seq_length=64),
        PhaseConfig(fraction=0.25, max_seq_length=64, masking_rate=0.05, max_predictions_per_seq=2),
    )
    config = Config(
        model=model_preset("tiny"),
        data=DataConfig(objective="mlm"),
        masking=MaskingConfig(rate=0.15),
        optimizer=OptimizerConfig(warmup_steps=2),
        train=TrainConfig(num_steps=8, batch_size=8, phases=phases),
    )
    program = PretrainingProgram(config, mesh=meshes.make_mesh(MeshConfig(), devices=jax.devices()[:1]))
    trained = [program.objective(phase, special=SPECIAL) for phase in program.phases]
    assert [objective.masking.rate for objective in trained] == [0.3, 0.15, 0.05]
    assert [objective.max_predictions for objective in trained] == [20, 10, 2]
    assert [program.max_predictions(phase) for phase in program.phases] == [20, 10, 2]
    evaluated = [program.evaluation_objective(phase, special=SPECIAL) for phase in program.phases]
    assert [(objective.masking.rate, objective.max_predictions) for objective in evaluated] == [(0.15, 10)] * 3


def trained(workdir: Path, *overrides: str, data: Path, flags: tuple[str, ...] = ()) -> Path:
    """Train to the end and return the workdir."""
    done = run([*train_command(workdir, *EVERY, *overrides, data=data), *flags])
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_a_stable_run_is_continued_by_a_decay_as_if_they_were_one_run(tiny_dataset: Path, tmp_path: Path) -> None:
    wsd = ("optimizer.schedule=wsd", "train.num_steps=8")
    stable = trained(tmp_path / "stable", *wsd, data=tiny_dataset)
    assert [line["train/learning_rate"] for line in figures(stable) if "train/loss" in line] == [
        pytest.approx(3e-3)
    ] * 2
    decay = ("optimizer.schedule=wsd", "train.num_steps=8", "optimizer.decay_steps=4")
    branch = trained(tmp_path / "branch", *decay, data=tiny_dataset, flags=(f"--continue_from={stable}/checkpoints/4",))
    whole = trained(tmp_path / "whole", *decay, data=tiny_dataset)
    assert checksums(branch) == checksums(whole)
    assert checksums(branch) != checksums(stable)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", ["stable_adamw", "muon"])
def test_a_run_that_lost_its_end_resumes_bit_equal(name: str, scan: bool, tiny_dataset: Path, tmp_path: Path) -> None:
    phases = ("train.phases[0].masking_rate=0.3", "train.num_steps=8", f"model.scan_layers={scan}")
    options = (f"optimizer.name={name}", "optimizer.max_grad_norm=0.0", *phases)
    workdir = trained(tmp_path / "run", *options, data=tiny_dataset)
    expected = checksums(workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    assert checksums(trained(workdir, *options, data=tiny_dataset)) == expected
