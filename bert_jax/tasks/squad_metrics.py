"""Score answers as SQuAD's official scripts do (evaluate-v1.1.py, evaluate-v2.0.py), written anew from their behavior.

The two differ in small things, and both are kept: v2.0 drops gold answers that normalize to nothing, gives an empty
prediction full marks exactly where there is no answer, and reports answerable and unanswerable questions apart.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return the text in lower case without ASCII punctuation, without articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, *, gold: str) -> float:
    """Return 1 where both normalize to the same, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def token_f1(prediction: str, *, gold: str) -> float:
    """Return the F1 of the bags of words; where either is empty, 1 if both are and else 0 (v2.0's rule)."""
    mine, theirs = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if not mine or not theirs:
        return float(mine == theirs)
    shared = (Counter(mine) & Counter(theirs)).total()
    return 2 * shared / (len(mine) + len(theirs)) if shared else 0.0


def evaluate_v1(predictions: Mapping[str, str], *, answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return `exact_match` and `f1` in per cent over all questions of `answers`; an unanswered one counts as wrong.

    `answers` gives each question's gold texts by its id; without any, nothing is right. Unlike v2.0, v1.1 gives an F1
    of 0 where nothing is shared, two texts of nothing but articles and punctuation included.
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
    """Hold the best score in per cent and the no-answer score up to which a question is answered."""

    score: float
    threshold: float


def evaluate_v2(
    predictions: Mapping[str, str],
    *,
    answers: Mapping[str, Sequence[str]],
    no_answer_scores: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """Return v2.0's figures in per cent: exact, f1, HasAns_*, NoAns_* and, with `no_answer_scores`, best_*.

    `answers` gives each question's gold texts, none for an unanswerable one. A question whose no-answer score lies
    above `threshold` counts as left unanswered, whatever its prediction. A question without a prediction is left out,
    as in the official script.
    """
    golds = {question: _real_answers(texts) for question, texts in answers.items()}
    has_answer = {question: bool(texts) for question, texts in answers.items()}
    asked = [question for question in golds if question in predictions]
    raw_exact = {q: max(exact_match(predictions[q], gold=gold) for gold in golds[q]) for q in asked}
    raw_f1 = {q: max(token_f1(predictions[q], gold=gold) for gold in golds[q]) for q in asked}
    scores = {} if no_answer_scores is None else no_answer_scores

    def at_threshold(raw: Mapping[str, float]) -> dict[str, float]:
        return {q: float(not has_answer[q]) if scores.get(q, 0.0) > threshold else value for q, value in raw.items()}

    exact, f1 = at_threshold(raw_exact), at_threshold(raw_f1)
    result = _summary(exact, f1, asked, prefix="")
    for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
        some = [question for question in asked if has_answer[question] == wanted]
        if some:
            result |= _summary(exact, f1, some, prefix=prefix)
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
    """Return the threshold that maximizes the mean of `raw` (each question's score if it is answered).

    The official sweep: begin with every question unanswered, answer them in the order of their no-answer score, keep
    the first best point.
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
    """Return the no-answer score up to which to answer, so that the F1 is the best there is.

    Unlike the official sweep, whose figure it reaches where scores are distinct, this one returns a threshold that does
    what it says: questions of equal score are answered together, and where it is best to answer none it lies below all.
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
