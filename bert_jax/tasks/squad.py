"""SQuAD 1.1 and 2.0: questions cut into windows over their context (run_squad.py of the original), and scored.

A window is `[CLS] question [SEP] context [SEP]`. Offsets into the context come from the tokenizer, so that an answer's
text is cut from the original and never put together from pieces.
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
from bert_jax.tasks.interface import Instances, Outputs, Split, Task, find_file
from bert_jax.tasks.squad_answers import Prediction, Window, predict_answer
from bert_jax.tasks.squad_files import FILES, Answer, Question, read_questions


def locate(answer: Answer, context: str) -> Answer | None:
    """Return the answer at the place nearest to the one it claims, or None if the context does not hold its text."""
    if not answer.text:
        return None
    if context.startswith(answer.text, max(answer.start, 0)):
        return Answer(answer.text, max(answer.start, 0))
    places: list[int] = []
    place = context.find(answer.text)
    while place >= 0:
        places.append(place)
        place = context.find(answer.text, place + 1)
    return Answer(answer.text, min(places, key=lambda p: abs(p - answer.start))) if places else None


class SpanTask(Task):
    """Be a task that answers questions by a span of their context."""

    kind = Span
    labels = ()
    selection = "f1"

    def __init__(self, name: str, *, data: DataOptions, squad: SquadOptions, with_null: bool):
        """Take the data; `with_null`: questions may have no answer."""
        self.name, self.data, self.squad, self.with_null = name, data, squad, with_null
        tuned = squad.null_score_threshold == "tune"
        self.threshold = 0.0 if tuned else float(squad.null_score_threshold)

    def read(self, split: str) -> Sequence[Question]:
        """Return the questions of a split."""
        given = {"train": self.data.train_file, "dev": self.data.dev_file, "test": self.data.test_file}
        names = FILES.get(self.name, {}).get(split, (f"{split}.json",))
        path = find_file(self.data.directory, given=given[split], names=names)
        skip = split == "train" and self.squad.skip_bad_answers
        return read_questions(path, with_null=self.with_null, skip_unanswered=skip)

    def group_of(self, example: Question, index: int) -> Any:
        """Return the article."""
        del index
        return example.group

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set if one was named: SQuAD's own is not public."""
        return ("test",) if self.data.test_file else ()

    def featurise(self, examples: Sequence[Question], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return the windows of all questions, each with the span of the first answer, or 0, 0."""
        contexts: dict[str, Encoding] = {}
        questions = tokenizer.encode_batch([example.question for example in examples])
        ids: list[np.ndarray] = []
        first_lengths: list[int] = []
        targets: list[tuple[int, int]] = []
        windows: list[Window] = []
        bad: list[tuple[str, str]] = []
        for index, (example, question) in enumerate(zip(examples, questions, strict=True)):
            if example.context not in contexts:
                contexts[example.context] = tokenizer.encode_with_offsets(example.context)
            encoding = contexts[example.context]
            answer = locate(example.answers[0], example.context) if example.answers else None
            if training and example.answers and answer is None:
                bad.append((example.id, example.answers[0].text))
                continue
            first = [tokenizer.cls_id, *question[: self.squad.max_query_length], tokenizer.sep_id]
            span = answer_tokens(answer, encoding.offsets) if answer is not None else None
            for window in self._windows(index, encoding, first_length=len(first)):
                pieces = encoding.ids[window.start : window.start + window.length]
                ids.append(np.array([*first, *pieces, tokenizer.sep_id], np.int32))
                first_lengths.append(len(first))
                windows.append(window)
                targets.append(_target(span, window))
        if bad and not self.squad.skip_bad_answers:
            raise UserError(
                f"{self.name}: question {bad[0][0]}: its answer {bad[0][1][:60]!r} is not in its context "
                f"({len(bad)} such questions): mend them, or leave them out with --config.squad.skip_bad_answers=true"
            )
        labeled = all(example.answers is not None for example in examples)
        return Instances(ids, np.array(first_lengths, np.int32), targets if labeled else None, places=windows)

    def _windows(self, example: int, encoding: Encoding, *, first_length: int) -> list[Window]:
        """Return the windows over a context: each as long as fits, `doc_stride` apart."""
        room = self.data.max_seq_length - first_length - 1
        if room < 1:
            raise UserError(
                f"{self.name}: a question of {first_length - 2} pieces leaves no room for its context: set "
                f"--config.data.max_seq_length={first_length + self.squad.doc_stride} or a smaller "
                "--config.squad.max_query_length"
            )
        total, start, spans = len(encoding.ids), 0, []
        while True:
            length = min(total - start, room)
            spans.append((start, length))
            if start + length >= total:
                break
            start += min(length, self.squad.doc_stride)
        best = max_context(spans, total=total)
        return [
            Window(example, start, length, first_length, best[start : start + length] == number, encoding.offsets)
            for number, (start, length) in enumerate(spans)
        ]

    def predictions(self, split: Split, outputs: Outputs) -> list[Prediction]:
        """Return the answers to all questions."""
        of_question: list[list[int]] = [[] for _ in split.examples]
        for number, window in enumerate(split.features.places):
            of_question[window.example].append(number)
        return [
            predict_answer(
                [split.features.places[n] for n in numbers],
                [outputs[n] for n in numbers],
                context=question.context,
                options=self.squad,
                with_null=self.with_null,
            )
            for question, numbers in zip(split.examples, of_question, strict=True)
        ]

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return exact and f1 as fractions; v2.0 at its threshold, which is tuned on the selecting split if at all."""
        return self._score(split, self.predictions(split, outputs))

    def _score(self, split: Split, predictions: list[Prediction]) -> dict[str, float]:
        golds = {q.id: [answer.text for answer in q.answers or ()] for q in split.examples}
        texts = {q.id: p.text for q, p in zip(split.examples, predictions, strict=True)}
        if not self.with_null:
            figures = squad_metrics.evaluate_v1(texts, answers=golds)
            return {"f1": figures["f1"] / 100, "exact_match": figures["exact_match"] / 100}
        odds = {q.id: p.null_odds for q, p in zip(split.examples, predictions, strict=True)}
        threshold = self.threshold
        if self.squad.null_score_threshold == "tune" and split.name == self.eval_splits()[0]:
            threshold = squad_metrics.tune_threshold(texts, answers=golds, no_answer_scores=odds)
        figures = squad_metrics.evaluate_v2(texts, answers=golds, no_answer_scores=odds, threshold=threshold)
        kept = {name: value / 100 for name, value in figures.items() if not name.endswith(("total", "thresh"))}
        return {"f1": kept.pop("f1"), "exact": kept.pop("exact"), **kept, "null_score_threshold": threshold}

    def calibrate(self, split: Split, outputs: Outputs) -> None:
        """Tune the null threshold on dev, as the paper does (section 4.3)."""
        if self.with_null and self.squad.null_score_threshold == "tune":
            self.threshold = self.score(split, outputs)["null_score_threshold"]

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write predictions.json, nbest_predictions.json and, for v2.0, null_odds.json."""
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
        """Return wrong answers, those with the largest probability first."""
        found = []
        for question, prediction in zip(split.examples, self.predictions(split, outputs), strict=True):
            text = "" if self._is_null(prediction) else prediction.text
            golds = [answer.text for answer in question.answers or ()] or [""]
            if not any(squad_metrics.exact_match(text, gold=gold) for gold in golds):
                found.append(
                    {
                        "id": question.id,
                        "question": question.question,
                        "context": question.context,
                        "label": golds,
                        "prediction": text,
                        "probability": prediction.n_best[0]["probability"],
                    }
                )
        return sorted(found, key=lambda item: -item["probability"])[:count]


def answer_tokens(answer: Answer, offsets: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first and last token of the context that touch the answer, None where no token does."""
    end = answer.start + len(answer.text)
    touching = [i for i, (a, b) in enumerate(offsets) if b > answer.start and a < end and b > a]
    return (touching[0], touching[-1]) if touching else None


def max_context(spans: Sequence[tuple[int, int]], *, total: int) -> np.ndarray:
    """Return int [total]: the window in which each token has the most context.

    That is the largest min(left, right) + 0.01 * length, the first window of equal ones (run_squad.py,
    `_check_is_max_context`).
    """
    scores = np.full((len(spans), total), -1.0)
    for number, (start, length) in enumerate(spans):
        place = np.arange(length)
        scores[number, start : start + length] = np.minimum(place, length - 1 - place) + 0.01 * length
    return scores.argmax(0) if total else np.zeros(0, np.int64)


def _target(span: tuple[int, int] | None, window: Window) -> tuple[int, int]:
    """Return the span within the window's instance; 0, 0 ([CLS]) where the window does not hold all of it."""
    if span is None or span[0] < window.start or span[1] >= window.start + window.length:
        return 0, 0
    shift = window.first_length - window.start
    return span[0] + shift, span[1] + shift


class SquadTask(SpanTask):
    """Be SQuAD 1.1 (`squad_v1`) or 2.0 (`squad_v2`)."""

    def __init__(self, name: str, *, data: DataOptions, squad: SquadOptions):
        """Take the version by its name."""
        super().__init__(name, data=data, squad=squad, with_null=name == "squad_v2")
