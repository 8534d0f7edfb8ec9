"""Questions become windows, gold spans come back as their text, predictions follow run_squad.py's rules."""

import json
from pathlib import Path

import numpy as np
import pytest

from bert_jax.config.task_options import DataOptions, SquadOptions
from bert_jax.data.tokenization import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.tasks.interface import Split
from bert_jax.tasks.scoring import score_predictions
from bert_jax.tasks.squad import SquadTask, answer_tokens, locate, max_context
from bert_jax.tasks.squad_answers import Window, predict_answer
from bert_jax.tasks.squad_files import Answer, Question, read_questions
from bert_jax.tasks.squad_metrics import normalize_answer
from tests.finetune_data import tokenizer

OPTIONS = SquadOptions()


def squad(version: str = "v1", *, folder: str = "", max_seq_length: int = 384, **options: object) -> SquadTask:
    data = DataOptions(directory=folder, max_seq_length=max_seq_length)
    return SquadTask(f"squad_{version}", data=data, squad=SquadOptions(**options))  # type: ignore[arg-type]


def gold_outputs(split: Split) -> list[np.ndarray]:
    """Return logits that point at each window's target."""
    outputs = []
    for ids, (start, end) in zip(split.features.ids, split.features.targets or [], strict=True):
        output = np.zeros((len(ids), 2), np.float32)
        output[start, 0] = output[end, 1] = 5
        outputs.append(output)
    return outputs


def test_gold_spans_survive_the_round_trip(shared_data: Path):
    """Every answer of dev: text -> pieces -> text is the same up to the official normalization, at least 99.8 %."""
    words = load_tokenizer(shared_data / "vocab" / "bert-base-uncased-vocab.txt", do_lower_case=True)
    questions = read_questions(shared_data / "squad" / "dev-v1.1.json")
    encoded = {}
    right = total = 0
    for question in questions:
        context = question.context
        if context not in encoded:
            encoded[context] = words.encode_with_offsets(context)
        offsets = encoded[context].offsets
        for answer in question.answers or ():
            found = locate(answer, context)
            assert found is not None
            span = answer_tokens(found, offsets)
            assert span is not None
            text = context[offsets[span[0]][0] : offsets[span[1]][1]]
            right += normalize_answer(text) == normalize_answer(answer.text)
            total += 1
    assert total > 30_000
    assert right / total >= 0.998


@pytest.mark.slow
def test_predictions_from_gold_logits_are_the_gold_answers(shared_data: Path):
    words = load_tokenizer(shared_data / "vocab" / "bert-base-uncased-vocab.txt", do_lower_case=True)
    for version, key in (("v1", "exact_match"), ("v2", "exact")):
        task = squad(version, folder=str(shared_data / "squad"))
        split = task.load("dev", tokenizer=words)
        assert max(split.features.lengths) == 384  # some contexts need windows
        figures = task.score(split, gold_outputs(split))
        assert figures[key] >= 0.997  # what is lost is longer than max_answer_length, or within a piece
        assert figures["f1"] >= 0.997


def test_windows_are_the_originals(shared_data: Path):
    words = load_tokenizer(shared_data / "vocab" / "bert-base-uncased-vocab.txt", do_lower_case=True)
    question = read_questions(shared_data / "squad" / "dev-v1.1.json")[3000]
    task = squad(max_seq_length=64, max_query_length=10, doc_stride=16)
    features = task.featurize([question], tokenizer=words, training=False)
    asked, context = words.encode(question.question)[:10], words.encode(question.context)
    # run_squad.py: spans of max_tokens_for_doc tokens, doc_stride apart, until the end is reached.
    room, start, expected = 64 - len(asked) - 3, 0, []
    while True:
        length = min(len(context) - start, room)
        expected.append((start, length))
        if start + length == len(context):
            break
        start += min(length, 16)
    assert [(w.start, w.length) for w in features.alignments] == expected
    for ids, first, (start, length) in zip(features.ids, features.first_lengths, expected, strict=True):
        assert ids.tolist() == [words.cls_id, *asked, words.sep_id, *context[start : start + length], words.sep_id]
        assert first == len(asked) + 2
    # The original's rule of max context, token by token.
    for token in range(len(context)):
        scores = [min(token - s, s + n - 1 - token) + 0.01 * n if s <= token < s + n else -1 for s, n in expected]
        flags = [
            bool(w.is_max_context[token - w.start]) if w.start <= token < w.start + w.length else False
            for w in features.alignments
        ]
        assert flags == [index == int(np.argmax(scores)) for index in range(len(expected))]


