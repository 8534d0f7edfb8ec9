"""Task metrics equal independent implementations on random predictions, and hand-worked answers at the edges."""

import random
import re
import string

import numpy as np
import pytest

from bert_jax.config.task_options import DataOptions, OwnOptions
from bert_jax.errors import UserError
from bert_jax.tasks import metrics
from bert_jax.tasks.entity_metrics import Entity, entities, score_entities, split_tag, to_iob2
from bert_jax.tasks.interface import Instances, Split
from bert_jax.tasks.registry import open_task
from bert_jax.tasks.squad_metrics import (
    best_threshold,
    evaluate_v1,
    evaluate_v2,
    exact_match,
    normalize_answer,
    token_f1,
    tune_threshold,
)

SETS = 1000
# Both sides add float64 numbers in another order.
CLOSE = 1e-12


def random_labels(seed: int, *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and labels of one to sixty examples; a quarter of the sets has a constant side."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 61))
    predictions, labels = rng.integers(0, classes, size), rng.integers(0, classes, size)
    if rng.random() < 0.125:
        predictions[:] = predictions[0]
    if rng.random() < 0.125:
        labels[:] = labels[0]
    return predictions, labels


def test_multi_label_metrics_equal_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs the test extra: pip install -e '.[test]'")
    for seed in range(100):
        rng = np.random.default_rng(seed)
        size, classes = int(rng.integers(1, 61)), int(rng.integers(2, 7))
        gold = rng.random((size, classes)) < rng.random(classes)  # some labels are never there
        outputs = rng.normal(rng.normal(), 1, (size, classes)).astype(np.float32)
        names = [f"label {number}" for number in range(classes)]
        task = open_task("own", data=DataOptions(), own=OwnOptions(kind="multilabel", labels=",".join(names)))
        features = Instances([np.ones(2, np.int32)] * size, np.full(size, 2, np.int32), list(gold.astype(np.float32)))
        split = Split("dev", [None] * size, features)
        options = {"zero_division": 0}
        assert task.score(split, list(outputs)) == {
            "micro_f1": pytest.approx(sklearn.f1_score(gold, outputs > 0, average="micro", **options), abs=CLOSE),
            "macro_f1": pytest.approx(sklearn.f1_score(gold, outputs > 0, average="macro", **options), abs=CLOSE),
            "subset_accuracy": pytest.approx(sklearn.accuracy_score(gold, outputs > 0), abs=CLOSE),
        }
        each = sklearn.precision_recall_fscore_support(gold, outputs > 0, average=None, **options)
        tables = task.tables(split, list(outputs))
        assert list(tables) == names
        for number, scores in enumerate(tables.values()):
            assert list(scores.values()) == pytest.approx([side[number] for side in each[:3]], abs=CLOSE)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_classification_metrics_equal_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs the test extra: pip install -e '.[test]'")
    for seed in range(SETS):
        predictions, labels = random_labels(seed, classes=2)
        assert metrics.binary_f1(predictions, labels=labels) == pytest.approx(
            sklearn.f1_score(labels, predictions, zero_division=0), abs=CLOSE
        ), seed
        predictions, labels = random_labels(seed, classes=2 + seed % 3)
        assert metrics.accuracy(predictions, labels=labels) == pytest.approx(
            sklearn.accuracy_score(labels, predictions), abs=CLOSE
        ), seed
        assert metrics.matthews_correlation(predictions, labels=labels) == pytest.approx(
            sklearn.matthews_corrcoef(labels, predictions), abs=CLOSE
        ), seed
        assert metrics.macro_f1(predictions, labels=labels) == pytest.approx(
            sklearn.f1_score(labels, predictions, average="macro", zero_division=0), abs=CLOSE
        ), seed


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations_equal_scipy(name: str):
    stats = pytest.importorskip("scipy.stats", reason="needs the test extra: pip install -e '.[test]'")
    reference = stats.pearsonr if name == "pearson" else stats.spearmanr
    for seed in range(SETS):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(3, 61))
        labels = rng.integers(0, 6, size) / 1.0 if seed % 2 else rng.normal(size=size)  # half of them with many ties
        predictions = rng.normal(size=size).round(1) + labels * rng.random()
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            continue
        expected = reference(predictions, labels).statistic
        assert getattr(metrics, name)(predictions, labels=labels) == pytest.approx(expected, abs=1e-10), seed


def test_undefined_classification_metrics_are_zero():
    zeros, ones, mixed = np.zeros(4, int), np.ones(4, int), np.array([0, 1, 0, 1])
    assert metrics.binary_f1(zeros, labels=zeros) == 0  # no positive class anywhere
    assert metrics.binary_f1(zeros, labels=mixed) == 0
    assert metrics.binary_f1(ones, labels=mixed) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert metrics.matthews_correlation(ones, labels=mixed) == 0
    assert metrics.matthews_correlation(mixed, labels=ones) == 0
    assert metrics.matthews_correlation(mixed, labels=1 - mixed) == pytest.approx(-1)
    assert metrics.accuracy(np.zeros(0, int), labels=np.zeros(0, int)) == 0


