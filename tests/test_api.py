"""From Python: training, fine-tuning and loading are one call each, with the configs of the commands."""

import inspect
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import bert_jax
from bert_jax.config import Config
from bert_jax.config import files as config_files
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.errors import UserError
from bert_jax.finetuning import finetune
from bert_jax.pretrain import run
from tests.finetune_data import write_sentiment, write_source


def test_the_package_shows_its_functions() -> None:
    assert set(bert_jax.__all__) <= set(dir(bert_jax))
    assert set(dir(bert_jax)) == {*bert_jax.__all__, "__version__"}
    assert bert_jax.__version__ == metadata.version("bert_jax")
    with pytest.raises(AttributeError, match="no attribute 'trian'; it has finetune, load, train"):
        _ = bert_jax.trian  # type: ignore[attr-defined]
    assert all((inspect.getdoc(getattr(bert_jax, name)) or "").strip() for name in bert_jax.__all__)


def test_train_and_load(tmp_path: Path, tiny_dataset: Path) -> None:
    config = config_files.load("configs/tiny_cpu.py")
    small = {"num_steps": 2, "batch_size": 8, "phases": [{"max_seq_length": 32}]}
    config["model"] |= {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 0}
    config = {**config, "train": {**config["train"], **small}, "optimizer": {**config["optimizer"], "warmup_steps": 1}}
    config["data"] |= {"input": "", "directory": str(tiny_dataset)}
    assert bert_jax.train(config, workdir=tmp_path / "run") == 0
    model = bert_jax.load(tmp_path / "run")
    assert len(model.fill_mask("the [MASK] .", top_k=2)[0]) == 2
    assert "512 tokens" in repr(model)


def test_finetune(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    data = write_sentiment(tmp_path / "data", train=32)
    config = config_files.load("configs/finetune_own.py:classification")
    config["train"] |= {"num_epochs": 1.0, "batch_size": 16}
    config["data"] |= {"max_seq_length": 32}
    assert bert_jax.finetune(config, init=str(source), data_dir=str(data), workdir=tmp_path / "work", seeds=1) == 0
    assert bert_jax.load(tmp_path / "work").classify("it was good")["label"]


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file 'configs/none\.py'; choose one of configs/base_tpu\.py"):
        bert_jax.train("configs/none.py", workdir=tmp_path)


def test_every_option_reaches_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(run, "pretrain", lambda config, **options: calls.update(train=options) or 0)
    monkeypatch.setattr(
        finetune, "finetune", lambda config, **options: calls.update(finetune={"c": config, **options}) or 0
    )
    bert_jax.train(Config(), workdir=tmp_path, continue_from="run", drop=["pooler"])
    assert (calls["train"]["continue_from"], calls["train"]["drop"]) == ("run", ["pooler"])
    for config in (FinetuneConfig(), {}):
        bert_jax.finetune(config, init="model", workdir=tmp_path, data_dir="texts", seeds=3)
        assert calls["finetune"]["c"].data.directory == "texts"
        assert calls["finetune"]["request"].seeds == 3
