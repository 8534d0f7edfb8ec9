"""A run learns, keeps its best, goes on where it was killed, shares its compiled steps, and says what is wrong."""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config.finetuning import FinetuneConfig, from_config_dict
from bert_jax.convert.loading import load_pretrained
from bert_jax.errors import UserError
from bert_jax.finetuning import finetune
from bert_jax.finetuning.batches import batch_examples
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.fine_tuner import FineTuner
from bert_jax.finetuning.prediction import average_outputs, load_outputs, predict_outputs, save_outputs
from bert_jax.finetuning.program import TaskProgram
from bert_jax.finetuning.results import ExperimentOptions
from bert_jax.finetuning.run_result import Stopped
from bert_jax.finetuning.settings import RunSettings, grid, layerwise_decay, learning_rate, step_settings
from bert_jax.runs.runtime import silent
from bert_jax.training.schedule import RateSegment, learning_rate_schedule
from tests.documented import undescribed_metrics
from tests.finetune_data import (
    open_runtime,
    own_config,
    sentiment,
    tiny_source,
    write_jsonl,
    write_sentiment,
    write_source,
)
from tests.rounding import assert_rounded_alike, encoder_bound, rounded


def experiment(tmp_path: Path, config: FinetuneConfig, **changes: Any) -> Experiment:
    options = changes.pop("options", None) or ExperimentOptions(runs=tuple(grid(config, sweep=False, seeds=1)))
    workdir = tmp_path / changes.pop("workdir", "work")
    workdir.mkdir(exist_ok=True)
    source = changes.pop("source", None) or tiny_source(tmp_path / "source")
    source.require_tokenizer().save(workdir / "vocab")
    runtime = open_runtime(workdir, report=changes.pop("report", silent))
    runtime.should_stop = changes.pop("should_stop", lambda: False)
    runtime.pages = changes.pop("pages", None)
    task = finetune.open_config_task(config)
    return Experiment(config, task=task, pretrained=source, options=options, runtime=runtime, directory=workdir)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    tmp_path = tmp_path_factory.mktemp("learned")
    config = own_config(write_sentiment(tmp_path / "data"), train={"num_epochs": 6.0})
    options = ExperimentOptions(runs=tuple(grid(config, sweep=False, seeds=2)), errors=3, ensemble=2)
    return tmp_path / "work", experiment(tmp_path, config, options=options).run_all()


def test_every_metric_written_is_described_in_the_docs(learned: tuple[Path, dict[str, Any]]):
    files = sorted((learned[0] / "runs").glob("*/metrics.jsonl"))
    assert files
    for file in files:
        assert undescribed_metrics(file) == set()


def test_a_task_is_learned_and_reported(learned: tuple[Path, dict[str, Any]]):
    workdir, record = learned
    assert record["best"]["metrics"]["dev"]["accuracy"] >= 0.9
    assert record["summary"][0]["runs"] == 2
    assert record["summary"][0]["collapsed"] == 0
    assert record == json.loads((workdir / "results.json").read_text())
    assert sum(map(sum, record["tables"]["confusion"]["rows are gold, columns predicted"])) == 40
    lines = (workdir / "predictions" / "dev" / "own-dev.jsonl").read_text().splitlines()
    assert len(lines) == 40
    right = [
        json.loads(line)["prediction"] == row["label"] for line, row in zip(lines, sentiment(40, seed=2), strict=True)
    ]
    assert np.mean(right) == record["best"]["metrics"]["dev"]["accuracy"]
    errors = [json.loads(line) for line in (workdir / "errors-dev.jsonl").read_text().splitlines()]
    assert record["mistakes"][:3] == errors
    assert len(record["mistakes"]) == right.count(False)
    assert len(record["ensemble"]["runs"]) == 2
    assert "mean" in (workdir / "results.txt").read_text()


class _Pages:
    def __init__(self) -> None:
        self.requests: list[Path] = []
        self.num_reports = 0

    def request(self, directory: Path) -> None:
        self.requests.append(directory)

    def report_missing(self) -> None:
        self.num_reports += 1