def test_correlations_of_constants_are_zero_and_ties_share_ranks():
    labels = np.array([0.0, 1.0, 2.0, 3.0])
    assert metrics.pearson(np.full(4, 2.5), labels=labels) == 0
    assert metrics.spearman(labels, labels=np.full(4, 1.0)) == 0
    assert metrics.spearman(np.exp(labels), labels=labels) == pytest.approx(1)
    # Ranks 1.5 1.5 3 4 beside 1 2 3 4: covariance 4.5 over sqrt(4.5 * 5).
    assert metrics.spearman(np.array([7.0, 7.0, 8.0, 9.0]), labels=labels) == pytest.approx(4.5 / np.sqrt(22.5))


def random_tags(rng: np.random.Generator, *, size: int) -> list[str]:
    return [str(rng.choice(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])) for _ in range(size)]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_entity_scores_equal_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics", reason="needs the test extra: pip install -e '.[test]'")
    for seed in range(SETS):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 15, size=int(rng.integers(1, 5)))
        gold = [random_tags(rng, size=int(size)) for size in sizes]
        mine = [[t if rng.random() < 0.7 else random_tags(rng, size=1)[0] for t in tags] for tags in gold]
        scores = score_entities(mine, gold=gold)
        assert scores.overall.f1 == pytest.approx(seqeval.f1_score(gold, mine, zero_division=0), abs=CLOSE), seed
        assert scores.overall.precision == pytest.approx(seqeval.precision_score(gold, mine, zero_division=0))
        assert scores.overall.recall == pytest.approx(seqeval.recall_score(gold, mine, zero_division=0))
        assert scores.word_accuracy == pytest.approx(seqeval.accuracy_score(gold, mine))


def conlleval_counts(mine: list[str], gold: list[str]) -> tuple[int, int, int]:
    """Count right, predicted and gold chunks word by word, as the task's script does: a transcript of its rules."""

    def ends(before: str, now: str) -> bool:
        return before != "O" and (now == "O" or now[0] == "B" or before[2:] != now[2:])

    def starts(before: str, now: str) -> bool:
        return now != "O" and (now[0] == "B" or before == "O" or before[2:] != now[2:])

    right = predicted = there = 0
    inside = False
    last_gold = last_mine = "O"
    for gold_tag, mine_tag in zip([*gold, "O"], [*mine, "O"], strict=True):
        gold_ends, mine_ends = ends(last_gold, gold_tag), ends(last_mine, mine_tag)
        if inside:
            if gold_ends and mine_ends and last_gold[2:] == last_mine[2:]:
                inside = False
                right += 1
            elif gold_ends != mine_ends or gold_tag[2:] != mine_tag[2:]:
                inside = False
        gold_starts, mine_starts = starts(last_gold, gold_tag), starts(last_mine, mine_tag)
        inside |= gold_starts and mine_starts and gold_tag[2:] == mine_tag[2:]
        predicted += mine_starts
        there += gold_starts
        last_gold, last_mine = gold_tag, mine_tag
    return right, predicted, there


def test_entity_scores_equal_conllevals_word_by_word_rules():
    for seed in range(SETS):
        rng = np.random.default_rng(seed)
        gold = random_tags(rng, size=int(rng.integers(1, 20)))
        mine = [t if rng.random() < 0.8 else random_tags(rng, size=1)[0] for t in gold]
        right, predicted, there = conlleval_counts(mine, gold)
        scores = score_entities([mine], gold=[gold]).overall
        assert scores.precision == (right / predicted if predicted else 0), (seed, gold, mine)
        assert scores.recall == (right / there if there else 0), (seed, gold, mine)


def test_iob1_boundaries_are_read_by_hand():
    # In IOB1 an I- begins an entity behind O or another type, and B- parts two neighbors of one type.
    tags = ["I-LOC", "I-LOC", "O", "I-PER", "B-PER", "I-PER", "I-ORG", "O", "B-LOC"]
    found = [Entity(0, 2, "LOC"), Entity(3, 4, "PER"), Entity(4, 6, "PER"), Entity(6, 7, "ORG"), Entity(8, 9, "LOC")]
    assert entities(tags) == found
    assert to_iob2(tags) == ["B-LOC", "I-LOC", "O", "B-PER", "B-PER", "I-PER", "B-ORG", "O", "B-LOC"]
    assert entities(to_iob2(tags)) == found