def test_a_window_without_the_whole_answer_points_at_cls():
    words = tokenizer()
    context = "the film was very good and it was fine"
    question = Question("1", "was it", context, (Answer("very good", context.index("very")),), 0)
    task = squad(max_seq_length=11, max_query_length=4, doc_stride=2)
    features = task.featurize([question], tokenizer=words, training=True)
    for ids, window, (start, end) in zip(features.ids, features.alignments, features.targets or [], strict=True):
        holds = window.start <= 3 and window.start + window.length > 4
        if holds:
            assert words.convert_ids_to_pieces(ids[start : end + 1].tolist()) == ["very", "good"]
        else:
            assert (start, end) == (0, 0)
    assert any(target != (0, 0) for target in features.targets or [])


def one_window(length: int, *, context: str) -> Window:
    starts = [i for i in range(len(context)) if i == 0 or context[i - 1] == " "]
    offsets = [(start, start + len(context[start:].split(" ")[0])) for start in starts]
    return Window(0, 0, length, 3, np.ones(length, bool), offsets)


def test_candidates_obey_order_length_and_context():
    context = "w0 w1 w2 w3 w4 w5"
    window = one_window(6, context=context)
    output = np.full((10, 2), -5.0, np.float32)  # [CLS] q [SEP] w0 ... w5 [SEP]
    output[3 + 4, 0], output[3 + 1, 1] = 9, 9  # end before start: no candidate
    output[1, 0] = 20  # a start in the question
    output[3 + 0, 0], output[3 + 5, 1] = 8, 8
    options = SquadOptions(max_answer_length=3)
    best = predict_answer([window], [output], context=context, options=options, with_null=False)
    # w4 .. w5 (9 + 8) fits in three tokens, w0 .. w5 does not; w0 .. w1 is 8 + 9 too and comes later: w4's start is
    # better
    assert best.text in ("w4 w5", "w0 w1")
    assert best.n_best[0]["start_logit"] + best.n_best[0]["end_logit"] == 17
    texts = [item["text"] for item in best.n_best]
    assert "w0 w1 w2 w3 w4 w5" not in texts
    assert len(texts) == len(set(texts)) <= 20
    assert sum(item["probability"] for item in best.n_best) == pytest.approx(1)


def test_the_null_score_is_the_least_of_all_windows_and_is_compared_with_the_best_span():
    context = "w0 w1 w2"
    windows = [one_window(3, context=context)] * 2
    outputs = []
    for null in (4.0, 1.0):
        output = np.full((7, 2), -9.0, np.float32)
        output[0] = null / 2
        output[3, 0], output[4, 1] = 1.0, 1.5
        outputs.append(output)
    prediction = predict_answer(windows, outputs, context=context, options=OPTIONS, with_null=True)
    assert prediction.text == "w0 w1"
    assert prediction.null_odds == pytest.approx(1.0 - 2.5)
    assert "" in [item["text"] for item in prediction.n_best]


def test_the_threshold_is_tuned_on_dev_and_used_for_the_files(tmp_path: Path):
    words = tokenizer()
    context = "the film was very good"
    asked = [Question(str(i), "was it", context, (Answer("very good", 13),) if i < 3 else (), 0) for i in range(6)]
    task = squad("v2", max_seq_length=24, max_query_length=4)
    split = Split("dev", asked, task.featurize(asked, tokenizer=words, training=False))
    outputs = []
    for index in range(6):
        output = np.full((len(split.features.ids[index]), 2), -9.0, np.float32)
        first = int(split.features.first_lengths[index])
        output[first + 3, 0] = output[first + 4, 1] = 3.0
        output[0] = 3.5 + (0.5 if index >= 3 else 0.0)  # null odds 1 where there is an answer, 2 where there is none
        outputs.append(output)
    assert task.score(split, outputs)["f1"] == 1.0
    assert squad("v2", max_seq_length=24, null_score_threshold="0").score(split, outputs)["exact"] == 0.5
    task.calibrate(split, outputs)
    assert 1.0 <= task.threshold < 2.0
    # Another split is scored at dev's threshold and not at its own best.
    half = Split("test", asked[3:], task.featurize(asked[3:], tokenizer=words, training=False))
    figures = task.score(half, outputs[:3])
    assert (figures["f1"], figures["null_score_threshold"]) == (0.0, task.threshold)
    files = task.write_predictions(split, outputs, directory=tmp_path)
    assert {file.name for file in files} == {"predictions.json", "nbest_predictions.json", "null_odds.json"}
    assert json.loads((tmp_path / "predictions.json").read_text()) == {
        str(i): "very good" if i < 3 else "" for i in range(6)
    }
    qas = [
        {"id": q.id, "question": q.question, "is_impossible": not q.answers,
         "answers": [{"text": a.text, "answer_start": a.start} for a in q.answers or ()]}
        for q in asked
    ]  # fmt: skip
    data = tmp_path / "dev.json"
    data.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]}))
    figures = score_predictions(task="squad_v2", predictions=str(tmp_path / "predictions.json"), data=str(data))
    assert (figures["exact"], figures["HasAns_f1"], figures["NoAns_f1"], figures["total"]) == (100, 100, 100, 6)
    assert not task.mistakes(split, outputs, count=5)