def test_each_evaluation_requests_the_page_and_prints_its_scores_in_percent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = own_config(write_sentiment(tmp_path / "data"), train={"num_epochs": 1.0, "evals_per_epoch": 2})
    pages = _Pages()
    record = experiment(tmp_path, config, pages=pages).run_all()
    evaluations = len(record["best"]["history"])
    assert evaluations >= 2
    assert pages.requests == [tmp_path / "work"] * (evaluations + 1)
    printed = capsys.readouterr().out
    for evaluation in record["best"]["history"]:
        assert f"dev: accuracy {100 * evaluation['metrics']['accuracy']:.2f}, " in printed
    assert pages.num_reports == 1  # a page that cannot be written is mentioned once, at the end


def test_only_the_best_parameters_are_kept_and_they_are_a_source_with_labels(learned: tuple[Path, dict[str, Any]]):
    workdir, record = learned
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert steps == [record["best"]["best"]["step"]]
    assert not list((workdir / "runs").glob("*/best"))
    assert not list((workdir / "runs").glob("*/states"))
    source = load_pretrained(workdir)
    assert source.architecture == "BertForSequenceClassification"
    assert source.labels == ["bad", "good"]
    assert source.record["metrics"]["dev"]["accuracy"] == record["best"]["metrics"]["dev"]["accuracy"]


def test_a_finished_workdir_is_not_trained_again(
    learned: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: Any
):
    workdir, record = learned
    config = from_config_dict(dataclasses.asdict(own_config(workdir.parent / "data", train={"num_epochs": 6.0})))
    monkeypatch.setattr(TaskProgram, "initial_state", lambda *_: pytest.fail("trained again"))
    options = ExperimentOptions(runs=tuple(grid(config, sweep=False, seeds=2)), errors=3, ensemble=2)
    again = experiment(workdir.parent, config, options=options).run_all()
    assert again == record


@pytest.mark.soak
def test_a_stopped_run_goes_on_to_the_very_same_parameters(tmp_path: Path):
    config = own_config(
        write_sentiment(tmp_path / "data", train=64),
        train={"num_epochs": 3.0},
        checkpoint={"every": 2, "keep_latest": 2},
        model={"hidden_dropout_prob": 0.1},
    )
    whole = experiment(tmp_path, config, workdir="whole").run_all()
    calls = itertools.count()
    with pytest.raises(Stopped):
        experiment(tmp_path, config, workdir="parts", should_stop=lambda: next(calls) == 5).run_all()
    assert (tmp_path / "parts" / "runs" / "b16-lr0.003-e3-s0" / "states").is_dir()
    parts = experiment(tmp_path, config, workdir="parts").run_all()
    assert parts["best"]["history"] == whole["best"]["history"]
    first, second = load_pretrained(tmp_path / "whole"), load_pretrained(tmp_path / "parts")
    for one, other in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_sweep_compiles_no_more_than_one_run(tmp_path: Path, monkeypatch: Any):
    config = own_config(
        write_sentiment(tmp_path / "data", train=64), sweep={"batch_size": (16,), "num_epochs": (1.0, 2.0)}
    )
    traced: list[tuple[int, ...]] = []
    plain = TaskProgram._train_step

    def counted(self: TaskProgram, state: Any, rows: Any, settings: Any) -> Any:
        traced.append(rows.input_ids.shape)
        return plain(self, state, rows, settings)

    monkeypatch.setattr(TaskProgram, "_train_step", counted)
    options = ExperimentOptions(runs=tuple(grid(config, sweep=True, seeds=2)))
    record = experiment(tmp_path, config, options=options).run_all()
    assert len(record["runs"]) == 1 * 3 * 2 * 2
    assert len(traced) == len(set(traced))  # each shape once, whatever rate, length and seed
    assert len(traced) <= 3


