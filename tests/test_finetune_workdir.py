"""A fine-tuning workdir never mixes two origins, keeps the best of all its runs, and lets mistakes be mended."""

import dataclasses
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.loading import load_pretrained
from bert_jax.errors import UserError
from bert_jax.finetuning import finetune
from bert_jax.finetuning.experiment import STATES
from bert_jax.finetuning.job import BEST
from bert_jax.finetuning.results import TaskResults
from bert_jax.runs.checkpoint import Checkpointer
from tests.finetune_data import own_config, sentiment, write_jsonl, write_sentiment, write_source
from tests.runs import run as run_command


def start(config: FinetuneConfig, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Fine-tune in tmp_path/work from tmp_path/source, and return the results."""
    given = {"init": str(tmp_path / "source"), "workdir": str(tmp_path / "work"), **changes}
    assert finetune.finetune(config, request=finetune.Request(**given)) == 0
    return json.loads((tmp_path / "work" / "results.json").read_text())


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    write_source(tmp_path / "source")
    return own_config(write_sentiment(tmp_path / "data", train=32), train={"num_epochs": 1.0})


def test_another_origin_is_refused_and_nothing_there_is_touched(config: FinetuneConfig, tmp_path: Path):
    start(config, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file()}
    write_source(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(UserError, match=r"its runs have weights .*give the previous --init") as error:
        start(config, tmp_path, init=str(tmp_path / "other"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"parts none, this command has pooler.*give the previous --init_missing"):
        start(config, tmp_path, init_missing=("pooler",))
    write_jsonl(Path(config.data.directory) / "dev.jsonl", sentiment(30, seed=5))
    with pytest.raises(UserError, match=r"its runs have dev set .*give the previous --data_dir"):
        start(config, tmp_path)
    after = {path: path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file()}
    assert after == before


def test_a_config_under_which_no_run_began_binds_nobody(config: FinetuneConfig, tmp_path: Path):
    longer = dataclasses.replace(config, data=dataclasses.replace(config.data, max_seq_length=128))
    with pytest.raises(UserError, match="set it to at most 64"):
        start(longer, tmp_path)
    start(config, tmp_path)
    with pytest.raises(UserError, match=r"belongs to a run with another config .*config.seed was 0, is 7"):
        start(dataclasses.replace(config, seed=7), tmp_path)


@pytest.mark.slow
def test_the_best_of_all_runs_is_kept_whenever_it_was_run(config: FinetuneConfig, tmp_path: Path):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_epochs=6.0))
    first = start(config, tmp_path)
    assert first["best"]["name"] == "b16-lr0.003-e6-s0"
    sweep = dataclasses.replace(config.sweep, batch_size=(16,), learning_rate=(1e-6, 3e-3), num_epochs=(6.0,))
    second = start(dataclasses.replace(config, sweep=sweep), tmp_path, sweep=True)
    assert [run["name"] for run in second["runs"]] == ["b16-lr1e-06-e6-s0", "b16-lr0.003-e6-s0"]
    assert second["best"] == first["best"]
    assert load_pretrained(tmp_path / "work").record["settings"]["learning_rate"] == 3e-3
    again = start(dataclasses.replace(config, sweep=sweep), tmp_path, seeds=2)  # fewer settings, one more seed
    assert len(again["runs"]) == 3
    assert load_pretrained(tmp_path / "work").record["settings"]["seed"] == again["best"]["settings"]["seed"]


def test_the_best_run_predicts_a_test_set_that_it_was_run_without(config: FinetuneConfig, tmp_path: Path):
    write_jsonl(Path(config.data.directory) / "test.jsonl", [{"text": row["text"]} for row in sentiment(10, seed=9)])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, test_file="test.jsonl"))
    start(config, tmp_path)
    start(config, tmp_path, predict_test=True)
    assert len((tmp_path / "work" / "predictions" / "test" / "own-test.jsonl").read_text().splitlines()) == 10
    assert list((tmp_path / "work" / "runs").glob("*/outputs-test.npz"))


def test_a_run_keeps_its_state_until_its_result_is_written(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, every=1))

    def killed(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(TaskResults, "add", killed)
        with pytest.raises(MemoryError):
            start(config, tmp_path)
    assert list((tmp_path / "work" / "runs").glob(f"*/{STATES}"))
    start(config, tmp_path)
    assert not list((tmp_path / "work" / "runs").glob(f"*/{STATES}"))


def test_the_best_parameters_are_on_the_disk_before_a_state_that_knows_of_them(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, every=1))
    save, seen = Checkpointer.save, []

    def saved(self: Checkpointer, step: int, **rest: Any) -> None:
        if "history" in rest["metadata"]:
            known = [evaluation["step"] for evaluation in rest["metadata"]["history"]]
            best = next((tmp_path / "work" / "runs").glob(f"*/{BEST}"))
            seen.append((step, bool(known), any(path.name.isdecimal() for path in best.iterdir())))
        save(self, step, **rest)

    monkeypatch.setattr(Checkpointer, "save", saved)
    train = dataclasses.replace(config.train, num_epochs=2.0)
    start(dataclasses.replace(config, train=train), tmp_path)
    assert any(known for _, known, _ in seen)
    assert all(there for _, known, there in seen if known)


def test_states_that_a_kill_left_beside_a_result_are_removed(config: FinetuneConfig, tmp_path: Path):
    start(config, tmp_path)
    result = next((tmp_path / "work" / "runs").glob("*/result.json"))
    (result.parent / STATES / "1").mkdir(parents=True)
    start(config, tmp_path)
    assert not (result.parent / STATES).exists()


def test_the_submission_is_the_ensembles_where_one_was_asked_for(tmp_path: Path):
    for folder, prediction in (("test", "0"), ("ensemble-test", "1")):
        path = tmp_path / "predictions" / folder
        path.mkdir(parents=True)
        (path / "RTE.tsv").write_text(prediction)
    for prefix, expected in (("", b"0"), ("ensemble-", b"1")):
        finetune._write_submission(tmp_path, ["rte"], single=True, prefix=prefix, say=lambda line: None)
        with zipfile.ZipFile(tmp_path / "glue_submission.zip") as archive:
            assert archive.read("RTE.tsv") == expected


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"errors": -1}, "--errors=-1: give at least 0"),
        ({"seeds": 1 << 63}, "--seeds=9223372036854775808: give at least 1 and at most 10000"),
        ({"ensemble": -1}, "--ensemble=-1: give at least 0"),
        (
            {"init_missing": ("clasifier",)},
            "--init_missing=clasifier: own has no such part; its parts are classifier, encoder, pooler",
        ),
    ],
)
def test_a_wrong_flag_is_one_line(changes: dict[str, Any], match: str, config: FinetuneConfig, tmp_path: Path):
    with pytest.raises(UserError, match=match):
        start(config, tmp_path, **changes)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (
            ("data.dev_fraction=0.1", "optimizer.learning_rte=1"),
            "config.optimizer.learning_rte: no such field; did you mean config.optimizer.learning_rate",
        ),
        (("model.hidden_size=3",), "config.model.hidden_size: no such field"),
    ],
)
def test_an_override_that_does_not_exist_is_named(overrides: tuple[str, ...], match: str, tmp_path: Path):
    fields = [f"--config.{override}" for override in overrides]
    command = [
        sys.executable,
        "-m",
        "bert_jax.finetune",
        "--config=configs/finetune_glue.py:rte",
        "--init=x",
        f"--workdir={tmp_path}",
    ]
    ended = run_command([*command, *fields])
    assert ended.returncode == 2
    assert match in ended.stderr
    assert "Traceback" not in ended.stderr
