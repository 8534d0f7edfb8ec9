"""Pairs, triplets, scored pairs and texts are read from every format; retrieval is scored as it is defined."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.config.task_options import DataOptions, EmbedOptions
from bert_jax.errors import UserError
from bert_jax.tasks.embedding import EmbedTask
from bert_jax.tasks.embedding_records import EmbedExample
from bert_jax.tasks.registry import open_task
from bert_jax.tasks.retrieval import rank, ranking_metrics
from tests.finetune_data import tokenizer, write_jsonl

PAIR = {"anchor": "the film", "positive": "it was good"}


def embed_task(folder: Path, **options: Any) -> EmbedTask:
    changes = {name: options.pop(name) for name in ("dev_fraction", "train_file") if name in options}
    data = DataOptions(directory=str(folder), max_seq_length=16, **changes)
    task = open_task("embed", data=data, embed=EmbedOptions(**options))
    assert isinstance(task, EmbedTask)
    return task


def texts(*parts: str, score: float | None = None) -> EmbedExample:
    return EmbedExample(parts, score)


def test_negatives_are_a_list_one_text_or_several_columns(tmp_path: Path):
    rows = [
        {**PAIR, "negative": ["bad", "poor"]},
        {**PAIR, "negative": "bad"},
        {**PAIR, "negative": ["bad", "", "sad"]},
    ]
    write_jsonl(tmp_path / "train.jsonl", rows)
    expected = [texts(*PAIR.values(), *negatives) for negatives in (("bad", "poor"), ("bad",), ("bad", "sad"))]
    assert embed_task(tmp_path, form="triplets").read("train") == expected
    with (tmp_path / "two.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["anchor", "positive", "n1", "n2"], [*PAIR.values(), "bad", ""]])
    task = embed_task(tmp_path, form="triplets", negatives="n1,n2", train_file="two.csv")
    assert task.read("train") == [texts(*PAIR.values(), "bad")]


def test_parquet_says_the_same_as_json_lines(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the arrow extra")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{**PAIR, "negative": ["bad", "poor"], "score": 1.5}] * 3
    write_jsonl(tmp_path / "lines.jsonl", rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    for form in ("triplets", "scores", "pairs"):
        lines = embed_task(tmp_path, form=form, train_file="lines.jsonl").read("train")
        assert embed_task(tmp_path, form=form).read("train") == lines
    (tmp_path / "train.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"train\.parquet is damaged or cut short"):
        embed_task(tmp_path).read("train")


def test_a_text_per_line_is_its_own_pair(tmp_path: Path):
    (tmp_path / "train.txt").write_text("the film\n\n it was good \n")
    task = embed_task(tmp_path, form="texts")
    assert task.read("train") == [texts("the film", "the film"), texts("it was good", "it was good")]
    write_jsonl(tmp_path / "dev.jsonl", [{**PAIR, "score": 3}])
    assert task.read("dev") == [texts(*PAIR.values(), score=3.0)]
    assert task.selection == "spearman"


def test_prompts_are_put_before_their_column_and_equal_texts_have_equal_numbers(tmp_path: Path):
    rows = [
        {**PAIR, "negative": ["bad"]},
        {"anchor": "it was good", "positive": "the film", "negative": ["bad", "sad"]},
    ]
    for name in ("train", "dev"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    task = embed_task(tmp_path, form="triplets", anchor_prompt="a ", positive_prompt="nice ")
    features = task.load("train", tokenizer=tokenizer()).features
    assert features.group == 4
    pieces = [" ".join(tokenizer().convert_ids_to_pieces(ids.tolist())) for ids in features.ids]
    assert pieces[:4] == ["[CLS] a the film [SEP]", "[CLS] nice it was good [SEP]", "[CLS] nice bad [SEP]", ""]
    assert features.targets is not None
    np.testing.assert_array_equal(features.targets, [[1, 2, 3, 0], [2, 1, 3, 4]])
    assert task.model_record()["embedding"]["prompts"] == {"query": "a ", "document": "nice "}


@pytest.mark.parametrize(
    ("line", "options", "match"),
    [
        (
            {"anchor": "x"},
            {},
            r"line 2: there is no column 'positive'; the columns are .*: type --config.embed.positive=NAME",
        ),
        ({"anchor": " ", "positive": "x"}, {}, "line 2: column 'anchor' is empty: give the record a text"),
        (PAIR, {"form": "triplets"}, r"line 2: no negative in column 'negative' \(config.embed.negatives\)"),
        (PAIR, {"form": "scores"}, r"there is no column 'score'; the columns are .*: type --config.embed.score=NAME"),
        ({**PAIR, "score": "much"}, {"form": "scores"}, "line 2: 'much' is not a number: fix column score"),
    ],
)
def test_what_is_wrong_with_a_record_is_one_line(tmp_path: Path, line: Any, options: dict[str, Any], match: str):
    good = {**PAIR, "negative": ["bad"], "score": 1}
    write_jsonl(tmp_path / "train.jsonl", [good, line])
    with pytest.raises(UserError, match=match) as caught:
        embed_task(tmp_path, **options).read("train")
    assert "\n" not in str(caught.value)


def unit(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def test_the_dev_set_is_a_corpus_in_which_each_text_stands_once(tmp_path: Path):
    """The first query has two answers, the negative of the second query and the corpus file are further documents."""
    rows = [
        {"anchor": "q1", "positive": "a"},
        {"anchor": "q1", "positive": "b"},
        {"anchor": "q2", "positive": "c", "negative": ["d"]},
    ]
    for name in ("train", "dev"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "more.txt").write_text("e\nf\n")
    task = embed_task(tmp_path, corpus_file="more.txt")
    split = task.load("dev", tokenizer=tokenizer())
    assert split.features.num_examples == 5
    assert task.selection == "ndcg@10"
    angles = {"q1": 0.0, "a": 0.1, "e": 0.2, "b": 0.3, "q2": 2.0, "d": 2.1, "c": 2.2, "f": 3.0, "": 0.0}
    shown = [*rows, {"anchor": "", "positive": "e"}, {"anchor": "", "positive": "f"}]
    outputs = [
        np.stack([unit(angles[text]) for text in (row["anchor"], row["positive"], *row.get("negative", [""]))])
        for row in shown
    ]
    metrics = task.score(split, outputs)
    gains = 1 / np.log2(np.arange(2, 6))
    first, second = (gains[0] + gains[2]) / (gains[0] + gains[1]), gains[1]
    assert metrics["ndcg@10"] == pytest.approx((first + second) / 2)
    assert metrics["mrr@10"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["recall@1"] == pytest.approx((1 / 2 + 0) / 2)
    assert metrics["recall@10"] == metrics["recall@100"] == 1
    (path,) = task.write_predictions(split, outputs, directory=tmp_path / "out")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [document["text"] for document in records[0]["documents"][:3]] == ["a", "e", "b"]
    assert [record["query"] for record in task.mistakes(split, outputs, count=5)] == ["q2"]


@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics_equal_their_definitions_on_random_rankings(seed: int):
    rng = np.random.default_rng(seed)
    queries, documents = rng.standard_normal((7, 4)), rng.standard_normal((150, 4))
    relevant = [frozenset(rng.choice(150, int(rng.integers(1, 20)), replace=False).tolist()) for _ in queries]
    metrics = ranking_metrics(rank(queries, documents=documents, is_cosine=True), relevant=relevant)
    expected: dict[str, list[float]] = {name: [] for name in metrics}
    for query, answers in zip(queries, relevant, strict=True):
        cosine = documents @ query / np.linalg.norm(documents, axis=1) / np.linalg.norm(query)
        order = sorted(range(150), key=lambda i: -cosine[i])
        ranks = [place for place, i in enumerate(order, start=1) if i in answers]
        ideal = sum(1 / np.log2(place + 1) for place in range(1, min(len(answers), 10) + 1))
        expected["ndcg@10"].append(sum(1 / np.log2(place + 1) for place in ranks if place <= 10) / ideal)
        expected["mrr@10"].append(1 / ranks[0] if ranks[0] <= 10 else 0)
        for k in (1, 10, 100):
            expected[f"recall@{k}"].append(sum(place <= k for place in ranks) / len(answers))
    assert metrics == pytest.approx({name: np.mean(values) for name, values in expected.items()})


def test_scored_pairs_are_scored_at_every_size(tmp_path: Path):
    rows = [{**PAIR, "score": score} for score in (0.0, 1.0, 2.0)]
    for name in ("train", "dev"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    task = embed_task(tmp_path, form="scores", dimensions=(2,))
    split = task.load("dev", tokenizer=tokenizer())
    assert split.features.targets == [0.0, 1.0, 2.0]
    # By their first two numbers the order is the opposite of that by all three.
    pairs = [([1, 0, 9], [np.cos(a), np.sin(a), b]) for a, b in ((0.1, 0.0), (0.2, 0.5), (0.3, 9.0))]
    outputs = [np.array(pair, np.float32) for pair in pairs]
    metrics = task.score(split, outputs)
    assert metrics["spearman"] == pytest.approx(1)
    assert metrics["spearman/2"] == pytest.approx(-1)
    worst = task.mistakes(split, outputs, count=1)
    assert worst[0]["texts"] == list(PAIR.values())