def test_a_part_of_an_entity_is_no_hit_and_no_entities_give_zero():
    gold = ["B-PER", "I-PER", "O", "B-LOC"]
    scores = score_entities([["B-PER", "O", "O", "B-LOC"]], gold=[gold])
    assert (scores.overall.precision, scores.overall.recall) == (0.5, 0.5)
    assert scores.by_type["PER"].f1 == 0
    nothing = score_entities([["O"] * 4], gold=[["O"] * 4])
    assert (nothing.overall.f1, nothing.word_accuracy) == (0, 1)


@pytest.mark.parametrize("tag", ["B", "I-", "X-PER", "", "PER", "b-PER"])
def test_a_tag_that_is_none_is_one_line(tag: str):
    with pytest.raises(UserError, match="is not O, B-TYPE or I-TYPE"):
        split_tag(tag)


WORDS = ["the", "The", "a", "an", "Denver", "broncos", "50", "U.S.", "—", "$3", "theatre", "", "…", "über", "an-other"]


def random_answer(rng: random.Random) -> str:
    words = [rng.choice(WORDS) + rng.choice(["", "", ",", ".", "'s"]) for _ in range(rng.randint(0, 5))]
    return rng.choice(["", " "]) + rng.choice([" ", "  ", "\n"]).join(words)


def random_questions(seed: int) -> tuple[dict[str, str], dict[str, list[str]], dict[str, float]]:
    rng = random.Random(seed)
    answers, predictions, scores = {}, {}, {}
    for number in range(rng.randint(1, 12)):
        golds = [random_answer(rng) for _ in range(rng.choice([0, 1, 1, 3]))]
        answers[str(number)] = golds
        guess = rng.choice([*golds, random_answer(rng), ""])
        predictions[str(number)] = guess
        scores[str(number)] = rng.choice([rng.uniform(-3, 3), 0.0])
    return predictions, answers, scores


def words_of(text: str) -> list[str]:
    """Normalize as the official scripts say, by splitting where articles stand."""
    kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return "".join(" " if i % 2 else run for i, run in enumerate(re.split(r"(\b(?:a|an|the)\b)", kept))).split()


def f1_of(a: list[str], b: list[str], *, empty: float) -> float:
    """Return the F1 of two lists of words by crossing words out; `empty` where both are empty."""
    left, shared = list(b), 0
    for word in a:
        if word in left:
            left.remove(word)
            shared += 1
    if not a or not b:
        return empty if a == b else 0.0
    return 0.0 if not shared else 2 * (shared / len(a)) * (shared / len(b)) / (shared / len(a) + shared / len(b))


def official_v1(predictions: dict[str, str], answers: dict[str, list[str]]) -> tuple[float, float]:
    exact = [max(words_of(predictions[q]) == words_of(gold) for gold in golds) for q, golds in answers.items()]
    f1 = [
        max(f1_of(words_of(predictions[q]), words_of(gold), empty=0.0) for gold in golds)
        for q, golds in answers.items()
    ]
    return 100 * sum(exact) / len(answers), 100 * sum(f1) / len(answers)


def official_v2(
    predictions: dict[str, str], answers: dict[str, list[str]], scores: dict[str, float], threshold: float
) -> dict[str, float]:
    """Score as v2.0's script does; the best score by answering the first n questions of the list, for every n."""
    raw: dict[str, dict[str, float]] = {"exact": {}, "f1": {}}
    for name, golds in answers.items():
        real = [gold for gold in golds if words_of(gold)] or [""]
        mine = words_of(predictions[name])
        raw["exact"][name] = max(float(mine == words_of(gold)) for gold in real)
        raw["f1"][name] = max(f1_of(mine, words_of(gold), empty=1.0) for gold in real)
    result: dict[str, float] = {}
    groups = {"": list(answers), "HasAns_": [q for q in answers if answers[q]]}
    groups["NoAns_"] = [q for q in answers if not answers[q]]
    for prefix, names in groups.items():
        if not names:
            continue
        for kind in ("exact", "f1"):
            final = [float(not answers[q]) if scores[q] > threshold else raw[kind][q] for q in names]
            result[prefix + kind] = 100 * sum(final) / len(names)
        result[prefix + "total"] = len(names)
    order = sorted(scores, key=lambda q: scores[q])
    for kind in ("exact", "f1"):
        totals = []
        for count in range(len(order) + 1):
            answered = set(order[:count])
            right_to_be_silent = [not answers[q] and (q not in answered or not predictions[q]) for q in order]
            totals.append(sum(raw[kind][q] for q in answered if answers[q]) + sum(right_to_be_silent))
        best = max(totals)
        first = next(i for i, total in enumerate(totals) if total >= best - 1e-9)
        result[f"best_{kind}"] = 100 * best / len(answers)
        result[f"best_{kind}_thresh"] = 0.0 if first == 0 else scores[order[first - 1]]
    return result


