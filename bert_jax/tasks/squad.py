"""SQuAD 1.1 and 2.0: windows over long contexts (run_squad.py of the original), predictions and scores.

A window is `[CLS] question [SEP] context [SEP]`. The tokenizer gives each token's character offsets, so the text of an
answer is a slice of the original context.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.task_options import DataOptions, SquadOptions
from bert_jax.data.tokenization import Encoding, Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.kinds.span import Span
from bert_jax.tasks import squad_metrics
from bert_jax.tasks.interface import Instances, Outputs, Split, Task, find_file, split_file
from bert_jax.tasks.squad_answers import Prediction, Window, predict_answer
from bert_jax.tasks.squad_files import FILES, Answer, Question, read_questions


def locate(answer: Answer, context: str) -> Answer | None:
    """Return the answer at the occurrence of its text nearest to `start`, or None if the context has none."""
    if not answer.text:
        return None
    if context.startswith(answer.text, max(answer.start, 0)):
        return Answer(answer.text, max(answer.start, 0))
    offsets: list[int] = []
    offset = context.find(answer.text)
    while offset >= 0:
        offsets.append(offset)
        offset = context.find(answer.text, offset + 1)
    return Answer(answer.text, min(offsets, key=lambda o: abs(o - answer.start))) if offsets else None


class SpanTask(Task):
    """A task that answers questions with a span of their context."""

    kind = Span
    labels = ()
    selection = "f1"

    def __init__(self, name: str, *, data: DataOptions, squad: SquadOptions, with_null: bool):
        """Set the task up with its options. With `with_null`, questions may be unanswerable."""
        self.name, self.data, self.squad, self.with_null = name, data, squad, with_null
        self.selections = ("f1", "exact" if with_null else "exact_match")
        tuned = squad.null_score_threshold == "tune"
        self.threshold = 0.0 if tuned else float(squad.null_score_threshold)

    def read(self, split: str) -> Sequence[Question]:
        """Return the questions of a split."""
        names = FILES.get(self.name, {}).get(split, (f"{split}.json",))
        path = find_file(self.data.directory, file=split_file(self.data, split), names=names, split=split)
        skip = split == "train" and self.squad.skip_bad_answers
        return read_questions(path, with_null=self.with_null, skip_unanswered=skip)

    def group_of(self, example: Question, index: int) -> Any:
        """Return the index of the article."""
        del index
        return example.group

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set if the config names one. SQuAD's own is not public."""
        return ("test",) if self.data.test_file else ()

    def featurize(self, examples: Sequence[Question], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return the windows of all questions, each with the span of the first answer, or (0, 0) without it."""
        contexts: dict[str, Encoding] = {}
        questions = tokenizer.encode_batch([example.question for example in examples])
        ids: list[np.ndarray] = []
        first_lengths: list[int] = []
        targets: list[tuple[int, int]] = []
        windows: list[Window] = []
        unlocated: list[tuple[str, str]] = []
        for index, (example, question) in enumerate(zip(examples, questions, strict=True)):
            if example.context not in contexts:
                contexts[example.context] = tokenizer.encode_with_offsets(example.context)
            encoding = contexts[example.context]
            answer = locate(example.answers[0], example.context) if example.answers else None
            if training and example.answers and answer is None:
                unlocated.append((example.id, example.answers[0].text))
                continue
            first = [tokenizer.cls_id, *question[: self.squad.max_query_length], tokenizer.sep_id]
            span = answer_tokens(answer, encoding.offsets) if answer is not None else None
            for window in self._windows(index, encoding, first_length=len(first)):
                tokens = encoding.ids[window.start : window.start + window.length]
                ids.append(np.array([*first, *tokens, tokenizer.sep_id], np.int32))
                first_lengths.append(len(first))
                windows.append(window)
                targets.append(_target(span, window))
        if unlocated and not self.squad.skip_bad_answers:
            raise UserError(
                f"{self.name}: question {unlocated[0][0]}: its answer {unlocated[0][1][:60]!r} is not in its context "
                f"({len(unlocated)} such questions): fix them, or skip them with --config.squad.skip_bad_answers=true"
            )
        labeled = all(example.answers is not None for example in examples)
        return Instances(ids, np.array(first_lengths, np.int32), targets if labeled else None, alignments=windows)

    def _windows(self, example: int, encoding: Encoding, *, first_length: int) -> list[Window]:
        """Return the windows over a context: each as long as fits, starting `doc_stride` tokens apart."""
        max_length = self.data.max_seq_length - first_length - 1
        if max_length < 1:
            raise UserError(
                f"{self.name}: a question of {first_length - 2} tokens leaves no space for its context: set "
                f"--config.data.max_seq_length={first_length + self.squad.doc_stride}, or a smaller "
                "--config.squad.max_query_length"
            )
        total, start, spans = len(encoding.ids), 0, []
        while True:
            length = min(total - start, max_length)
            spans.append((start, length))
            if start + length >= total:
                break
            start += min(length, self.squad.doc_stride)
        best = max_context(spans, total=total)
        return [
            Window(example, start, length, first_length, best[start : start + length] == number, encoding.offsets)
            for number, (start, length) in enumerate(spans)
        ]

    def notes(self, train: Split) -> list[str]:
        """Return how many answers of train are not where the file says, are left out, or contradict it."""
        answered = [question for question in train.examples if question.answers]
        located = [(question, locate(question.answers[0], question.context)) for question in answered]
        moved = [q.id for q, place in located if place and q.has_starts and place.start != q.answers[0].start]
        lost = [question.id for question, place in located if place is None]
        marked = [question.id for question in answered if question.is_marked_impossible]
        counts = (
            (moved, "are not at their answer_start: the occurrence nearest to it is taken"),
            (lost, "are not in their context: these questions are left out"),
            (marked, "are of questions with is_impossible=true: they count, as in the official script"),
        )
        return [
            f"{len(ids)} of {len(answered)} answers of train {what} (the first: question {ids[0]})"
            for ids, what in counts
            if ids
        ]

    def predictions(self, split: Split, outputs: Outputs) -> list[Prediction]:
        """Return one prediction per question."""
        windows = split.features.alignments
        of_question: list[list[int]] = [[] for _ in split.examples]
        for number, window in enumerate(windows):
            of_question[window.example].append(number)
        return [
            predict_answer(
                [windows[n] for n in numbers],
                [outputs[n] for n in numbers],
                context=question.context,
                options=self.squad,
                with_null=self.with_null,
            )
            for question, numbers in zip(split.examples, of_question, strict=True)
        ]

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return exact match and F1 as fractions; for v2.0 at the threshold, which only the selection split tunes."""
        return self._score(split, self.predictions(split, outputs))

    def _score(self, split: Split, predictions: list[Prediction]) -> dict[str, float]:
        golds = {q.id: [answer.text for answer in q.answers or ()] for q in split.examples}
        texts = {q.id: p.text for q, p in zip(split.examples, predictions, strict=True)}
        if not self.with_null:
            metrics = squad_metrics.evaluate_v1(texts, answers=golds)
            return {"f1": metrics["f1"] / 100, "exact_match": metrics["exact_match"] / 100}
        odds = {q.id: p.null_odds for q, p in zip(split.examples, predictions, strict=True)}
        threshold = self.threshold
        if self.squad.null_score_threshold == "tune" and split.name == self.eval_splits()[0]:
            threshold = squad_metrics.tune_threshold(texts, answers=golds, no_answer_scores=odds)
        metrics = squad_metrics.evaluate_v2(texts, answers=golds, no_answer_scores=odds, threshold=threshold)
        fractions = {name: value / 100 for name, value in metrics.items() if not name.endswith(("total", "thresh"))}
        # The selection metric first, then exact match: the order of report and results.
        first = {name: fractions.pop(name) for name in ("f1", "exact")}
        return {**first, **fractions, "null_score_threshold": threshold}

    def calibrate(self, split: Split, outputs: Outputs) -> None:
        """Tune the null threshold on dev (paper section 4.3)."""
        if self.with_null and self.squad.null_score_threshold == "tune":
            self.threshold = self.score(split, outputs)["null_score_threshold"]

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write predictions.json and nbest_predictions.json, and null_odds.json for v2.0."""
        directory.mkdir(parents=True, exist_ok=True)
        answers = dict(zip((q.id for q in split.examples), self.predictions(split, outputs), strict=True))
        files: dict[str, Any] = {
            "predictions.json": {i: "" if self._is_null(p) else p.text for i, p in answers.items()},
            "nbest_predictions.json": {i: p.n_best for i, p in answers.items()},
        }
        if self.with_null:
            files["null_odds.json"] = {i: p.null_odds for i, p in answers.items()}
        for name, content in files.items():
            write_json(directory / name, content)
        return [directory / name for name in files]

    def _is_null(self, prediction: Prediction) -> bool:
        return self.with_null and prediction.null_odds > self.threshold

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the wrong answers with the largest probability."""
        records = []
        for question, prediction in zip(split.examples, self.predictions(split, outputs), strict=True):
            text = "" if self._is_null(prediction) else prediction.text
            golds = [answer.text for answer in question.answers or ()] or [""]
            if not any(squad_metrics.exact_match(text, gold=gold) for gold in golds):
                records.append(
                    {
                        "id": question.id,
                        "question": question.question,
                        "context": question.context,
                        "label": golds,
                        "prediction": text,
                        "probability": prediction.n_best[0]["probability"],
                    }
                )
        return sorted(records, key=lambda item: -item["probability"])[:count]


def answer_tokens(answer: Answer, offsets: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first and the last token of the context that overlap the answer, or None if none does."""
    end = answer.start + len(answer.text)
    tokens = [i for i, (a, b) in enumerate(offsets) if b > answer.start and a < end and b > a]
    return (tokens[0], tokens[-1]) if tokens else None


def max_context(spans: Sequence[tuple[int, int]], *, total: int) -> np.ndarray:
    """Return the index of the window in which each token has the most context, int [total].

    Context is min(left, right) + 0.01 * length. The first window wins a tie (run_squad.py, `_check_is_max_context`).
    """
    best, window = np.full(total, -1.0), np.zeros(total, np.int64)  # not windows x tokens: a document may be a book
    for number, (start, length) in enumerate(spans):
        left = np.arange(length)
        context = np.minimum(left, length - 1 - left) + 0.01 * length
        inside = slice(start, start + length)
        is_better = context > best[inside]
        window[inside][is_better] = number
        best[inside][is_better] = context[is_better]
    return window


def _target(span: tuple[int, int] | None, window: Window) -> tuple[int, int]:
    """Return the span's positions in the window's instance, or 0, 0 ([CLS]) unless the window contains all of it."""
    if span is None or span[0] < window.start or span[1] >= window.start + window.length:
        return 0, 0
    shift = window.first_length - window.start
    return span[0] + shift, span[1] + shift


class SquadTask(SpanTask):
    """SQuAD 1.1 (`squad_v1`) or 2.0 (`squad_v2`)."""

    def __init__(self, name: str, *, data: DataOptions, squad: SquadOptions):
        """Set the version up by its name."""
        super().__init__(name, data=data, squad=squad, with_null=name == "squad_v2")
