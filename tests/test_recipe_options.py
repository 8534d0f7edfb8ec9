"""Options of the recipes of 2024 to 2026 in runs: masking rates per phase, warm-up, stable, decay, optimizers."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

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
    from_config_dict,
    model_preset,
)
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.errors import UserError
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.causal import CausalObjective
from bert_jax.pretrain.evaluate_pretrained import evaluate_pretrained
from bert_jax.pretrain.objective import PretrainingObjective
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


def test_a_causal_phase_reads_left_to_right_and_predicts_every_next_token() -> None:
    phases = (
        PhaseConfig(fraction=0.5, max_seq_length=64, objective="causal"),
        PhaseConfig(fraction=0.5, max_seq_length=64),
    )
    config = Config(
        model=model_preset("tiny"),
        data=DataConfig(objective="mlm"),
        optimizer=OptimizerConfig(warmup_steps=2),
        train=TrainConfig(num_steps=8, batch_size=8, phases=phases),
    )
    program = PretrainingProgram(config, mesh=meshes.make_mesh(MeshConfig(), devices=jax.devices()[:1]))
    trained = [program.objective(phase, special=SPECIAL) for phase in program.phases]
    assert [type(objective) for objective in trained] == [CausalObjective, PretrainingObjective]
    assert [objective.model.attention_direction for objective in trained] == ["left_to_right", "bidirectional"]
    assert [program.max_predictions(phase) for phase in program.phases] == [64, 10]
    assert [type(program.evaluation_objective(phase, special=SPECIAL)) for phase in program.phases] == [
        CausalObjective,
        PretrainingObjective,
    ]


@pytest.mark.parametrize(
    ("phase", "model", "train", "message"),
    [
        ({}, {"attention_direction": "left_to_right"}, {"objective": "mlm"}, "train.objective=causal instead"),
        ({}, {}, {}, "no loss of next sentences: set --config.train.objective=mlm"),
        ({"masking_rate": 0.3}, {}, {"objective": "mlm"}, "masks nothing: leave the phase's masking_rate"),
    ],
)
def test_a_causal_phase_that_cannot_be_trained_is_refused(phase: Any, model: Any, train: Any, message: str) -> None:
    phases = [{"fraction": 0.5, "objective": "causal", **phase}, {"fraction": 0.5}]
    with pytest.raises(UserError, match=rf"config\.train\.phases\[0\]\.objective=causal.*{re.escape(message)}"):
        from_config_dict({"model": model, "train": {**train, "phases": phases}})


def trained(
    workdir: Path, *overrides: str, data: Path, flags: tuple[str, ...] = (), config: str = "configs/tiny_cpu.py"
) -> Path:
    """Train to the end and return the workdir."""
    command = train_command(workdir, *EVERY, *overrides, data=data)
    command = [f"--config={config}" if part.startswith("--config=") else part for part in command]
    done = run([*command, *flags])
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


TWO_PHASES = """
from bert_jax.config import default_config, phase


def get_config():
    config = default_config(model="tiny")
    config.model.dtype = "float32"
    config.train.phases = (
        phase(fraction=0.5, max_seq_length=32, objective="causal", batch_size=8),
        phase(fraction=0.5, max_seq_length=32),
    )
    config.train.objective = "mlm"
    config.train.num_steps = 8
    return config
"""


@pytest.mark.slow
def test_a_run_is_causal_and_then_masked_and_each_checkpoint_is_what_its_phase_trained(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.py").write_text(TWO_PHASES)
    config = str(tmp_path / "config.py")
    workdir = trained(tmp_path / "run", data=tiny_dataset, config=config)
    lines = {line["step"]: line for line in figures(workdir) if "eval/loss" in line}
    assert [sorted(name for name in lines[step] if name.endswith("lm_loss")) for step in (4, 8)] == [
        ["eval/clm_loss"],
        ["eval/mlm_loss"],
    ]
    sources = [load_pretrained(workdir / "checkpoints" / str(step)) for step in (4, 8)]
    assert [source.model.attention_direction for source in sources] == ["left_to_right", "bidirectional"]
    assert [source.predicts_next for source in sources] == [True, False]
    for source, name in zip(sources, ("BertLMHeadModel", "BertForPreTraining"), strict=True):
        export_folder(source, out=tmp_path / name, report=lambda line: None)
        fields = json.loads((tmp_path / name / "config.json").read_text())
        assert fields["architectures"] == [name]
    for step in (4, 8):
        again = evaluate_pretrained(workdir / "checkpoints" / str(step), report=lambda line: None)
        assert again["eval/loss"] == pytest.approx(lines[step]["eval/loss"], rel=1e-6)
    expected = checksums(workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")  # resumed where the phase changes
    assert checksums(trained(workdir, data=tiny_dataset, config=config)) == expected
    # A new run of masks alone, from the state that the causal phase left.
    flags = ("--config.train.phases[0].objective=", f"--continue_from={workdir}/checkpoints/4")
    masked = trained(tmp_path / "masked", data=tiny_dataset, config=config, flags=flags)
    assert checksums(masked) == expected


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