def test_ensembles_average_logits_before_the_span_is_chosen():
    from bert_jax.finetuning.prediction import average_outputs

    context = "w0 w1 w2"
    window = one_window(3, context=context)
    first, second = (np.full((7, 2), -9.0, np.float32) for _ in range(2))
    first[3], second[5] = 3.0, 3.0
    first[4] = second[4] = 2.0  # neither run's first choice, but both runs' second
    mean = average_outputs([[first], [second]])
    assert predict_answer([window], mean, context=context, options=OPTIONS, with_null=False).text == "w1"


def test_misplaced_answers_are_found_again_and_missing_ones_refused(tmp_path: Path):
    context = "the film was very good and it was good"
    assert locate(Answer("good", 20), context) == Answer("good", 18)
    assert locate(Answer("good", 33), context) == Answer("good", 34)
    assert locate(Answer("bad", 3), context) is None
    assert locate(Answer("good", -4), context) == Answer("good", 18)
    bad = Question("q7", "was it", context, (Answer("bad", 3),), 0)
    with pytest.raises(UserError, match=r"question q7: its answer 'bad' is not in its context .*skip_bad_answers=true"):
        squad().featurize([bad], tokenizer=tokenizer(), training=True)
    task = squad(skip_bad_answers=True)
    assert task.featurize([bad], tokenizer=tokenizer(), training=True).ids == []
    assert len(task.featurize([bad], tokenizer=tokenizer(), training=False).ids) == 1


def test_answers_that_are_moved_left_out_or_contradicted_are_counted():
    context = "the film was very good and it was good"
    answers = [Answer("good", 18), Answer("good", 30), Answer("good", 0), Answer("bad", 3)]
    asked = [Question(f"q{n}", "was it", context, (a,), 0, is_marked_impossible=n == 1) for n, a in enumerate(answers)]
    asked += [Question("q4", "was it", context, (), 0), Question("q5", "was it", context, (answers[2],), 0, False)]
    task = squad("v2", skip_bad_answers=True)
    assert task.notes(Split("train", asked, task.featurize(asked, tokenizer=tokenizer(), training=True))) == [
        "2 of 5 answers of train are not at their answer_start: the occurrence nearest to it is taken (the first: "
        "question q1)",
        "1 of 5 answers of train are not in their context: these questions are left out (the first: question q3)",
        "1 of 5 answers of train are of questions with is_impossible=true: they count, as in the official script (the "
        "first: question q1)",
    ]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not JSON"),
        ("[]", "SQuAD's format is"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": "1"}]}]}]}', "SQuAD's format is"),
        ('{"data": []}', "the dev set of squad_v1 is empty"),
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path: Path, content: str, match: str):
    (tmp_path / "dev-v1.1.json").write_text(content)
    with pytest.raises(UserError, match=match):
        squad(folder=str(tmp_path)).load("dev", tokenizer=tokenizer())


def test_the_place_of_what_is_malformed_is_named(tmp_path: Path):
    """Each change of a good file is one line that names the place and the form."""
    good = {"id": "1", "question": "was it", "answers": [{"text": "very good", "answer_start": 7}]}
    changes: list[tuple[object, object, str]] = [
        ("it was very good", "text", r"data\[0\].paragraphs\[0\].qas\[0\]: 'question' is missing or not a text"),
        (None, good, r"data\[0\].paragraphs\[0\]: 'context' is missing or not a text"),
        ("c", good | {"question": None}, r"qas\[0\]: 'question' is missing or not a text"),
        ("c", good | {"id": None}, r"qas\[0\]: 'id' is missing or not a text"),
        ("c", good | {"answers": "very"}, r"qas\[0\]: 'answers' is missing or not a list"),
        ("c", good | {"answers": ["very"]}, r"qas\[0\].answers\[0\]: 'text' is missing or not a text"),
        ("c", good | {"answers": [{"text": 5, "answer_start": 7}]}, r"answers\[0\]: 'text' is missing or not a text"),
        (
            "c",
            good | {"answers": [{"text": "a", "answer_start": "7"}]},
            r"'answer_start' is missing or not a whole number",
        ),
    ]
    path = tmp_path / "dev-v1.1.json"
    for context, item, match in changes:
        path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [item]}]}]}))
        with pytest.raises(UserError, match=match) as error:
            read_questions(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)


