"""Runs that go on: more steps for a finished one, another batch size or schedule from its state as a new run."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from bert_jax.config import Config, DataConfig, TrainConfig, from_saved
from bert_jax.errors import UserError
from bert_jax.pretrain import continuing
from bert_jax.pretrain.continuing import adopt_run
from bert_jax.runs.workdir import finished_with_fewer_steps
from tests.runs import checksums, figures, run, train_command

pytestmark = pytest.mark.slow

EVERY = ("checkpoint.every=4", "eval.every=4", "log.every=4")


@pytest.fixture(scope="module")
def finished(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workdir of a finished run of eight steps, with a checkpoint at step 4."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = run(train_command(workdir, "train.num_steps=8", *EVERY, data=tiny_dataset))
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_new_run_from_a_state_with_the_same_config_ends_as_the_old_one(finished, tiny_dataset, tmp_path):
    """The data set is the old run's, although the command does not name it."""
    workdir = tmp_path / "new"
    command = train_command(workdir, "train.num_steps=8", *EVERY)
    done = run([*command, f"--continue_from={finished / 'checkpoints' / '4'}"])
    assert done.returncode == 0, done.stderr
    assert (
        f"continuing {finished} at step 4 as a new run on the data set in {tiny_dataset}; changed: nothing"
        in done.stdout
    )
    assert "resuming at step 4 of 8" in done.stdout
    assert checksums(workdir) == checksums(finished)
    origin = json.loads((workdir / "origin.json").read_text())
    assert (origin["continued_from"], origin["step"]) == (str(finished / "checkpoints" / "4"), 4)
    again = run([*command, f"--continue_from={finished / 'checkpoints' / '4'}"])
    assert "already finished" in again.stdout


def test_more_steps_for_a_finished_run_are_those_of_a_new_run_from_its_end(finished, tiny_dataset, tmp_path):
    """In the same workdir and as a new run with another batch size before: same steps where the config is the same."""
    same, new = shutil.copytree(finished, tmp_path / "same"), tmp_path / "new"
    more = run(train_command(same, "train.num_steps=12", *EVERY, data=tiny_dataset))
    assert more.returncode == 0, more.stderr
    assert "more steps after the end of a run of 8: the learning rate is now that of a run of 12" in more.stdout
    assert json.loads((same / "config.8.json").read_text())["train"]["num_steps"] == 8
    assert [line["step"] for line in figures(same)][-1] == 12
    other = run([*train_command(new, "train.num_steps=12", *EVERY), f"--continue_from={finished}"])
    assert "changed: train.num_steps 8 -> 12" in other.stdout
    assert checksums(new) == checksums(same)


def test_the_refusal_of_another_config_names_the_way_and_the_way_works(finished, tiny_dataset, tmp_path):
    changed = ("train.num_steps=10", "train.batch_size=8", "optimizer.learning_rate=1e-5")
    refused = run(train_command(finished, *changed, *EVERY, data=tiny_dataset))
    assert refused.returncode == 2
    assert f"choose another --workdir, with --continue_from={finished}" in refused.stderr
    workdir = tmp_path / "new"
    done = run([*train_command(workdir, *changed, *EVERY), f"--continue_from={finished}"])
    assert done.returncode == 0, done.stderr
    assert "train.batch_size 16 -> 8" in done.stdout
    assert "finished: 10 steps" in done.stdout


def test_only_a_finished_run_gets_more_steps(tmp_path):
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    name = "train.num_steps"
    assert finished_with_fewer_steps(tmp_path, {name: 8}, {name: 12})
    assert not finished_with_fewer_steps(tmp_path, {name: 9}, {name: 12})
    assert not finished_with_fewer_steps(tmp_path, {name: 8}, {name: 4})
    assert not finished_with_fewer_steps(tmp_path, {name: 8, "seed": 0}, {name: 12, "seed": 1})


def test_a_path_without_a_state_or_too_few_steps_is_one_line(finished, tmp_path):
    config = Config(train=TrainConfig(num_steps=8))
    with pytest.raises(UserError, match="neither a workdir nor one of its checkpoints"):
        adopt_run(config, path=tmp_path)
    with pytest.raises(UserError, match="has no complete checkpoint of pre-training"):
        adopt_run(config, path=finished / "checkpoints" / "5")
    with pytest.raises(UserError, match=r"is at step 8: set --config\.train.num_steps to the total"):
        adopt_run(config, path=finished)


def test_a_continued_run_resumes_when_the_earlier_one_is_gone(finished, tmp_path):
    earlier = Path(shutil.copytree(finished, tmp_path / "earlier"))
    command = [
        *train_command(tmp_path / "new", "train.num_steps=8", *EVERY),
        f"--continue_from={earlier}/checkpoints/4",
    ]
    assert run(command).returncode == 0
    shutil.rmtree(tmp_path / "new" / "checkpoints" / "8")
    shutil.rmtree(earlier)
    again = run(command)
    assert again.returncode == 0, again.stderr
    assert checksums(tmp_path / "new") == checksums(finished)


def test_another_text_is_refused_before_the_new_run_begins(finished, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("\n\n".join(f"The {n} is a word. It ends here." for n in range(400)))
    build = [sys.executable, "-m", "bert_jax.prepare", f"--input={tmp_path / 'texts'}", f"--out={tmp_path / 'data'}"]
    build += [f"--vocab={finished / 'vocab'}", "--max_seq_length=32", "--objective=mlm+nsp", "--documents=blank_lines"]
    assert run(build).returncode == 0
    command = train_command(tmp_path / "new", "train.num_steps=12", *EVERY, data=tmp_path / "data")
    refused = run([*command, f"--continue_from={finished}"])
    assert refused.returncode == 2
    assert "was trained with another data of length 32: leave out config.data" in refused.stderr
    assert not any((tmp_path / "new" / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
    ("saved", "given", "says"),
    [
        ({"directory": "/nowhere/data"}, {}, r"its data set /nowhere/data is not there: set --config\.data\.directory"),
        (
            {"directory": "", "input": "old"},
            {"input": "new"},
            r"config\.data\.input=new, but --continue_from is a run on old",
        ),
    ],
)
def test_another_input_is_refused_and_a_lost_data_set_named(finished, monkeypatch, saved, given, says):
    def read(record):
        config = from_saved(record)
        return dataclasses.replace(config, data=dataclasses.replace(config.data, **saved))

    monkeypatch.setattr(continuing, "from_saved", read)
    config = Config(train=TrainConfig(num_steps=12), data=DataConfig(**given))
    with pytest.raises(UserError, match=says):
        adopt_run(config, path=finished)
