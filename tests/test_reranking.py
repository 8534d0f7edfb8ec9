"""Rerankers learn a teacher's scores; documents that a query lacks count nowhere; a ranking is scored as defined."""

import csv
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config.finetuning import from_config_dict
from bert_jax.config.task_options import DataOptions, RerankOptions
from bert_jax.convert.loading import load_pretrained
from bert_jax.errors import UserError
from bert_jax.finetuning.finetune import Request, finetune
from bert_jax.kinds.base import Gold
from bert_jax.kinds.ranking import Ranking
from bert_jax.kinds.regression import Regression
from bert_jax.prediction.model import Model
from bert_jax.tasks.registry import open_task
from bert_jax.tasks.reranking import RerankTask
from tests.finetune_data import BAD, GOOD, PLAIN, tokenizer, write_jsonl, write_source
from tests.rounding import assert_rounded_alike, divergence_bound, rounded

ROW = {"query": "the film", "documents": ["it was good", "it was bad"], "scores": [3.0, 0.5]}


def rerank_task(folder: Path, *, train_file: str = "", **options: Any) -> RerankTask:
    data = DataOptions(directory=str(folder), max_seq_length=24, train_file=train_file)
    task = open_task("rerank", data=data, rerank=RerankOptions(**options))
    assert isinstance(task, RerankTask)
    return task


def gold(scores: list[list[float]], *, group: int) -> Gold:
    """Return one row per query, whose documents have a token each; a query may have fewer than `group`."""
    targets = np.array([row + [0.0] * (group - len(row)) for row in scores], np.float32)
    segments = np.zeros((len(scores), group), np.int32)
    for row, values in enumerate(scores):
        segments[row, : len(values)] = np.arange(1, len(values) + 1)
    return Gold(jnp.asarray(targets[:, None]), jnp.ones((len(scores), 1)), jnp.asarray(segments))


STUDENT = [[1.0, 0.2, 2.5], [0.3, -0.4, 9.0]]  # the second query has two documents
TEACHER = [[9.0, 4.0, 6.0], [2.0, 3.0]]


@pytest.mark.numerics
def test_margin_mse_is_the_mean_over_the_documents_that_there_are():
    kind = Ranking(group=3, options=RerankOptions(loss="margin_mse"))
    scores = kind.scores(jnp.asarray(STUDENT)[:, None], gold(TEACHER, group=3))
    expected = [((0.8 - 5) ** 2 + (-1.5 - 3) ** 2) / 2, (0.7 + 1) ** 2]
    # Two margins and their difference, its square, the sum and the quotient; the scores were rounded.
    assert_rounded_alike(scores.losses[:, 0], expected, bound=rounded(8, size=max(expected)))
    assert scores.correct is not None
    np.testing.assert_array_equal(scores.correct[:, 0], [0, 0])


@pytest.mark.numerics
def test_kl_is_the_divergence_from_the_teachers_softmax():
    kind = Ranking(group=3, options=RerankOptions(loss="kl", temperature=2.0))
    losses = kind.scores(jnp.asarray(STUDENT)[:, None], gold(TEACHER, group=3)).losses[:, 0]
    for loss, student, teacher in zip(losses, STUDENT, TEACHER, strict=True):
        p, q = (np.exp(np.array(row[: len(teacher)]) / 2) for row in (teacher, student))
        p, q = p / p.sum(), q / q.sum()
        bound = divergence_bound(3, largest=9.0, temperature=2.0)
        assert_rounded_alike(loss, 4 * (p * np.log(p / q)).sum(), bound=bound)