@pytest.mark.slow
def test_seeds_differ_and_repeat(tmp_path: Path):
    config = own_config(write_sentiment(tmp_path / "data", train=32), train={"num_epochs": 1.0})
    options = ExperimentOptions(runs=tuple(grid(config, sweep=False, seeds=2)))
    first = experiment(tmp_path, config, workdir="a", options=options).run_all()
    second = experiment(tmp_path, config, workdir="b", options=options).run_all()
    assert [run["history"] for run in first["runs"]] == [run["history"] for run in second["runs"]]
    outputs = [load_outputs(tmp_path / "a" / "runs" / run["name"] / "outputs-dev.npz") for run in first["runs"]]
    assert not np.allclose(outputs[0], outputs[1])


@pytest.mark.slow
@pytest.mark.numerics
def test_outputs_after_training_do_not_depend_on_the_mesh(tmp_path: Path):
    folder = write_sentiment(tmp_path / "data", train=32)
    results, bound = [], 0.0
    for sizes in ((8, 1, 1), (1, 1, 8), (2, 2, 2)):
        fields: dict[str, Any] = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
        config = own_config(folder, mesh=fields, train={"num_epochs": 1.0})
        source = tiny_source(tmp_path / "source", num_attention_heads=8, hidden_size=64)
        made = experiment(tmp_path, config, workdir=f"w{sizes}", source=source)
        made.run_all()
        assert isinstance(made.learner, FineTuner)
        bound = 2 * encoder_bound(made.learner.program.model)
        results.append(load_outputs(next((tmp_path / f"w{sizes}").glob("runs/*/outputs-dev.npz"))))
    for other in results[1:]:
        # Two steps, the second one from parameters that differ by the first one's rounding.
        assert_rounded_alike(other, results[0], bound=bound)


def test_batches_walk_through_each_epoch_once():
    settings = RunSettings(batch_size=6, learning_rate=1.0, num_epochs=2.0, seed=3)
    stream = np.concatenate([batch_examples(settings, examples=20, step=step) for step in range(10)])
    assert sorted(stream[:20]) == list(range(20))
    assert sorted(stream[20:40]) == list(range(20))
    assert stream[:20].tolist() != stream[20:40].tolist()


@pytest.mark.numerics
@pytest.mark.parametrize("recipe", ["modern", "original"])
def test_the_learning_rate_is_that_of_pretrainings_schedule(recipe: str):
    run = RunSettings(batch_size=8, learning_rate=2e-3, num_epochs=1.0, seed=0)
    fixed = step_settings(run, num_steps=40, warmup_fraction=0.1)
    declared = learning_rate_schedule((RateSegment(0, 40, 2e-3, 4),), recipe=recipe)
    for step in range(40):
        assert float(learning_rate(jnp.asarray(step), settings=fixed, recipe=recipe)) == pytest.approx(
            float(declared(step)), abs=rounded(5, size=2e-3)
        )


def test_layerwise_decay_slows_lower_layers():
    encoder = {"embeddings": {"word_embeddings": jnp.ones((3, 2))}, "layers": {"query": {"kernel": jnp.ones((2, 4))}}}
    params = {"encoder": encoder, "classifier": {"bias": jnp.ones(2)}}
    scaled = cast(dict[str, Any], layerwise_decay(0.5, num_layers=2).update(params, optax.EmptyState())[0])
    np.testing.assert_allclose(scaled["encoder"]["layers"]["query"]["kernel"][:, 0], [0.25, 0.5])
    np.testing.assert_allclose(scaled["encoder"]["embeddings"]["word_embeddings"], 0.125)
    np.testing.assert_allclose(scaled["classifier"]["bias"], 1)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_layerwise_decay_scales_the_steps_of_a_run(tmp_path: Path, decay: float):
    """The first step of Adam moves every parameter that has a gradient by the learning rate of its depth."""
    config = own_config(
        write_sentiment(tmp_path / "data", train=16),
        optimizer={"layerwise_lr_decay": decay, "weight_decay": 0.0, "learning_rate": 1e-3},
        train={"num_epochs": 1.0},
    )
    source = tiny_source(tmp_path / "source")
    assert experiment(tmp_path, config, source=source).run_all()["best"]["num_steps"] == 1
    trained = load_pretrained(tmp_path / "work").params
    moved = jax.tree.map(lambda old, new: np.abs(new - old), source.params, {p: trained[p] for p in source.params})
    layers = moved["encoder"]["layers"]["attention_output"]["kernel"]
    for change, power in (
        (moved["pooler"]["dense"]["kernel"], 0),
        (layers[1], 1),
        (layers[0], 2),
        (moved["encoder"]["embeddings"]["position_embeddings"], 3),
    ):
        assert change.max() == pytest.approx(1e-3 * decay**power, rel=0.01)


