"""Answers decoded from the logits of a question's windows (`write_predictions` of run_squad.py, reimplemented)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_jax.config.task_options import SquadOptions
from bert_jax.kinds.base import softmax


@dataclasses.dataclass(frozen=True)
class Window:
    """A window over the context of a question: tokens `start` to `start + length`, after `[CLS] question [SEP]`."""

    example: int  # the index of the question
    start: int
    length: int
    first_length: int  # of [CLS] question [SEP]
    is_max_context: np.ndarray  # bool [length]: no other window gives the token more context
    offsets: Sequence[tuple[int, int]]  # start and end characters of all tokens of the context


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one question."""

    text: str  # the best non-empty answer
    start: int  # its first character in the context, -1 if there is no such answer
    n_best: list[dict[str, Any]]  # in the official format
    null_odds: float  # the null score minus the score of `text`


@dataclasses.dataclass(frozen=True)
class _Span:
    start: int
    end: int
    start_logit: float
    end_logit: float
    window: Window


def predict_answer(
    windows: Sequence[Window], outputs: Sequence[np.ndarray], *, context: str, options: SquadOptions, with_null: bool
) -> Prediction:
    """Return the prediction for one question. `outputs` are the start and end logits [T, 2] of each window.

    In each window, the `n_best_size` best starts are paired with the `n_best_size` best ends. A candidate lies within
    the context, has at most `max_answer_length` tokens, and starts at a token whose context is largest in this window.
    The null score is the smallest start + end logit of [CLS] over all windows (s_null, section 4.3).
    """
    spans = [
        span
        for window, output in zip(windows, outputs, strict=True)
        for span in _spans(window, output, options=options)
    ]
    # The sort is stable: ties keep the order of windows and starts.
    spans.sort(key=lambda span: -(span.start_logit + span.end_logit))
    null = min((float(output[0].sum()), *map(float, output[0])) for output in outputs)
    answers: dict[str, tuple[float, float]] = {}
    starts: dict[str, int] = {}
    for span in spans:
        if len(answers) == options.n_best_size:
            break
        offsets = span.window.offsets
        covered = context[offsets[span.start][0] : offsets[span.end][1]]
        text = covered.strip()
        if text and text not in answers:
            answers[text] = (span.start_logit, span.end_logit)
            starts[text] = offsets[span.start][0] + len(covered) - len(covered.lstrip())
    best = next(iter(answers), "")
    best_score = sum(answers[best]) if answers else 0.0
    if with_null or not answers:
        answers[""] = (null[1], null[2])
    ranked = sorted(answers.items(), key=lambda item: -sum(item[1]))
    probabilities = softmax(np.array([sum(logits) for _, logits in ranked]))
    n_best = [
        {"text": text, "probability": float(probability), "start_logit": logits[0], "end_logit": logits[1]}
        for (text, logits), probability in zip(ranked, probabilities, strict=True)
    ]
    return Prediction(best, starts.get(best, -1), n_best, null[0] - best_score)


def _spans(window: Window, output: np.ndarray, *, options: SquadOptions) -> list[_Span]:
    """Return the candidates of a window, sorted by start logit, then end logit."""
    order = np.argsort(-output, axis=0, kind="stable")[: options.n_best_size]
    starts = order[:, 0] - window.first_length
    ends = order[:, 1] - window.first_length
    in_context = (starts >= 0) & (starts < window.length)
    starts = starts[in_context]
    starts = starts[window.is_max_context[starts]]
    ends = ends[(ends >= 0) & (ends < window.length)]
    sizes = ends[None, :] - starts[:, None] + 1
    shift, first = window.start, window.first_length
    return [
        _Span(
            int(starts[i]) + shift,
            int(ends[j]) + shift,
            float(output[starts[i] + first, 0]),
            float(output[ends[j] + first, 1]),
            window,
        )
        for i, j in zip(*np.nonzero((sizes > 0) & (sizes <= options.max_answer_length)), strict=True)
    ]
