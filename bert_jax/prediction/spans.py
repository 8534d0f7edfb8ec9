"""Question answering and tagging: the prediction tasks whose answers are spans of the text."""

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
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parts import apply_parts
from bert_jax.prediction import rows
from bert_jax.prediction.rows import Example, RowError
from bert_jax.tasks.entity_metrics import entities
from bert_jax.tasks.squad import Question, SpanTask
from bert_jax.tasks.squad_answers import Window, predict_answer
from bert_jax.types import EncoderInputs

_IOB = re.compile(r"[BI]-.+", re.DOTALL)
QA_LENGTH = 384  # tokens per window, as in run_squad.py of the original


class AnswerQuestion:
    """Question answering: `{"question", "context"}` -> `{"answer", "start", "end", "probability", "null_odds"}`.

    `start` and `end` are character offsets in the context. `null_odds` is the score of "no answer" minus that of the
    best answer. With a `null_threshold` the answer is empty if `null_odds` exceeds it (SQuAD 2.0).
    """

    parts: tuple[str, ...] = ("encoder", "qa_outputs")

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, null_threshold: float | None = None):
        """Set up the windows as in fine-tuning: 384 tokens, starting 128 tokens apart."""
        self.model, self.tokenizer, self.null_threshold = model, tokenizer, null_threshold
        self.parts = architecture_of(model).own_parts(self.parts)
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
            raise RowError(f"the question leaves no space for the context in the model's {self._length} positions")
        example = Question(id="", question=question, context=context, answers=(), group=None)
        features = self._windows.featurize([example], tokenizer=self.tokenizer, training=False)
        examples = [
            Example(ids.tolist(), int(first)) for ids, first in zip(features.ids, features.first_lengths, strict=True)
        ]
        return examples, (context, features.alignments)

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
        prediction = predict_answer(
            windows, logits, context=context, options=self._squad, with_null=self.null_threshold is not None
        )
        empty = self.null_threshold is not None and prediction.null_odds > self.null_threshold
        text = "" if empty else prediction.text
        probabilities = {item["text"]: item["probability"] for item in prediction.n_best}
        start = prediction.start if text else None
        return {
            "answer": text,
            "start": start,
            "end": None if start is None else start + len(text),
            "probability": round(probabilities.get(text, 0.0), 6),
            "null_odds": round(prediction.null_odds, 6),
        }


@dataclasses.dataclass(frozen=True)
class _Words:
    """The words of a row."""

    texts: list[str]
    spans: list[tuple[int, int]]  # character offsets in the text
    tokens: list[tuple[int, int] | None]  # sequence and position of the first token; None without tokens


class TagWords:
    """Tagging: `{"text"}` or `{"words": [...]}` -> `{"words", "labels", "entities"}`.

    The label of a word is that of its first token (paper section 5.3). A text that is too long for the model is tagged
    in several sequences.
    """

    parts: tuple[str, ...] = ("encoder", "classifier")

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, labels: list[str]):
        """Set the task up with the label names in the order of their ids."""
        self.model, self.tokenizer, self.labels = model, tokenizer, labels
        self.parts = architecture_of(model).own_parts(self.parts)
        self._max_tokens = model.max_position_embeddings - 2

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], _Words]:
        """Return the sequences of a text, and the positions of its words in them."""
        texts, spans, encoded = self._listed_words(row) if "words" in row else self._words_of(row)
        parts: list[list[int]] = [[]]
        tokens: list[tuple[int, int] | None] = []
        for ids in encoded:
            ids = ids[: self._max_tokens]
            if len(parts[-1]) + len(ids) > self._max_tokens:
                parts.append([])
            tokens.append((len(parts) - 1, len(parts[-1]) + 1) if ids else None)
            parts[-1] += ids
        examples = [Example(*self.tokenizer.special_ids.frame(part)) for part in parts]
        return examples, _Words(texts, spans, tokens)

    def _listed_words(self, row: Mapping[str, Any]) -> tuple[list[str], list[tuple[int, int]], list[list[int]]]:
        words = row["words"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise RowError("the field 'words' must be a list of texts")
        ends = np.cumsum([len(word) + 1 for word in words])  # as if joined by single spaces
        spans = [(int(end) - 1 - len(word), int(end) - 1) for word, end in zip(words, ends, strict=True)]
        return words, spans, self.tokenizer.encode_words(words)

    def _words_of(self, row: Mapping[str, Any]) -> tuple[list[str], list[tuple[int, int]], list[list[int]]]:
        """Split a text at white space and punctuation, as the tokenizer does."""
        text = rows.text_of(row, "text")
        encoding = self.tokenizer.encode_with_offsets(text)
        spans: list[tuple[int, int]] = []
        tokens: list[list[int]] = []
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if self.tokenizer.is_word_start[index] or not tokens:
                spans.append((start, end))
                tokens.append([index])
            else:
                spans[-1] = (spans[-1][0], end)
                tokens[-1].append(index)
        return [text[start:end] for start, end in spans], spans, tokens

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Any:
        """Return the logits of each token."""
        del positions
        parts = {name: params[name] for name in self.parts}
        return apply_parts(parts, inputs, model=self.model, classify_tokens=True).classifier

    def result(self, prepared: _Words, outputs: list[Any]) -> dict[str, Any]:
        """Return one label per word, and the entities that the labels form."""
        labels, confidences = [], []
        for token in prepared.tokens:
            probabilities = softmax(outputs[token[0]][token[1]].astype(float)) if token else None
            labels.append("O" if probabilities is None else self.labels[int(probabilities.argmax())])
            confidences.append(0.0 if probabilities is None else float(probabilities.max()))
        return {
            "words": prepared.texts,
            "labels": labels,
            "entities": _entities(prepared, labels, confidences),
        }


def _entities(words: _Words, labels: Sequence[str], confidences: Sequence[float]) -> list[dict[str, Any]]:
    """Return the entities. A label that is not B-TYPE or I-TYPE (in models from elsewhere) counts as O."""
    tags = [label if _IOB.fullmatch(label) else "O" for label in labels]
    return [
        {
            "type": entity.type,
            "start": words.spans[entity.start][0],
            "end": words.spans[entity.end - 1][1],
            "words": words.texts[entity.start : entity.end],
            "probability": round(min(1.0, *confidences[entity.start : entity.end]), 6),
        }
        for entity in entities(tags)
    ]
