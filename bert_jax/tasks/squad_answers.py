"""Read an answer off the logits of a question's windows (`write_predictions` of run_squad.py, written anew)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_jax.config.task_options import SquadOptions
from bert_jax.kinds.base import softmax


@dataclasses.dataclass(frozen=True)
class Window:
    """Hold the place of a window: tokens `start` to `start + length` of the context of question number `example`.

    `first_length` tokens stand before them; `is_max_context` says for each whether no other window gives it more
    context; `offsets` are the whole context's characters.
    """

    example: int
    start: int
    length: int
    first_length: int
    is_max_context: np.ndarray
    offsets: Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Hold the best answer that is not empty, the n-best list in the official form, and null minus best score.

    `start` is the answer's first character in the context, -1 where there is none.
    """

    text: str
    start: int
    n_best: list[dict[str, Any]]
    null_odds: float


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
    """Return the prediction for one question; `outputs` are the start and end logits [T, 2] of each window.

    Candidates pair the `n_best_size` best starts with the best ends of a window, both within the context, the start
    where it has its most context, at most `max_answer_length` tokens. The null score is the least start + end logit of
    [CLS] over the windows (s_null of section 4.3).
    """
    spans = [
        span
        for window, output in zip(windows, outputs, strict=True)
        for span in _spans(window, output, options=options)
    ]
    spans.sort(key=lambda span: -(span.start_logit + span.end_logit))  # stable: earlier windows and starts first
    null = min((float(output[0].sum()), *map(float, output[0])) for output in outputs)
    answers: dict[str, tuple[float, float]] = {}
    places: dict[str, int] = {}
    for span in spans:
        if len(answers) == options.n_best_size:
            break
        offsets = span.window.offsets
        found = context[offsets[span.start][0] : offsets[span.end][1]]
        text = found.strip()
        if text and text not in answers:
            answers[text] = (span.start_logit, span.end_logit)
            places[text] = offsets[span.start][0] + len(found) - len(found.lstrip())
    best = next(iter(answers), "")
    best_score = sum(answers[best]) if answers else 0.0
    if with_null or not answers:
        answers[""] = (null[1], null[2])
    ranked = sorted(answers.items(), key=lambda item: -sum(item[1]))
    shares = softmax(np.array([sum(logits) for _, logits in ranked]))
    n_best = [
        {"text": text, "probability": float(share), "start_logit": logits[0], "end_logit": logits[1]}
        for (text, logits), share in zip(ranked, shares, strict=True)
    ]
    return Prediction(best, places.get(best, -1), n_best, null[0] - best_score)


def _spans(window: Window, output: np.ndarray, *, options: SquadOptions) -> list[_Span]:
    """Return the candidates of a window in the order of their starts' and ends' logits."""
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