def test_squad_2_figures_equal_a_transcript_of_the_official_script():
    for seed in range(SETS):
        predictions, answers, scores = random_questions(seed)
        threshold = random.Random(seed).choice([1.0, 0.0, -1.0, 5.0])
        got = evaluate_v2(predictions, answers=answers, no_answer_scores=scores, threshold=threshold)
        assert got == pytest.approx(official_v2(predictions, answers, scores, threshold), abs=1e-9), seed


def test_squad_1_figures_equal_a_transcript_of_the_official_script():
    for seed in range(SETS):
        predictions, answers, _ = random_questions(seed)
        answers = {name: golds for name, golds in answers.items() if golds}
        if not answers:
            continue
        got = evaluate_v1(predictions, answers=answers)
        assert (got["exact_match"], got["f1"]) == pytest.approx(official_v1(predictions, answers), abs=1e-9), seed


def test_articles_punctuation_and_case_do_not_count():
    assert normalize_answer("  The  U.S., an  Answer! ") == "us answer"
    assert exact_match("Theatre", gold="atre") == 0  # an article is a whole word
    assert exact_match("the end", gold="End.") == 1
    assert exact_match("24–10", gold="2410") == 0  # an en dash is no ASCII punctuation
    # one of two words shared: precision 1/2, recall 1
    assert token_f1("Denver Broncos", gold="the Broncos") == pytest.approx(2 / 3)
    assert token_f1("no no", gold="no") == pytest.approx(2 / 3)  # bags, not sets


def test_empty_answers_and_several_gold_answers():
    assert evaluate_v1({"a": "the", "b": "x"}, answers={"a": ["an"], "b": ["y", "x z"]}) == pytest.approx(
        {"exact_match": 50.0, "f1": 100 / 3}  # v1.1 gives two empty texts an exact match but an F1 of 0
    )
    assert evaluate_v1({}, answers={"a": ["x"]}) == {"exact_match": 0.0, "f1": 0.0}  # unanswered counts as wrong
    figures = evaluate_v2({"a": "", "b": "", "c": "x"}, answers={"a": [], "b": ["x"], "c": []})
    assert figures["exact"] == pytest.approx(100 / 3)
    assert (figures["HasAns_exact"], figures["NoAns_exact"]) == (0, 50)
    assert (figures["HasAns_total"], figures["NoAns_total"]) == (1, 2)
    # gold answers that normalize to nothing are dropped, in favor of those that do not
    assert evaluate_v2({"a": "an"}, answers={"a": ["the", "x"]})["exact"] == 0
    assert evaluate_v2({"a": "an"}, answers={"a": ["the"]})["exact"] == 100


def test_the_best_threshold_is_found_by_hand():
    # Unanswered all: 1 of 3 right. Answering a (score -2): 2. Answering b too, which has no answer: 1.
    best = best_threshold(
        {"a": 1.0, "b": 0.0, "c": 0.0},
        predictions={"a": "x", "b": "y", "c": "z"},
        has_answer={"a": True, "b": False, "c": True},
        no_answer_scores={"a": -2.0, "b": 0.5, "c": 3.0},
    )
    assert best.score == pytest.approx(200 / 3)
    assert best.threshold == -2.0


def test_the_tuned_threshold_does_what_it_says():
    for seed in range(SETS):
        predictions, answers, scores = random_questions(seed)  # half of the scores are equal
        threshold = tune_threshold(predictions, answers=answers, no_answer_scores=scores)
        got = evaluate_v2(predictions, answers=answers, no_answer_scores=scores, threshold=threshold)["f1"]
        tried = [min(scores.values()) - 1, *scores.values()]
        reached = [
            evaluate_v2(predictions, answers=answers, no_answer_scores=scores, threshold=value)["f1"] for value in tried
        ]
        assert got == pytest.approx(max(reached)), seed


def test_where_nothing_should_be_answered_the_threshold_lies_below_all_scores():
    answers, scores = {"a": [], "b": [], "c": ["x"]}, {"a": -5.0, "b": -5.0, "c": -4.0}
    assert tune_threshold({"a": "y", "b": "y", "c": "y"}, answers=answers, no_answer_scores=scores) == -6.0
    # One answer right of three of the same score: all three are answered, or none.
    equal = dict.fromkeys("abc", 1.0)
    assert tune_threshold({"a": "y", "b": "y", "c": "x"}, answers=answers, no_answer_scores=equal) == 0.0


def test_a_question_without_gold_answers_is_wrong_in_v1():
    figures = evaluate_v1({"a": "x", "b": ""}, answers={"a": ["x"], "b": []})
    assert figures == {"exact_match": 50, "f1": 50}
