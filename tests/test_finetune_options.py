"""Options of fine-tuning that a user sees in the log, the results and the predictions: one small run for each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.config.finetuning import FinetuneConfig, from_config_dict
from bert_jax.errors import UserError
from bert_jax.finetuning import finetune
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.results import ExperimentOptions
from bert_jax.finetuning.settings import grid
from bert_jax.prediction.json_lines import predict_lines
from bert_jax.prediction.model import load
from bert_jax.runs.runtime import FINISHED
from tests.finetune_data import open_runtime, own_config, tiny_model, tiny_source, write_jsonl, write_source
from tests.rounding import encoder_bound


def long_text(label: str) -> str:
    """Return a text of 30 words, the last 14 of which say what its label is."""
    return " ".join(["the", "film"] * 8 + [label] * 14)


def write_long(folder: Path) -> Path:
    """Write texts whose telling words are at the end, far beyond 16 tokens; one in four is good."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", 48), ("dev", 16)):
        labels = ["good" if i % 4 == 0 else "bad" for i in range(count)]
        rows = [{"text": long_text(label), "label": label} for label in labels]
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def train(config: FinetuneConfig, workdir: Path) -> tuple[dict, list[str]]:
    """Return the results and the log."""
    log: list[str] = []
    workdir.mkdir()
    source = tiny_source(workdir)
    Experiment(
        config,
        task=finetune.open_config_task(config),
        pretrained=source,
        options=ExperimentOptions(runs=tuple(grid(config, sweep=False, seeds=1))),
        runtime=open_runtime(workdir, report=log.append),
        directory=workdir,
    ).run_all()
    return json.loads((workdir / "results.json").read_text()), log


@pytest.mark.slow
@pytest.mark.numerics
def test_long_texts_are_learned_in_windows_and_predicted_like_that(tmp_path: Path):
    """The head says nothing about the label. The workdir remembers windows and length; a flag overrides them."""
    folder = write_long(tmp_path / "data")
    data = {"max_seq_length": 16, "truncation": "windows", "selection": "macro_f1"}
    config = own_config(
        folder, data=data, own={"class_weights": "balanced"}, train={"num_epochs": 4.0, "batch_size": 16}
    )
    record, log = train(config, tmp_path / "work")
    assert record["selection"] == "macro_f1"
    assert record["best"]["best"]["metrics"]["macro_f1"] > 0.9
    text = "\n".join(log)
    assert "0 = 'bad' (36), 1 = 'good' (12)" in text
    assert "48 of 48 texts of train (100.0 %) are longer than 16 tokens, the longest has 32: they are read in" in text
    lines = (tmp_path / "work" / "predictions" / "dev" / "own-dev.jsonl").read_text().splitlines()
    assert len(lines) == 16
    model = load(tmp_path / "work", report=lambda line: None)
    text = long_text("good")
    logits = json.loads(lines[0])["logits"]
    shares = np.exp(list(logits.values())) / np.exp(list(logits.values())).sum()
    assert list(model.classify(text)["probabilities"].values()) == pytest.approx(
        shares, abs=encoder_bound(tiny_model())
    )
    write_jsonl(tmp_path / "new.jsonl", [{"text": text}, {"text": "good"}])
    said: list[str] = []
    options = {"truncation": "head", "max_length": 16}
    arguments: dict[str, Any] = {
        "task": "classify",
        "input": str(tmp_path / "new.jsonl"),
        "output": str(tmp_path / "out.jsonl"),
    }
    predict_lines(model, **arguments, options=options, report=said.append)
    assert said[-1] == "1 of 2 rows (50.0 %) are longer than 16 tokens: a part of each was not read"
    predict_lines(model, **arguments, report=said.append)
    assert len(said) == 1  # windows read everything


def test_a_dry_run_shows_what_is_read_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_long(tmp_path / "data")
    source = write_source(tmp_path / "source")
    config = own_config(folder, data={"max_seq_length": 16})
    request = finetune.Request(init=str(source), workdir="", dry_run=True, seeds=2)
    assert finetune.finetune(config, request=request) == FINISHED
    shown = capsys.readouterr().out
    for part in (
        "own: train 48, dev 16 examples; baseline accuracy 75.00 %",
        "0 = 'bad' (36), 1 = 'good' (12)",
        "48 of 48 texts of train (100.0 %) are longer than 16 tokens",
        "run b16-lr0.003-e3-s1: 9 steps of 16 examples",
        "train example 0: [CLS] the film the film",
        "->  good",
    ):
        assert part in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "source"]
    (folder / "dev.jsonl").write_text('{"text": "x", "label": "new"}\n')
    with pytest.raises(UserError, match="unknown label 'new'"):
        finetune.finetune(config, request=request)


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"own": {"kind": "span"}, "data": {"truncation": "windows"}}, "own.kind=span reads long texts in windows of"),
        (
            {"own": {"text_pair": "b"}, "data": {"truncation": "windows"}},
            "reads pairs of texts: choose head or head_tail",
        ),
        ({"data": {"truncation": "tail"}}, r"config.data.truncation='tail'.* choose one of head, head_tail, windows"),
        ({"own": {"kind": "regression", "class_weights": "balanced"}}, "own.kind=regression has no class weights"),
    ],
)
def test_options_that_do_not_fit_the_kind_are_one_line(tmp_path: Path, sections: dict, match: str):
    with pytest.raises(UserError, match=match):
        own_config(tmp_path, **sections)


@pytest.mark.parametrize("task", ["mrpc", "all"])
def test_windows_are_refused_for_the_pairs_of_glue(task: str):
    with pytest.raises(UserError, match=f"config.task={task} reads pairs of texts: choose head or head_tail"):
        from_config_dict({"task": task, "data": {"directory": "x", "truncation": "windows"}})
    assert from_config_dict({"task": "sst2", "data": {"directory": "x", "truncation": "windows"}})