def test_the_grid_is_the_papers():
    runs = grid(from_config_dict({"task": "mrpc"}), sweep=True, seeds=5)
    assert len(runs) == 2 * 3 * 3 * 5
    assert len({run.name for run in runs}) == len(runs)
    assert {run.seed for run in runs} == set(range(5))


def test_outputs_survive_the_disk(tmp_path: Path):
    for outputs in (
        [np.arange(3, dtype=np.float32), np.ones(3, np.float32)],
        [np.zeros((4, 2), np.float32), np.ones((1, 2), np.float32), np.full((7, 2), 3, np.float32)],
    ):
        save_outputs(tmp_path / "o.npz", outputs=outputs)
        back = load_outputs(tmp_path / "o.npz")
        assert [o.shape for o in back] == [o.shape for o in outputs]
        assert all((a == b).all() for a, b in zip(back, outputs, strict=True))
    mean = average_outputs([[np.zeros(2)], [np.ones(2)]])
    np.testing.assert_array_equal(mean[0], [0.5, 0.5])


@pytest.mark.numerics
def test_evaluation_gives_each_example_its_own_output(tmp_path: Path):
    config = own_config(write_sentiment(tmp_path / "data", train=32))
    made = experiment(tmp_path, config)
    assert isinstance(made.learner, FineTuner)
    program, dev = made.learner.program, made.data.evals[0]
    params = made.learner.initial_state(made.options.runs[0]).params
    together = predict_outputs(program, params, features=dev.features)
    assert dev.features.targets is not None
    for index in (0, 7, 39):
        one = dataclasses.replace(
            dev.features,
            ids=dev.features.ids[index : index + 1],
            first_lengths=dev.features.first_lengths[index : index + 1],
            targets=dev.features.targets[index : index + 1],
        )
        alone = predict_outputs(program, params, features=one)
        assert_rounded_alike(together[index], alone[0], bound=encoder_bound(program.model))


def test_training_goes_on_from_a_head_of_the_same_labels_and_refuses_another(tmp_path: Path):
    folder = write_sentiment(tmp_path / "data", train=32)
    config = own_config(folder, train={"num_epochs": 1.0})
    experiment(tmp_path, config, workdir="first").run_all()
    trained = load_pretrained(tmp_path / "first")
    lines: list[str] = []
    again = experiment(tmp_path, config, workdir="second", source=trained, report=lines.append)
    assert isinstance(again.learner, FineTuner)
    np.testing.assert_array_equal(
        again.learner.initial_params(again.options.runs[0])["classifier"]["kernel"],
        trained.params["classifier"]["kernel"],
    )
    rows = [{**row, "label": row["label"].upper()} for row in sentiment(40, seed=1)]
    for split in ("train", "dev"):
        write_jsonl(folder / f"{split}.jsonl", rows)
    with pytest.raises(UserError, match="labels bad, good, own has BAD, GOOD: type --init_missing=classifier"):
        experiment(tmp_path, config, workdir="third", source=trained)
    options = ExperimentOptions(runs=tuple(grid(config, sweep=False, seeds=1)), random_parts=("classifier",))
    assert experiment(tmp_path, config, workdir="third", source=trained, options=options)


