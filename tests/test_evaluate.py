"""The evaluate door gives a checkpoint the figures that the loop wrote for it, wherever it is called from."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.data.dataset_info import load_dataset_info
from bert_jax.errors import UserError
from bert_jax.pretrain import evaluation
from bert_jax.pretrain.evaluate_pretrained import evaluate_pretrained
from tests.runs import figures, run, train_command

PHASES = (
    "train.num_steps=8",
    "train.phases[0].fraction=1.0",
    "checkpoint.every=4",
    "checkpoint.keep_latest=3",
    "eval.every=4",
    "log.every=4",
)


@pytest.fixture(scope="module")
def workdir(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two phases: 32 long in batches of 16, then 64 long in batches of 8."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "two_phases.py").write_text(
        "from bert_jax.config import phase\n"
        "from configs import tiny_cpu\n"
        "def get_config():\n"
        "    config = tiny_cpu.get_config()\n"
        "    config.train.phases = (phase(fraction=0.5, max_seq_length=32, batch_size=16),\n"
        "                           phase(fraction=0.5, max_seq_length=64, batch_size=8))\n"
        "    return config\n"
    )
    command = [arg for arg in train_command(folder / "run", *PHASES, data=tiny_dataset) if "phases[0]" not in arg]
    command[3] = f"--config={folder / 'two_phases.py'}"
    done = run(command)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def evaluate(workdir: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the door beside the workdir, with relative names."""
    return run([sys.executable, "-m", "bert_jax.evaluate", *flags], cwd=workdir.parent)


@pytest.mark.parametrize("step", [4, 8], ids=["first phase", "last phase"])
def test_a_checkpoint_of_any_phase_gets_the_figures_of_the_loop(workdir: Path, step: int):
    done = evaluate(workdir, f"--model=run/checkpoints/{step}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    loop = next(line for line in figures(workdir) if line["step"] == step and "eval/mlm_loss" in line)
    assert {name: result[name] for name in loop if name != "step"} == {k: v for k, v in loop.items() if k != "step"}
    assert result["step"] == step
    assert result["max_seq_length"] == (32 if step == 4 else 64)


def test_a_model_without_a_training_config_gets_the_same_figures(workdir: Path, tiny_dataset: Path):
    exported = run(
        [sys.executable, "-m", "bert_jax.export", f"--checkpoint={workdir}", f"--out={workdir.parent / 'exported'}"]
    )
    assert exported.returncode == 0, exported.stderr
    sizes = ("--max_seq_length=64", "--batch_size=8", "--max_examples=32")
    done = evaluate(workdir, "--model=exported", f"--data={tiny_dataset}", *sizes)
    assert done.returncode == 0, done.stderr
    loop = [line for line in figures(workdir) if line["step"] == 8 and "eval/mlm_loss" in line][-1]
    result = json.loads(done.stdout)
    assert {name: result[name] for name in loop if name != "step"} == {k: v for k, v in loop.items() if k != "step"}
    assert result["step"] is None


def test_the_unigram_model_does_not_depend_on_how_many_sequences_are_evaluated(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
):
    models, count = [], evaluation.unigram_log_probs

    def recorded(*arguments: Any, **options: Any) -> np.ndarray:
        models.append(count(*arguments, **options))
        raise UserError("no evaluation is needed")

    monkeypatch.setattr(evaluation, "unigram_log_probs", recorded)
    for number in (8, 32):
        with pytest.raises(UserError, match="no evaluation"):
            evaluate_pretrained(workdir, max_examples=number, report=lambda _: None)
    assert np.array_equal(*models)


@pytest.mark.parametrize(("margin", "words"), [(0.5, "it uses context"), (0.17, "it begins to use"), (0.0, "not beat")])
def test_the_verdict_is_as_sure_as_the_margin_is_large(margin: float, words: str):
    metrics = {"eval/mlm_loss": 6.0 - margin, "eval/unigram_loss": 6.0}
    accuracies = {"eval/mlm_accuracy": 0.1, "eval/unigram_accuracy": 0.05}
    assert words in evaluation.verdict(metrics | accuracies)


def test_bits_per_byte_are_the_loss_in_bits_over_the_bytes_of_the_held_out_text(workdir: Path, tiny_dataset: Path):
    statistics = load_dataset_info(tiny_dataset, max_seq_length=64).statistics
    ratio = statistics["tokens"]["validation"] / statistics["bytes"]["validation"]
    assert 0.2 < ratio < 1  # 512 pieces hold one to five bytes
    lines = [line for line in figures(workdir) if "eval/mlm_loss" in line]
    for line in lines:
        assert line["eval/bits_per_byte"] == pytest.approx(line["eval/mlm_loss"] / math.log(2) * ratio)


def test_a_data_set_that_does_not_know_its_bytes_says_so_and_leaves_the_metric_out(
    workdir: Path, tiny_dataset: Path, tmp_path: Path
):
    shutil.copytree(tiny_dataset, tmp_path / "old")
    for file in (tmp_path / "old").rglob("metadata.json"):
        value = json.loads(file.read_text())
        del value["statistics"]["bytes"]
        file.write_text(json.dumps(value))
    done = evaluate(workdir, "--model=run", f"--data={tmp_path / 'old'}", "--max_examples=8")
    assert done.returncode == 0, done.stderr
    assert "eval/bits_per_byte" not in json.loads(done.stdout)
    assert "no bits per byte: the data set in" in done.stderr


def test_a_batch_that_does_not_divide_names_the_flag(workdir: Path):
    done = run([sys.executable, "-m", "bert_jax.evaluate", f"--model={workdir}", "--batch_size=6"], devices=4)
    assert done.returncode == 2
    assert "--batch_size=6 does not divide over 4 devices" in done.stderr


def test_examples_are_those_that_were_counted(workdir: Path):
    done = evaluate(workdir, "--model=run", "--max_examples=3")
    assert json.loads(done.stdout)["examples"] == 8  # one whole batch


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--model=nothing",), "does not exist"),
        (("--model=run", "--max_examples=-5"), "--max_examples=-5: must not be negative"),
        (("--model=run", "--data=nowhere"), "nowhere"),
        ((), "--model is missing"),
    ],
    ids=["no model", "negative", "no data", "nothing"],
)
def test_bad_input_is_one_line(workdir: Path, flags: tuple[str, ...], says: str):
    done = evaluate(workdir, *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
