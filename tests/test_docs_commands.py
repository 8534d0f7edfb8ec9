"""Every command in the README and the documentation is true: it parses, and those that are marked run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags

from bert_jax import config as pretraining
from bert_jax.__main__ import COMMANDS
from bert_jax.config import finetuning
from bert_jax.data.embedded_corpus import read_embedded_corpus
from bert_jax.errors import UserError
from docs.reference_pages import command_flags
from tests.docs_commands import PAGES, ROOT, Command, blocks, commands
from tests.documented import undescribed_metrics
from tests.runs import environment, run, train_command

# ml_collections loads config files by it.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

WRONG = (flags.Error, UserError, AttributeError, KeyError, OSError, TypeError, ValueError)
ALL = [command for page in PAGES for command in commands(page)]
RUNNABLE = [page for page in PAGES if any(block.run is not None for block in blocks(page))]


def check(command: Command) -> None:
    """Parse a command as the command itself does, config and its fields included."""
    values = flags.FlagValues()
    for name, flag in command_flags(command.name).items():
        if flag.flag_type() == "config object":
            config_flags.DEFINE_config_file(name, flag_values=values, lock_config=True)
        else:
            values[name] = flag
    given = [text for text in command.flags if text != "--help"]
    if any(text.startswith("--config.") for text in given) and not any(t.startswith("--config=") for t in given):
        default = "finetune_glue" if command.name == "finetune" else "base_tpu"  # text that names a field alone
        given.append(f"--config=configs/{default}.py")
    with mock.patch.object(sys, "argv", [command.name, *given]):  # where ml_collections looks for overrides
        values(sys.argv)
    if "config" in values and values["config"].value is not None:
        read = finetuning.from_config_dict if command.name == "finetune" else pretraining.from_config_dict
        read(values["config"].value)


@pytest.fixture
def in_a_reader_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give what a reader's folder has: the configs, and every file that a page shows."""
    for name in ("configs", "launch", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    for page in PAGES:
        for block in blocks(page):
            if block.title.endswith(".py"):
                (tmp_path / block.title).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pages_show_commands():
    assert len(ALL) > 60
    assert {command.name for command in ALL} == set(COMMANDS)


def test_every_command_in_readme_and_docs_parses(in_a_reader_s_folder: Path):
    wrong = []
    for command in ALL:
        try:
            check(command)
        except WRONG as error:
            wrong.append(f"{command.where}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "bert-jax train --confg=configs/tiny_cpu.py",
        "bert-jax train --config=configs/tiny.py",
        "bert-jax train --config=configs/large_tpu.py:lamb",
        "bert-jax train --config=configs/tiny_cpu.py --config.train.steps=3",
        "bert-jax predict --top_k=many",
    ],
)
def test_a_wrong_command_is_noticed(text: str, in_a_reader_s_folder: Path):
    with pytest.raises(WRONG):
        check(Command(text.split()[1], tuple(text.split()[2:]), "here"))


@pytest.fixture(scope="session")
def reader_s_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a reader who has done the tutorial: texts, a data set, a trained model."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "texts").mkdir()
    documents = ["\n\n".join(document.sentences) for document in read_embedded_corpus()]
    for number in range(4):
        for index, text in enumerate(documents[number:200:4]):
            (folder / "texts" / f"{number}_{index}.txt").write_text(text)
    fields = (f"data.input={folder}/texts/*.txt", "train.num_steps=4", "checkpoint.every=4", "eval.every=4")
    done = run(train_command(folder / "run", *fields, "train.phases[0].max_seq_length=64"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.soak
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_in_their_order(page: Path, tmp_path: Path, reader_s_model: Path):
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(reader_s_model / "texts", tmp_path / "texts")
    if page.stem != "tutorial":
        shutil.copytree(reader_s_model / "run", tmp_path / "run")
    commands_folder = tmp_path / "bin"
    commands_folder.mkdir()
    for name, target in (("bert-jax", f'"{sys.executable}" -m bert_jax'), ("python", f'"{sys.executable}"')):
        (commands_folder / name).write_text(f'#!/bin/sh\nexec {target} "$@"\n')
        (commands_folder / name).chmod(0o755)
    paths = {"PATH": f"{commands_folder}{os.pathsep}{os.environ['PATH']}"}
    for block in blocks(page):
        if block.title:
            file = tmp_path / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text * (8 if file.suffix == ".jsonl" and file.stem == "train" else 1))
        elif block.run is not None:
            script = f"set -euo pipefail\n{block.runnable()}"
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=tmp_path,
                env=environment() | paths,
                capture_output=True,
                text=True,
                check=False,
                timeout=1200,
            )
            assert done.returncode == 0, f"{block.page}:{block.line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    for file in tmp_path.rglob("metrics.jsonl"):
        assert undescribed_metrics(file) == set()
