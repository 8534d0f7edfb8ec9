"""Answer questions by spans of their context, and tag words: the tasks whose answer is a place in the text."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from bert_jax.config import ModelConfig
from bert_jax.config.task_options import DataOptions, SquadOptions
from bert_jax.data.tokenization import Tokenizer
from bert_jax.kinds.base import softmax
from bert_jax.model.parts import apply_parts
from bert_jax.prediction import rows
from bert_jax.prediction.rows import Example, RowError
from bert_jax.tasks.entity_metrics import entities
from bert_jax.tasks.squad import Question, SpanTask
from bert_jax.tasks.squad_answers import Window, predict_answer
from bert_jax.types import EncoderInputs

_IOB = re.compile(r"[BI]-.+", re.DOTALL)
QA_LENGTH = 384  # tokens of a window: run_squad.py of the original


class AnswerQuestion:
    """Answer: `{"question", "context"}` becomes `{"answer", "start", "end", "probability", "null_odds"}`.

    Start and end are characters of the context. `null_odds` is the score of "no answer" minus that of the best one;
    with a `null_threshold` the answer is empty where the odds exceed it (SQuAD 2.0).
    """

    parts = ("encoder", "qa_outputs")

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, null_threshold: float | None = None):
        """Take windows as fine-tuning does: 384 tokens, 128 apart."""
        self.model, self.tokenizer, self.null_threshold = model, tokenizer, null_threshold
        self._squad = SquadOptions(null_score_threshold="0")
        length = min(QA_LENGTH, model.max_position_embeddings)
        self._length = length
        data = DataOptions(max_seq_length=length)
        self._windows = SpanTask("qa", data=data, squad=self._squad, with_null=null_threshold is not None)

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], tuple[str, Sequence[Window]]]:
        """Return the windows over the context."""
        question, context = rows.text_of(row, "question"), rows.text_of(row, "context")
        if not self.tokenizer.encode(context):
            raise RowError("the context is empty")
        if len(self.tokenizer.encode(question)[: self._squad.max_query_length]) + 3 >= self._length:
            raise RowError(f"the question leaves no room for the context in the model's {self._length} positions")
        asked = Question(id="", question=question, context=context, answers=(), group=None)
        features = self._windows.featurise([asked], tokenizer=self.tokenizer, training=False)
        examples = [
            Example(ids.tolist(), int(first)) for ids, first in zip(features.ids, features.first_lengths, strict=True)
        ]
        return examples, (context, features.places)

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Any:
        """Return the logits of start and end."""
        del positions
        return apply_parts({name: params[name] for name in self.parts}, inputs, model=self.model).qa_outputs

    def result(self, prepared: tuple[str, Sequence[Window]], outputs: list[Any]) -> dict[str, Any]:
        """Return the best answer over all windows."""
        context, windows = prepared
        logits = [
            output[: window.first_length + window.length + 1] for output, window in zip(outputs, windows, strict=True)
        ]
        found = predict_answer(
            windows, logits, context=context, options=self._squad, with_null=self.null_threshold is not None
        )
        empty = self.null_threshold is not None and found.null_odds > self.null_threshold
        text = "" if empty else found.text
        shares = {item["text"]: item["probability"] for item in found.n_best}
        start = found.start if text else None
        return {
            "answer": text,
            "start": start,
            "end": None if start is None else start + len(text),
            "probability": round(shares.get(text, 0.0), 6),
            "null_odds": round(found.null_odds, 6),
        }


@dataclasses.dataclass(frozen=True)
class _Words:
    """Hold the words of a row, their places in its text, and for each its window and first token there (or None)."""

    texts: list[str]
    spans: list[tuple[int, int]]
    tokens: list[tuple[int, int] | None]


class TagWords:
    """Tag words and find entities: `{"text"}` or `{"words": [...]}` becomes `{"words", "labels", "entities"}`.

    A word's label is that of its first piece (section 5.3 of the paper). Texts longer than the model are tagged in
    parts.
    """

    parts = ("encoder", "classifier")

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, labels: list[str]):
        """Take the names of the labels in order."""
        self.model, self.tokenizer, self.labels = model, tokenizer, labels
        self._room = model.max_position_embeddings - 2

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], _Words]:
        """Return the parts of the text and where the words stand in them."""
        texts, spans, pieces = self._given_words(row) if "words" in row else self._words_of(row)
        parts: list[list[int]] = [[]]
        tokens: list[tuple[int, int] | None] = []
        for ids in pieces:
            ids = ids[: self._room]
            if len(parts[-1]) + len(ids) > self._room:
                parts.append([])
            tokens.append((len(parts) - 1, len(parts[-1]) + 1) if ids else None)
            parts[-1] += ids
        examples = [Example(*self.tokenizer.special_ids.frame(part)) for part in parts]
        return examples, _Words(texts, spans, tokens)

    def _given_words(self, row: Mapping[str, Any]) -> tuple[list[str], list[tuple[int, int]], list[list[int]]]:
        words = row["words"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise RowError("the field 'words' must be a list of texts")
        ends = np.cumsum([len(word) + 1 for word in words])  # as if joined by single spaces
        spans = [(int(end) - 1 - len(word), int(end) - 1) for word, end in zip(words, ends, strict=True)]
        return words, spans, self.tokenizer.encode_batch(words)

    def _words_of(self, row: Mapping[str, Any]) -> tuple[list[str], list[tuple[int, int]], list[list[int]]]:
        """Cut a text at white space and around punctuation, as the tokenizer does."""
        text = rows.text_of(row, "text")
        encoding = self.tokenizer.encode_with_offsets(text)
        spans: list[tuple[int, int]] = []
        pieces: list[list[int]] = []
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if self.tokenizer.is_word_start[index] or not pieces:
                spans.append((start, end))
                pieces.append([index])
            else:
                spans[-1] = (spans[-1][0], end)
                pieces[-1].append(index)
        return [text[start:end] for start, end in spans], spans, pieces

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Any:
        """Return the logits of every token."""
        del positions
        return apply_parts({name: params[name] for name in self.parts}, inputs, model=self.model).classifier

    def result(self, prepared: _Words, outputs: list[Any]) -> dict[str, Any]:
        """Return a label a word, and the entities that they spell."""
        labels, sure = [], []
        for token in prepared.tokens:
            shares = softmax(outputs[token[0]][token[1]].astype(float)) if token else None
            labels.append("O" if shares is None else self.labels[int(shares.argmax())])
            sure.append(0.0 if shares is None else float(shares.max()))
        return {
            "words": prepared.texts,
            "labels": labels,
            "entities": _entities(prepared, labels, sure),
        }


def _entities(words: _Words, labels: Sequence[str], sure: Sequence[float]) -> list[dict[str, Any]]:
    """Return the entities; a label that is not B-TYPE or I-TYPE, as models of others may have, is outside of all."""
    tags = [label if _IOB.fullmatch(label) else "O" for label in labels]
    return [
        {
            "type": entity.type,
            "start": words.spans[entity.start][0],
            "end": words.spans[entity.end - 1][1],
            "words": words.texts[entity.start : entity.end],
            "probability": round(min(1.0, *sure[entity.start : entity.end]), 6),
        }
        for entity in entities(tags)
    ]