def request(tmp_path: Path, **changes: Any) -> finetune.Request:
    return finetune.Request(**{"init": str(tmp_path / "source"), "workdir": str(tmp_path / "work"), **changes})


def test_bad_input_is_one_line(tmp_path: Path):
    folder = write_sentiment(tmp_path / "data", train=32)
    config = own_config(folder, train={"num_epochs": 1.0})
    write_source(tmp_path / "source")

    def refused(config: FinetuneConfig, match: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=match) as error:
            finetune.finetune(config, request=request(tmp_path, **changes))
        assert "\n" not in str(error.value)

    refused(config, "does not exist", init=str(tmp_path / "nowhere"), workdir=str(tmp_path / "a"))
    refused(config, "give at least 1", seeds=0)
    (folder / "dev.jsonl").write_text("")
    refused(config, "the dev set of own is empty", workdir=str(tmp_path / "b"))
    (folder / "dev.jsonl").unlink()
    refused(config, "contains no dev.jsonl .or validation, valid, val; or .json, .csv", workdir=str(tmp_path / "c"))
    write_jsonl(folder / "dev.jsonl", [{"text": "it was", "label": "middling"}])
    refused(
        config, r"dev.jsonl line 1: unknown label 'middling': the labels are bad, good", workdir=str(tmp_path / "d")
    )
    write_jsonl(folder / "dev.jsonl", [{"words": "it was", "label": "good"}])
    refused(config, "line 1: there is no column 'text'; the columns are", workdir=str(tmp_path / "e"))


def test_the_end_compares_the_best_run_with_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_sentiment(tmp_path / "data", train=32)
    write_source(tmp_path / "source")
    config = own_config(folder, train={"num_epochs": 1.0}, optimizer={"learning_rate": 3e-5})
    assert finetune.finetune(config, request=request(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert re.search(r"baseline accuracy \d\d\.\d\d %\n", shown)
    assert shown.count("a model of width 32 usually learns faster than at the default learning rate of 3e-05: ") == 1
    sentence = (tmp_path / "work" / "results.txt").read_text().splitlines()[-1]
    assert re.match(r"The model (beats|does not beat) always answering '(good|bad)' ", sentence)
    assert sentence in shown


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"task": "mrcp"}, "config.task='mrcp': did you mean mrpc"),
        ({"tsk": "mrpc"}, "config.tsk: no such field; did you mean config.task"),
        (
            {"data": {"max_seq_len": 3}},
            "config.data.max_seq_len: no such field; did you mean config.data.max_seq_length",
        ),
        ({"train": {"num_epochs": 0.0}}, "config.train.num_epochs=0.0: must be larger than 0"),
        ({"train": {"batch_size": "8"}}, "config.train.batch_size: expected int, got '8'"),
        ({"optimizer": {"warmup_fraction": 1.5}}, "warmup_fraction=1.5: must be at least 0 and below 1"),
        ({"recipe": "original", "optimizer": {"name": "adamw"}}, "contradicts config.recipe=original"),
        ({"task": "squad_v2", "squad": {"null_score_threshold": "low"}}, "set it to a number, or to tune"),
        ({"task": "squad_v1", "data": {"max_seq_length": 64}}, "leaves no space for the context"),
        ({"own": {"kind": "choice"}, "task": "own"}, "config.own.choices is empty"),
        ({"task": "ner", "ner": {"features": "first"}}, "choose one of '', embeddings, second_to_last"),
        ({"model": {"hidden_dropout_prob": 1.5}}, "must be at least 0 and below 1, or -1"),
        ({"seed": -1}, "config.seed=-1: must not be negative"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(changes: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match):
        from_config_dict({"task": "mrpc", **changes})


def test_a_position_table_that_is_too_short_is_one_line(tmp_path: Path):
    config = own_config(write_sentiment(tmp_path / "data", train=32), data={"max_seq_length": 128})
    with pytest.raises(UserError, match=r"exceeds the position embeddings of .*: set it to at most 64"):
        experiment(tmp_path, config)
