"""The metrics of SQuAD's official scripts (evaluate-v1.1.py, evaluate-v2.0.py), reimplemented from their behavior.

Their differences are reproduced. Only v2.0
* ignores gold answers that normalize to the empty string,
* counts an empty prediction as correct if and only if the question is unanswerable,
* reports answerable and unanswerable questions separately.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return the text in lower case, without ASCII punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, *, gold: str) -> float:
    """Return 1 if both normalize to the same text, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def token_f1(prediction: str, *, gold: str) -> float:
    """Return the F1 of the bags of words. If either is empty, it is 1 if both are, else 0 (v2.0's rule)."""
    predicted_words, gold_words = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if not predicted_words or not gold_words:
        return float(predicted_words == gold_words)
    shared = (Counter(predicted_words) & Counter(gold_words)).total()
    return 2 * shared / (len(predicted_words) + len(gold_words)) if shared else 0.0


def evaluate_v1(predictions: Mapping[str, str], *, answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return `exact_match` and `f1` as percentages over all questions of `answers`.

    `answers` maps a question's id to its gold texts. A question without a prediction or without gold texts counts as
    wrong. Unlike v2.0, v1.1 gives an F1 of 0 if both texts consist of nothing but articles and punctuation.
    """
    exact = f1 = 0.0
    for question, golds in answers.items():
        if question not in predictions:
            continue
        exact += max((exact_match(predictions[question], gold=gold) for gold in golds), default=0.0)
        f1 += max((_f1_v1(predictions[question], gold=gold) for gold in golds), default=0.0)
    total = max(len(answers), 1)
    return {"exact_match": 100 * exact / total, "f1": 100 * f1 / total}


def _f1_v1(prediction: str, *, gold: str) -> float:
    return token_f1(prediction, gold=gold) if normalize_answer(gold) else 0.0


class Threshold(NamedTuple):
    """The best score and the threshold that reaches it."""

    score: float  # a percentage
    threshold: float  # a question is answered if its no-answer score is at most this


def evaluate_v2(
    predictions: Mapping[str, str],
    *,
    answers: Mapping[str, Sequence[str]],
    no_answer_scores: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """Return v2.0's metrics as percentages: exact, f1, HasAns_*, NoAns_* and, with `no_answer_scores`, best_*.

    `answers` maps a question's id to its gold texts; an unanswerable question has none. A question whose no-answer
    score exceeds `threshold` counts as not answered, whatever its prediction. A question without a prediction is
    ignored, as in the official script.
    """
    golds = {question: _real_answers(texts) for question, texts in answers.items()}
    has_answer = {question: bool(texts) for question, texts in answers.items()}
    questions = [question for question in golds if question in predictions]
    raw_exact = {q: max(exact_match(predictions[q], gold=gold) for gold in golds[q]) for q in questions}
    raw_f1 = {q: max(token_f1(predictions[q], gold=gold) for gold in golds[q]) for q in questions}
    scores = {} if no_answer_scores is None else no_answer_scores

    def at_threshold(raw: Mapping[str, float]) -> dict[str, float]:
        return {q: float(not has_answer[q]) if scores.get(q, 0.0) > threshold else value for q, value in raw.items()}

    exact, f1 = at_threshold(raw_exact), at_threshold(raw_f1)
    result = _summary(exact, f1, questions, prefix="")
    for prefix, answerable in (("HasAns_", True), ("NoAns_", False)):
        subset = [question for question in questions if has_answer[question] == answerable]
        if subset:
            result |= _summary(exact, f1, subset, prefix=prefix)
    if no_answer_scores is not None:
        for name, raw in (("exact", raw_exact), ("f1", raw_f1)):
            best = best_threshold(raw, predictions=predictions, has_answer=has_answer, no_answer_scores=scores)
            result |= {f"best_{name}": best.score, f"best_{name}_thresh": best.threshold}
    return result


def best_threshold(
    raw: Mapping[str, float],
    *,
    predictions: Mapping[str, str],
    has_answer: Mapping[str, bool],
    no_answer_scores: Mapping[str, float],
) -> Threshold:
    """Return the threshold that maximizes the mean score. `raw` gives each question's score if it is answered.

    The official sweep: start with no question answered, answer one after the other in the order of their no-answer
    scores, and return the first point with the best score.
    """
    score = best = float(sum(not has for has in has_answer.values()))
    threshold = 0.0
    for question in sorted(no_answer_scores, key=lambda q: no_answer_scores[q]):
        if question not in raw:
            continue
        score += raw[question] if has_answer[question] else -1.0 if predictions[question] else 0.0
        if score > best:
            best, threshold = score, no_answer_scores[question]
    return Threshold(100 * best / max(len(raw), 1), threshold)


def tune_threshold(
    predictions: Mapping[str, str], *, answers: Mapping[str, Sequence[str]], no_answer_scores: Mapping[str, float]
) -> float:
    """Return the no-answer threshold with the best F1: questions with a score up to it are answered.

    If all no-answer scores differ, the F1 is that of the official sweep. The official sweep may place a threshold
    between questions of equal score; this one answers them together, so applying its threshold gives the F1 that was
    tuned. If it is best to answer no question, the threshold is below all scores.
    """
    order = sorted(no_answer_scores, key=lambda q: no_answer_scores[q])
    gain = best = 0.0
    threshold = no_answer_scores[order[0]] - 1 if order else 0.0
    for question, following in zip(order, [*order[1:], None], strict=True):
        f1 = max(token_f1(predictions[question], gold=gold) for gold in _real_answers(answers[question]))
        gain += f1 - (not answers[question])
        tied = following is not None and no_answer_scores[following] == no_answer_scores[question]
        if gain > best and not tied:
            best, threshold = gain, no_answer_scores[question]
    return threshold


def _real_answers(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if normalize_answer(text)] or [""]


def _summary(
    exact: Mapping[str, float], f1: Mapping[str, float], questions: Iterable[str], *, prefix: str
) -> dict[str, float]:
    questions = list(questions)
    total = max(len(questions), 1)
    return {
        f"{prefix}exact": 100 * sum(exact[q] for q in questions) / total,
        f"{prefix}f1": 100 * sum(f1[q] for q in questions) / total,
        f"{prefix}total": len(questions),
    }
