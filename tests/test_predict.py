"""Prediction: rows in, rows out, in order; batching changes nothing; what fails is told and loses nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from source_helpers import SMALL_TEST, random_source

from bert_jax.errors import UserError
from bert_jax.model.parts import apply_parts, to_device
from bert_jax.prediction import model as module
from bert_jax.prediction.engine import Engine, batches, bucket
from bert_jax.prediction.model import Model
from bert_jax.prediction.rows import Example
from bert_jax.rows.layout import encoder_inputs
from bert_jax.types import InstanceRows
from tests.rounding import encoder_bound

pytestmark = pytest.mark.numerics

# float32 sums of padded and unpadded rows, in another order.
ATOL = encoder_bound(SMALL_TEST)


@pytest.fixture(scope="module")
def pretrained() -> Model:
    return Model(random_source("small-test"))


def alone(source, ids, types, **options):
    run = jax.jit(lambda params, inputs: apply_parts(params, inputs, model=source.model, **options))
    first = len(types) - int(np.sum(types))
    rows = InstanceRows(jnp.asarray([ids], jnp.int32), jnp.asarray([[[first, len(ids) - first]]], jnp.int32))
    return run(to_device(source.params), encoder_inputs(rows))


def tokens_of(model: Model, text: str) -> list[int]:
    tokenizer = model.tokenizer
    return [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]


TEXTS = ["the cat sat .", "a", "the red dog was not in the blue house !", "it ran", "of and to " * 6, ""]


def test_embedding_is_the_mean_over_real_tokens_whatever_stands_beside_it(pretrained):
    together = pretrained.embed(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        ids = tokens_of(pretrained, text)
        if len(ids) > 32:
            ids = [*ids[:31], pretrained.tokenizer.sep_id]
        hidden = np.asarray(alone(pretrained.source, ids, np.zeros(len(ids), int)).hidden)[0]
        mean = hidden.mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=ATOL)
        np.testing.assert_allclose(pretrained.embed(text), vector, atol=ATOL)
    raw = pretrained.embed(TEXTS, normalize=False)
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1)
    first = pretrained.embed(TEXTS[0], pooling="cls", normalize=False)
    ids = tokens_of(pretrained, TEXTS[0])
    np.testing.assert_allclose(first, alone(pretrained.source, ids, np.zeros(len(ids), int)).hidden[0, 0], atol=ATOL)


def test_each_mask_gets_the_probabilities_of_its_own_position(pretrained):
    text = "the [MASK] sat[MASK] ."
    guesses = pretrained.fill_mask(text, top_k=3)
    tokenizer = pretrained.tokenizer
    the, sat, dot = (tokenizer.encode(word)[0] for word in ("the", "sat", "."))
    ids = [tokenizer.cls_id, the, tokenizer.mask_id, sat, tokenizer.mask_id, dot, tokenizer.sep_id]
    logits = alone(pretrained.source, ids, np.zeros(len(ids), int), positions=jnp.array([[2, 4]])).masked_lm[0]
    expected = np.asarray(jax.nn.softmax(logits))
    assert [len(guess) for guess in guesses] == [3, 3]
    for guess, shares in zip(guesses, expected, strict=True):
        assert [item["id"] for item in guess] == np.argsort(-shares)[:3].tolist()
        np.testing.assert_allclose([item["probability"] for item in guess], np.sort(shares)[::-1][:3], atol=ATOL)
        assert [tokenizer.pieces[item["id"]] for item in guess] == [item["token"] for item in guess]


def test_next_sentence_reads_both_segments(pretrained):
    pairs = [("the cat sat", "it ran ."), ("it ran .", "the cat sat")]
    found = pretrained.nsp(pairs)
    for (first, second), probability in zip(pairs, found, strict=True):
        head = tokens_of(pretrained, first)
        ids = head + tokens_of(pretrained, second)[1:]
        types = [0] * len(head) + [1] * (len(ids) - len(head))
        logits = alone(pretrained.source, ids, types).next_sentence[0]
        assert probability == pytest.approx(float(jax.nn.softmax(logits)[0]), abs=ATOL)


def test_features_are_the_layers_that_were_asked_for(pretrained):
    names = ("last", "second_to_last", "embeddings", "sum_last_four", "concat_last_four", "sum_all", "1", "-1")
    row = pretrained.features("the cat sat", layers=names)
    ids = tokens_of(pretrained, "the cat sat")
    states = np.asarray(alone(pretrained.source, ids, np.zeros(len(ids), int), output_hidden_states=True).all_hidden)[
        :, 0
    ]
    expected = {
        "last": states[2],
        "second_to_last": states[1],
        "embeddings": states[0],
        "sum_last_four": states[1] + states[2],  # there are two
        "concat_last_four": np.concatenate([states[1], states[2]], axis=-1),
        "sum_all": states[1] + states[2],
        "1": states[1],
        "-1": states[2],
    }
    assert row["tokens"] == ["[CLS]", "the", "cat", "sat", "[SEP]"]
    for name in names:
        np.testing.assert_allclose(row["features"][name], expected[name], atol=ATOL)


def test_a_long_pair_loses_tokens_of_the_longer_text(pretrained):
    from bert_jax.prediction.rows import pair

    example = pair("a " * 40, "b b", tokenizer=pretrained.tokenizer, max_length=20)
    assert (len(example.ids), example.first_length) == (20, 17)
    example = pair("a b", "b " * 40, tokenizer=pretrained.tokenizer, max_length=20)
    assert (len(example.ids), example.first_length) == (20, 4)
    example = pair("a " * 40, "b " * 40, tokenizer=pretrained.tokenizer, max_length=21)
    assert (len(example.ids), example.first_length) == (21, 11)


def test_classifiers_name_their_labels():
    model = Model(random_source("small-test", architecture="BertForSequenceClassification", num_labels=3))
    answers = model.classify(["the cat", "a dog ran"])
    ids = tokens_of(model, "the cat")
    shares = np.asarray(jax.nn.softmax(alone(model.source, ids, np.zeros(len(ids), int)).classifier[0]))
    assert answers[0]["probabilities"] == {
        f"LABEL_{i}": pytest.approx(float(s), abs=ATOL) for i, s in enumerate(shares)
    }
    assert answers[0]["label"] == f"LABEL_{shares.argmax()}"
    paired = next(model.predict("pair", [{"text_a": "the cat", "text_b": "a dog"}]))
    assert set(paired) == {"label", "probability", "probabilities"}
    rated = Model(random_source("small-test", architecture="BertForSequenceClassification", num_labels=1))
    assert set(rated.classify("the cat")) == {"score"}


def test_choices_are_compared_with_each_other():
    model = Model(random_source("small-test", architecture="BertForMultipleChoice"))
    rows = [{"text_a": "the cat", "choices": ["sat", "ran", "a house"]}, {"text_a": "it", "choices": ["was"]}]
    first, second = model.predict("choice", rows)
    assert sum(first["probabilities"]) == pytest.approx(1, abs=ATOL)
    assert first["choice"] == int(np.argmax(first["probabilities"]))
    assert second == {"choice": 0, "probabilities": [1.0]}


def test_answers_are_spans_of_the_context_over_all_windows():
    model = Model(random_source("small-test", architecture="BertForQuestionAnswering", max_position_embeddings=200))
    context = "the cat sat on the mat . " * 40 + "a red dog ran ."
    found = model.answer("was it red ?", context=context)
    assert found["answer"]
    assert context[found["start"] : found["end"]] == found["answer"]
    assert len(found["answer"].split()) <= 30
    never = model.answer("was it red ?", context=context, null_threshold=-1e9)
    assert (never["answer"], never["start"]) == ("", None)
    assert next(model.predict("answer", [{"question": "a", "context": " "}])) == {"error": "the context is empty"}


def test_an_answer_that_occurs_twice_is_where_it_was_found(monkeypatch):
    model = Model(random_source("small-test", architecture="BertForQuestionAnswering"))
    context = "the dog ran . the red dog was"
    asked = model.task("answer")
    (example,), prepared = asked.prepare({"question": "was it red ?", "context": context})
    logits = np.zeros((len(example.ids), 2), np.float32)
    place = example.first_length + context.split().index("dog", 2)  # a token a word
    logits[place] = 50
    found = asked.result(prepared, [logits])
    assert (found["answer"], found["start"], found["end"]) == ("dog", 22, 25)


def test_a_question_that_fills_the_model_is_an_error_and_no_endless_loop():
    model = Model(random_source("small-test", architecture="BertForQuestionAnswering"))
    answer = next(model.predict("answer", [{"question": "cat " * 60, "context": "the dog"}]))
    assert "no space for the context" in answer["error"]


def test_words_are_tagged_by_their_first_piece_and_entities_put_together():
    source = random_source("small-test", architecture="BertForTokenClassification", num_labels=5)
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    names = {str(index): label for index, label in enumerate(labels)}
    model = Model(dataclasses.replace(source, label_fields={**source.label_fields, "id2label": names}))
    text = "the heart, it ran"
    found = model.tag(text)
    assert found["words"] == ["the", "heart", ",", "it", "ran"]
    ids = tokens_of(model, text)
    logits = np.asarray(alone(source, ids, np.zeros(len(ids), int)).classifier)[0]
    assert found["labels"] == [labels[int(logits[place].argmax())] for place in (1, 2, 7, 8, 9)]
    for entity in found["entities"]:
        assert text[entity["start"] : entity["end"]].startswith(entity["words"][0])
    given = next(model.predict("tag", [{"words": ["the", "heart", ",", "it", "ran"]}]))
    assert given["labels"] == found["labels"]
    long = next(model.predict("tag", [{"words": ["heart"] * 30}]))
    assert len(long["labels"]) == 30


def test_entities_follow_iob1_and_iob2():
    from bert_jax.prediction.spans import _entities, _Words

    labels = ["B-PER", "I-PER", "O", "I-LOC", "I-LOC", "B-LOC", "I-PER"]
    words = _Words([f"w{i}" for i in range(7)], [(3 * i, 3 * i + 2) for i in range(7)], [(0, i) for i in range(7)])
    found = _entities(words, labels, [0.5 + 0.05 * i for i in range(7)])
    assert [(e["type"], e["start"], e["end"], e["words"]) for e in found] == [
        ("PER", 0, 5, ["w0", "w1"]),
        ("LOC", 9, 14, ["w3", "w4"]),
        ("LOC", 15, 17, ["w5"]),
        ("PER", 18, 20, ["w6"]),
    ]
    assert found[0]["probability"] == 0.5


@pytest.mark.parametrize("task", ["classify", "answer", "tag", "choice"])
def test_a_task_without_its_head_is_refused(pretrained, task):
    with pytest.raises(UserError, match=f"cannot do --task={task}"):
        pretrained.task(task)
    with pytest.raises(UserError, match="choose one of fill_mask"):
        pretrained.task("translate")


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        ("features", {"layers": ("7",)}, "layers='7'"),
        ("features", {"layers": ("middle",)}, "layers='middle'"),
        ("embed", {"pooling": "median"}, "pooling='median'"),
        ("fill_mask", {"top_k": 0}, "top_k=0"),
    ],
)
def test_impossible_options_are_refused(pretrained, task, options, told):
    with pytest.raises(UserError, match=told):
        pretrained.task(task, **options)


def test_batches_hold_every_example_once_within_the_limits():
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, 513, 500).tolist()
    seen = []
    for indices, length in batches(lengths, max_tokens=2048, max_length=512):
        assert len(indices) * length <= 2048
        assert all(lengths[index] <= length for index in indices)
        assert bucket(max(lengths[index] for index in indices), max_length=512) == length
        seen += indices
    assert sorted(seen) == list(range(500))


def test_padding_is_small():
    lengths = np.random.default_rng(0).integers(5, 200, 4000).tolist()
    for fine, waste in ((False, 0.11), (True, 0.04)):
        shapes = list(batches(lengths, max_tokens=2048, max_length=512, fine=fine))
        assert sum(len(indices) * length for indices, length in shapes) < (1 + waste) * sum(lengths)


def test_few_shapes_are_compiled(pretrained):
    compiled = []

    def compute(params, inputs, positions):
        compiled.append(inputs.input_ids.shape)
        return inputs.segment_ids.sum(-1)

    engine = Engine({}, pad_id=0, max_length=512, max_tokens=512)
    lengths = [3 + index % 60 for index in range(700)]
    found = engine.run(compute, [Example([1] * length, length) for length in lengths])
    assert [int(count) for count in found] == lengths
    assert len(compiled) == len(set(compiled)) <= 8 * 4


def test_every_task_has_a_method_or_a_door():
    assert set(module.TASKS) >= {"fill_mask", "nsp", "classify", "pair", "answer", "tag", "features", "embed"}


def test_a_model_says_what_it_is(pretrained):
    text = repr(pretrained)
    assert text.startswith("<BertForPreTraining: 2 layers, 8 wide, 0.0 million parameters, ")
    assert "labels" not in text
    tagger = Model(random_source("small-test", architecture="BertForTokenClassification", num_labels=2))
    assert "labels LABEL_0, LABEL_1" in repr(tagger)


@pytest.mark.parametrize(
    ("former", "name", "head"),
    [("qa", "answer", "BertForQuestionAnswering"), ("ner", "tag", "BertForTokenClassification")],
)
def test_tasks_have_the_names_of_the_methods(former, name, head, monkeypatch, capsys):
    monkeypatch.setattr(module, "_REPORTED", set())
    model = Model(random_source("small-test", architecture=head))
    assert model.task(former) is model.task(former) is model.task(name)
    assert capsys.readouterr() == ("", f"task {former} is now called {name}\n")


@pytest.mark.parametrize("task", ["classify", "pair", "choice"])
def test_texts_are_read_as_long_as_in_fine_tuning(task):
    name = "BertForMultipleChoice" if task == "choice" else "BertForSequenceClassification"
    source = random_source("small-test", architecture=name)
    record = {"config": {"data": {"max_seq_length": 12, "truncation": "head"}}}
    model = Model(dataclasses.replace(source, record=record))
    row = {"text": "the cat " * 12, "text_a": "the cat " * 12, "text_b": "it ran", "choices": ["it ran"]}
    (example,), _ = model.task(task).prepare(row)
    assert len(example.ids) == 12
    if task != "choice":
        (example,), _ = model.task(task, max_length=20).prepare(row)
        assert len(example.ids) == 20
    (example,), _ = Model(source).task(task).prepare(row)
    assert len(example.ids) > 24
