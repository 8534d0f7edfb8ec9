"""What a config leaves to the data: the vocabulary's size and the steps of epochs; warnings where sizes do not fit."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bert_jax.config import Config, DataConfig, PhaseConfig, TrainConfig, to_json, validate
from bert_jax.data.dataset_info import DatasetInfo, load_dataset_info
from bert_jax.data.vocabulary import DEFAULT_VOCAB_SIZE
from bert_jax.errors import UserError
from bert_jax.pretrain import proportions
from bert_jax.pretrain.dry_run import config_of_start
from bert_jax.pretrain.open_values import as_begun, preliminary, settled
from bert_jax.training.schedule import Phase
from tests.runs import run, train_command
from tests.tiny_model import tiny_config


@pytest.fixture(scope="module")
def infos(tiny_dataset: Path) -> dict[int, DatasetInfo]:
    return {length: load_dataset_info(tiny_dataset, max_seq_length=length) for length in (32, 64)}


def config(*, vocab_size: int = 0, **train: Any) -> Config:
    """Return a config of two phases, 32 long in batches of 16 and 64 long in batches of 8."""
    phases = (
        PhaseConfig(fraction=0.75, max_seq_length=32, max_predictions_per_seq=4),
        PhaseConfig(fraction=0.25, max_seq_length=64, max_predictions_per_seq=8, batch_size=8),
    )
    made = tiny_config(train=TrainConfig(batch_size=16, phases=phases, **train))
    return dataclasses.replace(made, model=dataclasses.replace(made.model, vocab_size=vocab_size))


def test_the_vocabulary_follows_the_data_unless_its_size_is_given(infos: dict[int, DatasetInfo]) -> None:
    assert settled(config(), infos=infos).model.vocab_size == infos[32].vocab_size == 512
    assert settled(config(vocab_size=640), infos=infos).model.vocab_size == 640


@pytest.mark.parametrize("epochs", [0.5, 1.0, 3.0])
def test_the_phases_together_go_through_the_text_as_often_as_asked(
    epochs: float, infos: dict[int, DatasetInfo]
) -> None:
    found = settled(config(num_epochs=epochs, num_steps=7), infos=infos).train.num_steps

    def of(steps: int) -> float:
        return steps * (0.75 * 16 / infos[32].num_train_rows + 0.25 * 8 / infos[64].num_train_rows)

    assert of(found) == pytest.approx(epochs, rel=1e-9) or of(found - 1) < epochs < of(found)
    assert settled(config(num_steps=7), infos=infos).train.num_steps == 7


def test_a_negative_number_of_epochs_is_refused_by_the_field() -> None:
    with pytest.raises(UserError, match=r"config.train.num_epochs=-1"):
        validate(config(num_epochs=-1.0))


def test_before_the_data_exists_plans_use_the_usual_vocabulary(tiny_dataset: Path) -> None:
    assert preliminary(config()).model.vocab_size == DEFAULT_VOCAB_SIZE
    data = DataConfig(directory=str(tiny_dataset), objective="mlm+nsp")
    assert preliminary(dataclasses.replace(config(), data=data)).model.vocab_size == 512


def test_a_run_that_has_begun_keeps_what_it_settled(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(to_json(config(vocab_size=333, num_epochs=2.0, num_steps=77)))
    kept = as_begun(config(num_epochs=2.0), workdir=tmp_path)
    assert (kept.model.vocab_size, kept.train.num_steps) == (333, 77)
    assert as_begun(config(num_steps=5), workdir=tmp_path).train.num_steps == 5  # refused later, as another config


def phase(steps: int, length: int = 32, batch: int = 16) -> Phase:
    return Phase(0, steps, length, 4, batch)


def test_a_dry_run_shows_what_the_run_in_its_workdir_settled(tmp_path: Path) -> None:
    lines: list[str] = []
    new = config_of_start(config(num_epochs=2.0, num_steps=9), workdir=tmp_path / "new", report=lines.append)
    assert (new.model.vocab_size, new.train.num_steps, len(lines)) == (DEFAULT_VOCAB_SIZE, 9, 1)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "config.json").write_text(to_json(config(vocab_size=640, num_epochs=2.0, num_steps=123)))
    begun = config_of_start(config(num_epochs=2.0, num_steps=9), workdir=tmp_path, report=lines.append)
    assert (begun.model.vocab_size, begun.train.num_steps, len(lines)) == (640, 123, 1)


def test_epochs_of_each_phase_are_told(infos: dict[int, DatasetInfo]) -> None:
    rows = infos[32].num_train_rows
    (line,) = proportions.describe_epochs([phase(rows // 8), phase(0)], infos=infos)
    assert line.startswith(f"phase 0: {rows // 8:,} steps of 16 are 2 epochs of {rows:,} sequences of 32")


def test_a_run_that_saw_a_part_of_its_text_says_how_to_go_on(infos: dict[int, DatasetInfo]) -> None:
    half = [phase(1, batch=infos[32].num_train_rows // 2)]
    (line,) = proportions.describe_unseen(config(), phases=half, infos=infos, workdir="run")
    assert re.fullmatch(r"the run has seen (49|50)% of the text: .*the same command with a larger .*num_steps", line)
    (line,) = proportions.describe_unseen(config(num_epochs=0.5), phases=half, infos=infos, workdir="run")
    assert line.endswith("--continue_from=run and a larger --config.train.num_epochs")
    assert proportions.describe_unseen(config(), phases=half * 3, infos=infos, workdir="run") == []


def test_a_run_that_fits_its_text_is_not_warned_of(infos: dict[int, DatasetInfo]) -> None:
    made = config(vocab_size=512)
    assert proportions.warnings(made, phases=[phase(100)], infos=infos) == []


@pytest.mark.parametrize(
    ("changes", "steps", "says"),
    [
        ({"vocab_size": 30522}, 100, "vocabulary has 512 tokens: 1.0 million parameters are never trained"),
        ({"vocab_size": 512}, 10_000_000, "goes through the text .* times .* --config.train.num_epochs=40"),
    ],
    ids=["dead_parameters", "many_epochs"],
)
def test_what_would_be_wasted_is_warned_of(
    changes: dict[str, Any], steps: int, says: str, infos: dict[int, DatasetInfo]
) -> None:
    (line,) = proportions.warnings(config(**changes), phases=[phase(steps)], infos=infos)
    assert line.startswith("warning: ")
    assert re.search(says, line)


def test_a_vocabulary_too_large_for_the_text_is_warned_of(infos: dict[int, DatasetInfo]) -> None:
    few = {**infos[32].statistics, "tokens": {"train": 5_120, "validation": 0}}
    small = {32: dataclasses.replace(infos[32], statistics=few)}
    (line,) = proportions.warnings(config(vocab_size=512), phases=[phase(10)], infos=small)
    assert "5,120 tokens of text for a vocabulary of 512, 10 each" in line


@pytest.mark.slow
def test_a_run_of_epochs_on_the_datas_vocabulary_settles_both_and_resumes(tiny_dataset: Path, tmp_path: Path) -> None:
    fields = ("model.vocab_size=0", "train.num_epochs=0.01", "checkpoint.every=100", "eval.every=100", "log.every=2")
    command = train_command(tmp_path / "run", *fields, data=tiny_dataset)
    done = run(command)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    rows = load_dataset_info(tiny_dataset, max_seq_length=32).num_train_rows
    assert saved["model"]["vocab_size"] == 512
    assert saved["train"]["num_steps"] == -(-rows // 1600)
    assert "are 0.0" in done.stdout
    again = run(command)
    assert again.returncode == 0, again.stderr
    assert "training has already finished" in again.stdout