def test_documents_are_a_list_or_several_columns(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", [ROW, {**ROW, "documents": ["a", "b", "c"], "scores": [1, 2, 3]}])
    write_jsonl(tmp_path / "dev.jsonl", [ROW])
    task = rerank_task(tmp_path)
    features = task.load("dev", tokenizer=tokenizer()).features
    assert features.group == 3
    assert features.targets is not None
    np.testing.assert_array_equal(features.targets, [[3.0, 0.5, 0.0]])
    assert [len(ids) > 0 for ids in features.ids] == [True, True, False]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["query", "d1", "d2", "s1", "s2"], [ROW["query"], *ROW["documents"], 3.0, 0.5]])
    table = rerank_task(tmp_path, train_file="table.csv", documents="d1,d2", scores="s1,s2")
    assert table.read("train") == task.read("dev")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (
            {"query": "x"},
            r"line 1: there is no column 'documents'; .*: type --config.rerank.documents=NAME",
        ),
        ({**ROW, "scores": [1.0]}, "line 1: 2 documents and 1 scores: give at least two documents, and a score for"),
        ({**ROW, "documents": ["a"], "scores": [1]}, "line 1: 1 documents and 1 scores"),
        ({**ROW, "scores": [1.0, "x"]}, "line 1: 'x' is not a number: fix column scores"),
        ({**ROW, "documents": "a"}, "line 1: column 'documents' is not a list: write a list"),
    ],
)
def test_what_is_wrong_with_a_record_is_one_line(tmp_path: Path, row: dict[str, Any], match: str):
    write_jsonl(tmp_path / "train.jsonl", [row])
    with pytest.raises(UserError, match=match) as caught:
        rerank_task(tmp_path).read("train")
    assert "\n" not in str(caught.value)


def test_a_ranking_is_scored_by_its_gains_and_by_the_place_of_the_best_document(tmp_path: Path):
    rows = [{**ROW, "documents": ["a", "b", "c"], "scores": [1.0, 3.0, 2.0]}, ROW]
    for name in ("train", "dev"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    task = rerank_task(tmp_path)
    split = task.load("dev", tokenizer=tokenizer())
    outputs = [np.array([0.0, 1.0, 2.0], np.float32), np.array([5.0, 4.0, 99.0], np.float32)]
    metrics = task.score(split, outputs)
    gains = 1 / np.log2([2, 3])
    ndcg = (1 * gains[0] + 2 * gains[1]) / (2 * gains[0] + 1 * gains[1])
    assert metrics == pytest.approx({"ndcg@10": (ndcg + 1) / 2, "mrr@10": 3 / 4, "accuracy": 1 / 2})
    assert [record["first"] for record in task.mistakes(split, outputs, count=3)] == ["c"]
    (path,) = task.write_predictions(split, outputs, directory=tmp_path / "out")
    assert json.loads(path.read_text().splitlines()[1]) == {"index": 1, "scores": [5.0, 4.0]}


@pytest.mark.slow
def test_a_reranker_learns_and_is_a_model_of_pairs(tmp_path: Path):
    """The teacher likes documents with a good word more than those with a bad one."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(64):
        plain = " ".join(map(str, rng.choice(PLAIN, 3)))
        documents = [f"{plain} {rng.choice(GOOD)}", f"{plain} {rng.choice(BAD)}", f"{rng.choice(BAD)} {plain}"]
        scored = [(documents[i], (2.0, -1.0, -1.0)[i]) for i in rng.permutation(3)]
        texts, scores = zip(*scored, strict=True)
        rows.append({"query": plain, "documents": list(texts), "scores": list(scores)})
    write_jsonl(tmp_path / "train.jsonl", rows[:48])
    write_jsonl(tmp_path / "dev.jsonl", rows[48:])
    write_source(tmp_path / "source")
    config = from_config_dict(
        {
            "task": "rerank",
            "data": {"directory": str(tmp_path), "max_seq_length": 32},
            "train": {"batch_size": 16, "num_epochs": 12.0},
            "optimizer": {"learning_rate": 3e-3},
        }
    )
    workdir = tmp_path / "work"
    assert finetune(config, request=Request(init=str(tmp_path / "source"), workdir=str(workdir))) == 0
    results = json.loads((workdir / "results.json").read_text())
    assert results["best"]["best"]["metrics"]["ndcg@10"] > max(0.95, results["constant"])
    model = Model(load_pretrained(workdir, report=lambda line: None))
    assert model.source.output_kind is Regression
    answers = model.predict(
        "pair", [{"text_a": "the film was", "text_b": f"the film was {w}"} for w in ("good", "bad")]
    )
    good, bad = (answer["score"] for answer in answers)
    assert good > bad
