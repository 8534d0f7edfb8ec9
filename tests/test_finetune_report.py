"""Summaries over seeds: every labeled split has its mean, and the split that selects has its name."""

import statistics
from typing import Any

import pytest

from bert_jax.finetuning.report import summarize, table, verdict
from bert_jax.finetuning.run_result import Evaluation, RunResult
from bert_jax.finetuning.settings import RunSettings

F1 = {"dev": (0.8, 0.9, 0.7), "test": (0.5, 0.6, 0.4)}


def results() -> list[RunResult]:
    runs = []
    for seed in range(3):
        metrics = {split: {"f1": values[seed], "null_score_threshold": -2.5} for split, values in F1.items()}
        best = Evaluation(10, {"f1": F1["dev"][seed]})
        runs.append(RunResult(RunSettings(8, 5e-5, 3.0, seed), 10, [best], best, 1.0, 8.0, metrics=metrics))
    return runs


def record(selected: str) -> dict[str, Any]:
    runs = results()
    return {
        "task": "ner",
        "selection": "f1",
        "selection_split": selected,
        "summary": summarize(runs, selection="f1"),
        "best": runs[1].to_json(),
        "tables": {},
    }


def test_every_labeled_split_has_mean_and_deviation_over_seeds() -> None:
    [row] = summarize(results(), selection="f1")
    assert row["mean"] == statistics.fmean(F1["dev"])
    for split, values in F1.items():
        assert row["splits"][split]["f1"] == {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}
    lines = table(record("dev")).splitlines()
    assert lines[0] == "ner: f1 on dev, in percent"
    assert "b8-lr5e-05-e3, test, mean (sd) of 3 runs: f1 50.00 (10.00)" in lines
    assert not any("dev, mean" in line for line in lines)


def test_the_split_that_selects_is_named() -> None:
    lines = table(record("test")).splitlines()
    assert lines[0] == "ner: f1 on test, in percent"
    assert any(line.startswith("b8-lr5e-05-e3, dev, mean") for line in lines)


def test_a_split_that_one_run_lacks_has_no_mean() -> None:
    runs = results()
    del runs[2].metrics["test"]
    assert set(summarize(runs, selection="f1")[0]["splits"]) == {"dev"}


def test_collapsed_runs_are_counted_only_where_there_are_any() -> None:
    assert table(record("dev")).splitlines()[1].split() == ["setting", "runs", "mean", "sd", "best"]
    runs = results()
    runs[0].collapsed = True
    lines = table({**record("dev"), "summary": summarize(runs, selection="f1")}).splitlines()
    assert (lines[1].split()[-1], lines[2].split()[-1]) == ("collapsed", "1")


@pytest.mark.parametrize(
    ("metric", "score", "baseline", "examples", "sentence"),
    [
        ("f1", 0.5667, 0.5367, 300, "The model beats random by 3.00 points (f1 56.67 on dev vs. 53.67)."),
        ("accuracy", 0.9, 0.5, 300, "The model beats random by 40.00 points (accuracy 90.00 on dev vs. 50.00)."),
        (
            "accuracy",
            0.5667,
            0.5367,
            300,
            "The model beats random by 3.00 points (accuracy 56.67 on dev vs. 53.67; with 300 examples, less than 5.72 "
            "points may be chance).",
        ),
        ("accuracy", 0.57, 0.56, 0, "The model beats random by 1.00 points (accuracy 57.00 on dev vs. 56.00)."),
        (
            "accuracy",
            0.5,
            0.5,
            300,
            "The model does not beat random (accuracy 50.00 on dev vs. 50.00): train for more epochs "
            "(--config.train.num_epochs) or at a larger learning rate (--config.optimizer.learning_rate), see "
            "docs/howto/finetuning.md.",
        ),
    ],
)
def test_a_sentence_compares_the_best_run_with_the_baseline(
    metric: str, score: float, baseline: float, examples: int, sentence: str
) -> None:
    best = {"metrics": {"dev": {metric: score}}}
    values = {"selection": metric, "selection_split": "dev", "constant": baseline, "best": best}
    assert verdict(values, answer="random", examples=examples) == sentence
