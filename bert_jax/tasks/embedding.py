"""Text embeddings: pairs, triplets, scored pairs or single texts; scored by correlation or by retrieval.

The dev set decides which: records with a score are scored by the correlation of their similarities (Spearman), all
others as a corpus: the first text of each pair is a query, and all other texts are the documents to find it among.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.task_options import DataOptions, EmbedOptions
from bert_jax.data.tokenization import Tokenizer
from bert_jax.files import write_json_lines
from bert_jax.kinds.embedding import Embedding
from bert_jax.tasks import texts
from bert_jax.tasks.embedding_records import EmbedExample, read_documents, read_examples
from bert_jax.tasks.glue import named_metrics
from bert_jax.tasks.interface import Instances, Outputs, Split, Task
from bert_jax.tasks.retrieval import CUTOFF, RECALLS, Corpus, Ranking, rank, ranking_metrics, unit_length

_RETRIEVAL = (f"ndcg@{CUTOFF}", f"mrr@{CUTOFF}", *(f"recall@{k}" for k in RECALLS))


class EmbedTask(Task):
    """An embedder of texts."""

    name = "embed"
    kind = Embedding
    labels = ()

    def __init__(self, *, data: DataOptions, embed: EmbedOptions):
        """Set the task up with its options."""
        self.data, self.embed = data, embed
        self._read: dict[str, list[EmbedExample]] = {}

    def make_kind(self, *, group: int, class_weights: tuple[float, ...] = ()) -> Embedding:
        """Return the kind with the options of the loss."""
        del class_weights
        return Embedding(group=group, options=self.embed)

    def model_record(self) -> dict[str, Any]:
        """Return how the model makes an embedding of a text, for prediction and export."""
        embed = self.embed
        prompts = {"query": embed.anchor_prompt, "document": embed.positive_prompt}
        return {
            "embedding": {
                "poolings": [embed.pooling or "mean"],
                "normalize": embed.similarity == "cosine",
                "similarity": embed.similarity,
                "max_seq_length": self.data.max_seq_length,
                "prompts": prompts if any(prompts.values()) else {},
                "dimensions": list(embed.dimensions),
            }
        }

    @functools.cached_property
    def is_scored(self) -> bool:
        """Return whether the dev set is scored by the correlation of its similarities."""
        return any(example.score is not None for example in self._examples(self.eval_splits()[0])[:1])

    @functools.cached_property
    def selection(self) -> str:  # type: ignore[override]
        """Return the metric of the dev set."""
        return self.selections[0]

    @functools.cached_property
    def selections(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the metrics of the dev set."""
        return ("spearman", "pearson") if self.is_scored else _RETRIEVAL

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set if the config names one."""
        return ("test",) if self.data.test_file else ()

    def _examples(self, split: str) -> list[EmbedExample]:
        if split == "dev" and self.data.dev_fraction > 0:
            split = "train"
        if split not in self._read:
            self._read[split] = read_examples(self.data, embed=self.embed, split=split)
        return self._read[split]

    def read(self, split: str) -> list[EmbedExample]:
        """Return the examples of a split."""
        return self._examples(split)

    def group_of(self, example: EmbedExample, index: int) -> Any:
        """Return the first text: train and dev share no query."""
        del index
        return example.texts[0]

    @functools.cached_property
    def group(self) -> int:
        """Return the largest number of texts of an example of any split."""
        splits = ("train", *self.eval_splits(), *self.test_splits())
        return max(len(example.texts) for split in splits for example in self._examples(split))

    def featurize(self, examples: Sequence[EmbedExample], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return an instance per text, with its prompt. Missing texts are empty instances."""
        examples = [*examples, *([] if training or self.is_scored else self._documents)]
        prompts = (self.embed.anchor_prompt, *[self.embed.positive_prompt] * (self.group - 1))
        encoded = iter(
            tokenizer.encode_batch([p + t for e in examples for p, t in zip(prompts, e.texts, strict=False) if t])
        )
        missing = (np.zeros(0, np.int32), 0)
        instances: list[tuple[np.ndarray, int]] = []
        uncut: list[int] = []
        for example in examples:
            ids = [next(encoded) if text else None for text in example.texts]
            ids += [None] * (self.group - len(ids))
            uncut.append(max(len(tokens) + 2 for tokens in ids if tokens is not None))
            instances += [
                missing if tokens is None else texts.instance(tokens, None, tokenizer=tokenizer, data=self.data)
                for tokens in ids
            ]
        return Instances(
            ids=[ids for ids, _ in instances],
            first_lengths=np.array([length for _, length in instances], np.int32),
            targets=self._targets(examples),
            group=self.group,
            uncut=np.array(uncut, np.int64),
        )

    def _targets(self, examples: Sequence[EmbedExample]) -> list[Any]:
        """Return the targets in the form of the train set."""
        if self.embed.form == "scores":
            return [example.score or 0.0 for example in examples]
        numbers: dict[str, int] = {"": 0}
        return [
            np.array(
                [numbers.setdefault(t, len(numbers)) for t in example.texts] + [0] * (self.group - len(example.texts)),
                np.int32,
            )
            for example in examples
        ]

    @functools.cached_property
    def _documents(self) -> list[EmbedExample]:
        return read_documents(self.data, embed=self.embed) if self.embed.corpus_file else []

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return the correlations, or the metrics of retrieval; also for each truncated size (Matryoshka)."""
        metrics: dict[str, float] = {}
        for size in (0, *self.embed.dimensions):
            shorter = [output[:, : size or None] for output in outputs]
            of_size = self._metrics(split, shorter)
            metrics |= {f"{name}/{size}" if size else name: value for name, value in of_size.items()}
        return metrics

    def _metrics(self, split: Split, outputs: Outputs) -> dict[str, float]:
        if self.is_scored:
            labels = np.array([example.score for example in split.examples], np.float64)
            return named_metrics(self._similarities(outputs), labels=labels, names=("spearman", "pearson"))
        corpus, vectors = self._corpus(split, outputs)
        return ranking_metrics(self._ranking(vectors), relevant=corpus.relevant)

    def _similarities(self, outputs: Outputs) -> np.ndarray:
        """Return the similarity of each pair."""
        pairs = np.stack([output[:2] for output in outputs]).astype(np.float64)
        pairs = unit_length(pairs) if self.embed.similarity == "cosine" else pairs
        return (pairs[:, 0] * pairs[:, 1]).sum(-1)

    def _ranking(self, vectors: tuple[np.ndarray, np.ndarray]) -> Ranking:
        queries, documents = vectors
        return rank(queries, documents=documents, is_cosine=self.embed.similarity == "cosine")

    def _corpus(self, split: Split, outputs: Outputs) -> tuple[Corpus, tuple[np.ndarray, np.ndarray]]:
        """Return the queries and documents of a split, each text once, with their embeddings."""
        queries: dict[str, int] = {}
        documents: dict[str, int] = {}
        vectors: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        relevant: list[set[int]] = []
        for example, output in zip((*split.examples, *self._documents), outputs, strict=True):
            for number, text in enumerate(example.texts):
                known = queries if number == 0 else documents
                if text and text not in known:
                    known[text] = len(known)
                    vectors[min(number, 1)].append(output[number])
                    relevant += [set()] if number == 0 else []
            if example.texts[0]:
                relevant[queries[example.texts[0]]].add(documents[example.texts[1]])
        corpus = Corpus(list(queries), list(documents), [frozenset(answers) for answers in relevant])
        return corpus, (np.stack(vectors[0]), np.stack(vectors[1]))

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write a JSON object per pair with its similarity, or per query with the ten nearest documents."""
        path = directory / f"{self.name}-{split.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, list(self._predictions(split, outputs)))
        return [path]

    def _predictions(self, split: Split, outputs: Outputs) -> Iterator[dict[str, Any]]:
        if self.is_scored:
            for index, similarity in enumerate(self._similarities(outputs)):
                yield {"index": index, "similarity": float(similarity)}
            return
        corpus, vectors = self._corpus(split, outputs)
        ranking = self._ranking(vectors)
        for number, query in enumerate(corpus.queries):
            nearest = zip(ranking.documents[number, :CUTOFF], ranking.similarities[number], strict=False)
            yield {
                "query": query,
                "documents": [{"text": corpus.documents[i], "similarity": float(value)} for i, value in nearest],
                "relevant": [corpus.documents[i] for i in sorted(corpus.relevant[number])],
            }

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the queries whose nearest document is not relevant; for scored pairs those whose rank is worst."""
        records = list(self._predictions(split, outputs))
        if not self.is_scored:
            wrong = [record for record in records if record["documents"][0]["text"] not in record["relevant"]]
            return sorted(wrong, key=lambda record: -record["documents"][0]["similarity"])[:count]
        scores = np.array([example.score for example in split.examples], np.float64)
        similarities = np.array([record["similarity"] for record in records])
        error = np.abs(scores.argsort().argsort() - similarities.argsort().argsort())
        return [
            {**records[i], "texts": list(split.examples[i].texts[:2]), "score": split.examples[i].score}
            for i in np.argsort(-error, kind="stable")[:count]
        ]

    def notes(self, train: Split) -> list[str]:
        """Return what the dev set is scored by, and the size of the corpus."""
        del train
        if self.is_scored:
            return ["dev is scored by the correlation of its similarities with its scores"]
        return [f"dev is scored by retrieval; {len(self._documents)} further documents"]