def write_questions(path: Path, *answers: list[str] | None) -> Path:
    """Write a question for each list of answers, all on the same context; None: without the key."""
    context = "the film was very good"
    qas = [
        {"id": f"q{i}", "question": "was it"}
        | ({} if texts is None else {"answers": [{"text": t, "answer_start": context.index(t)} for t in texts]})
        for i, texts in enumerate(answers)
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]}))
    return path


@pytest.mark.parametrize(("version", "answers"), [("v1", None), ("v1", []), ("v2", None)])
def test_a_file_without_answers_is_predicted_and_not_scored(tmp_path: Path, version: str, answers: list[str] | None):
    write_questions(tmp_path / "test.json", answers, answers)
    task = SquadTask(f"squad_{version}", data=DataOptions(str(tmp_path), test_file="test.json"), squad=OPTIONS)
    split = task.load("test", tokenizer=tokenizer())
    assert split.features.targets is None
    outputs = [np.zeros((len(ids), 2), np.float32) for ids in split.features.ids]
    task.write_predictions(split, outputs, directory=tmp_path / "out")
    path = tmp_path / "out" / "predictions.json"
    assert set(json.loads(path.read_text())) == {"q0", "q1"}
    with pytest.raises(UserError, match=r"test.json: no answers in this file: give a labeled one"):
        score_predictions(task=f"squad_{version}", predictions=str(path), data=str(tmp_path / "test.json"))


def test_a_question_without_answers_among_others_is_one_line(tmp_path: Path):
    """SQuAD 1.1's official script cannot score it; in 2.0 an empty list says that there is no answer."""
    for name in ("train", "dev"):
        write_questions(tmp_path / f"{name}-v1.1.json", ["very good"], [], ["good"])
    match = r"v1.1.json: question q1 has no answers \(1 of 3 such questions\): .*squad.skip_bad_answers=true"
    for split in ("train", "dev"):
        with pytest.raises(UserError, match=f"{split}-{match}"):
            squad(folder=str(tmp_path)).load(split, tokenizer=tokenizer())
    task = squad(folder=str(tmp_path), skip_bad_answers=True)
    assert [question.id for question in task.read("train")] == ["q0", "q2"]
    (tmp_path / "predictions.json").write_text('{"q0": "very good", "q1": "", "q2": "good"}')
    asked = {"predictions": str(tmp_path / "predictions.json"), "data": str(tmp_path / "dev-v1.1.json")}
    with pytest.raises(UserError, match=f"dev-{match}"):
        score_predictions(task="squad_v1", **asked)
    assert score_predictions(task="squad_v2", **asked)["NoAns_exact"] == 100
    write_questions(tmp_path / "dev-v2.0.json", ["very good"], [], None)
    with pytest.raises(
        UserError, match=r"dev-v2.0.json: question q2 has no answers .*an unanswerable question has an empty"
    ):
        squad("v2", folder=str(tmp_path)).load("dev", tokenizer=tokenizer())
    write_questions(tmp_path / "dev-v2.0.json", ["very good"], [])
    (tmp_path / "null_odds.json").write_text("[1]")
    with pytest.raises(UserError, match=r"null_odds.json: not a JSON object from question id to number"):
        score_predictions(
            task="squad_v2",
            predictions=asked["predictions"],
            data=str(tmp_path / "dev-v2.0.json"),
            null_odds=tmp_path / "null_odds.json",
        )


def test_no_article_is_in_train_and_dev(shared_data: Path):
    data = DataOptions(
        directory=str(shared_data / "squad"), train_file="dev-v2.0.json", dev_fraction=0.5, max_seq_length=384
    )
    task = SquadTask("squad_v2", data=data, squad=OPTIONS)
    train, dev = (task._with_held_out_dev(split) for split in ("train", "dev"))
    assert len(train) + len(dev) == 11873
    assert not {q.group for q in train} & {q.group for q in dev}
    assert len({q.group for q in dev}) in (17, 18)


def test_max_context_prefers_the_first_of_equals():
    assert max_context([(0, 4), (2, 4)], total=6).tolist() == [0, 0, 0, 1, 1, 1]
    assert max_context([(0, 0)], total=0).tolist() == []
