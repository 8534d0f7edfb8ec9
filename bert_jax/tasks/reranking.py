"""Rerankers: queries with documents that a teacher has scored; each pair of them is an instance.

A ranking is scored against the teacher's: nDCG@10 with the scores above the query's lowest as gains, and the reciprocal
rank of its best document. With scores of 0 and 1 these are the usual metrics.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.task_options import DataOptions, RerankOptions
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_json_lines
from bert_jax.kinds.ranking import Ranking
from bert_jax.tasks.files import finite_number
from bert_jax.tasks.interface import Instances, Outputs, Split
from bert_jax.tasks.own_labels import listed
from bert_jax.tasks.own_records import Record, read_records
from bert_jax.tasks.retrieval import CUTOFF
from bert_jax.tasks.swag import ChoiceExample, ChoiceTask


class RerankTask(ChoiceTask):
    """A reranker. An example is a query, its documents, and their scores as the label."""

    name = "rerank"
    kind = Ranking
    labels = ()
    selection = f"ndcg@{CUTOFF}"
    selections = (f"ndcg@{CUTOFF}", f"mrr@{CUTOFF}", "accuracy")

    def __init__(self, *, data: DataOptions, rerank: RerankOptions):
        """Set the task up with its options."""
        self.data, self.rerank = data, rerank
        self._read: dict[str, list[ChoiceExample]] = {}

    def make_kind(self, *, group: int, class_weights: tuple[float, ...] = ()) -> Ranking:
        """Return the kind with the options of the loss."""
        del class_weights
        return Ranking(group=group, options=self.rerank)

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set if the config names one."""
        return ("test",) if self.data.test_file else ()

    def read(self, split: str) -> list[ChoiceExample]:
        """Return the examples of a split."""
        if split == "dev" and self.data.dev_fraction > 0:
            split = "train"
        if split not in self._read:
            self._read[split] = [_example(record, self.rerank) for record in read_records(self.data, split=split)]
        return self._read[split]

    def group_of(self, example: ChoiceExample, index: int) -> Any:
        """Return the query: train and dev share none."""
        del index
        return example.text

    @functools.cached_property
    def _most(self) -> int:
        splits = ("train", *self.eval_splits(), *self.test_splits())
        return max(len(example.endings) for split in splits for example in self.read(split))

    def most_endings(self, examples: Sequence[ChoiceExample]) -> int:
        """Return the largest number of documents of a query of any split."""
        del examples
        return self._most

    def featurize(self, examples: Sequence[ChoiceExample], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return one instance per document."""
        features = super().featurize(examples, tokenizer=tokenizer, training=training)
        targets = np.zeros((len(examples), features.group), np.float32)
        for row, example in zip(targets, examples, strict=True):
            row[: len(example.endings)] = example.label
        features.targets[:] = list(targets)  # type: ignore[index]
        return features

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return nDCG@10, the reciprocal rank of the teacher's best document, and how often it is the first."""
        values = [_of_query(output, example.label) for output, example in zip(outputs, split.examples, strict=True)]
        names = (f"ndcg@{CUTOFF}", f"mrr@{CUTOFF}", "accuracy")
        return dict(zip(names, np.mean(values, axis=0).tolist(), strict=True))

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write a JSON object per query: its index and the scores of its documents."""
        path = directory / f"{self.name}-{split.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        pairs = zip(outputs, split.examples, strict=True)
        write_json_lines(path, [{"index": i, "scores": o[: len(e.endings)].tolist()} for i, (o, e) in enumerate(pairs)])
        return [path]

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the queries with the lowest nDCG@10, if their first document is not the teacher's best."""
        records = []
        for index, (output, example) in enumerate(zip(outputs, split.examples, strict=True)):
            ndcg, _, is_first = _of_query(output, example.label)
            if not is_first:
                best, first = int(np.argmax(example.label)), int(np.argmax(output[: len(example.endings)]))
                texts = {"query": example.text, "best": example.endings[best], "first": example.endings[first]}
                records.append({"index": index, **texts, f"ndcg@{CUTOFF}": ndcg})
        return sorted(records, key=lambda record: record[f"ndcg@{CUTOFF}"])[:count]


def _of_query(output: np.ndarray, scores: Sequence[float]) -> tuple[float, float, float]:
    """Return nDCG@10, reciprocal rank and accuracy of one query."""
    gains = np.array(scores) - min(scores)
    order = np.argsort(-output[: len(gains)], kind="stable")
    discounts = 1 / np.log2(np.arange(2, CUTOFF + 2))[: len(gains)]
    ideal = float((np.sort(gains)[::-1][:CUTOFF] * discounts).sum())
    ndcg = float((gains[order][:CUTOFF] * discounts).sum()) / ideal if ideal else 1.0
    rank = int(np.argmax(gains[order] == gains.max())) + 1
    return ndcg, 1 / rank if rank <= CUTOFF else 0.0, float(rank == 1)


def _example(record: Record, rerank: RerankOptions) -> ChoiceExample:
    query = record.text(rerank.query, option="query", group="rerank")
    documents = [record.as_text(value, name=rerank.documents) for value in _values(record, rerank, "documents")]
    scores = [
        finite_number(value, location=record.location, name=rerank.scores)
        for value in _values(record, rerank, "scores")
    ]
    if len(documents) != len(scores) or len(documents) < 2:
        raise UserError(
            f"{record.location}: {len(documents)} documents and {len(scores)} scores: give at least two documents, and "
            "a score for each"
        )
    return ChoiceExample(query, tuple(documents), tuple(scores))


def _values(record: Record, rerank: RerankOptions, option: str) -> list[Any]:
    """Return the list in a column, or the values of several columns; at the end of a table's row they may be empty."""
    names = listed(getattr(rerank, option))
    values = [record.field(name, option=option, group="rerank") for name in names]
    if len(names) > 1:
        return [value for value in values if value not in (None, "")]
    (value,) = values
    items = record.listed(value, name=names[0]) if record.of_table and isinstance(value, str) else value
    if not isinstance(items, list):
        raise UserError(
            f"{record.location}: column {names[0]!r} is not a list: write a list, or name one column per document, "
            f"separated by commas, in config.rerank.{option}"
        )
    return items
