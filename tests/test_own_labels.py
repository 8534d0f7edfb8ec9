"""Labels keep their order and meaning in every form in which users write them."""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.config.task_options import DataOptions, OwnOptions
from bert_jax.errors import UserError
from bert_jax.kinds.base import Gold
from bert_jax.kinds.classification import Classification
from bert_jax.tasks import files
from bert_jax.tasks.interface import Task
from bert_jax.tasks.own_labels import sorted_labels
from bert_jax.tasks.registry import open_task
from tests.finetune_data import tokenizer, write_jsonl
from tests.rounding import assert_rounded_alike, cross_entropy_bound


def own(folder: Path, *, kind: str, data: dict[str, Any] | None = None, **options: str) -> Task:
    options_of_data = DataOptions(directory=str(folder), max_seq_length=40, **(data or {}))
    return open_task("own", data=options_of_data, own=OwnOptions(kind=kind, **options))


def test_integers_are_in_the_order_of_numbers_and_the_order_is_reported(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": i} for i in (10, 2, -1, 2)])
    task = own(tmp_path, kind="classification")
    assert task.labels == ("-1", "2", "10")
    notes = task.notes(task.load("train", tokenizer=tokenizer()))
    assert notes == ["labels by id, with their examples in train: 0 = '-1' (1), 1 = '2' (2), 2 = '10' (1)"
                     "; 3 labels in 4 examples: is config.own.label the column of the labels?"]  # fmt: skip
    assert sorted_labels(["b", "10", "2"]) == ("10", "2", "b")


def test_numbers_with_decimals_are_in_the_order_of_numbers_and_keep_their_text(tmp_path: Path):
    """pandas writes a column of whole numbers with a gap as 0.0 to 11.0."""
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": float(i)} for i in range(11, -1, -1)])
    assert own(tmp_path, kind="classification").labels == tuple(f"{i}.0" for i in range(12))
    assert sorted_labels(["1e1", "-0.5", "+3", ".5", "10.0"]) == ("-0.5", ".5", "+3", "10.0", "1e1")
    digits = "9" * 5000  # more than Python turns into an integer
    assert sorted_labels([digits, "10", "9.5"]) == ("9.5", "10", digits)


@pytest.mark.parametrize("name", ["validation.jsonl", "dev.json", "val.csv", "valid.tsv"])
def test_dev_has_the_names_and_forms_that_people_give_it(tmp_path: Path, name: str):
    content = {
        ".jsonl": '{"text": "x", "label": "a"}\n',
        ".json": '[\n {"text": "x",\n  "label": "a"}]',
        ".csv": "text,label\nx,a\n",
        ".tsv": "text\tlabel\nx\ta\n",
    }[Path(name).suffix]
    (tmp_path / name).write_text(content)
    task = own(tmp_path, kind="classification", labels="a,b")
    assert [(example.text, example.label) for example in task.read("dev")] == [("x", 0)]
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"contains no dev.jsonl .*dev_file=FILE, or hold out .*dev_fraction=0.1"):
        task.read("dev")
    (tmp_path / "reviews.csv").write_text("text,label\nx,a\n")
    with pytest.raises(
        UserError,
        match=r"no dev.jsonl \(or validation, valid, val; or .json, .csv, .tsv, .parquet\); it has reviews\.csv: give",
    ):
        task.read("dev")
    by_file = own(tmp_path / "reviews.csv", kind="classification", labels="a,b")
    assert [example.text for example in by_file.read("train")] == ["x"]
    with pytest.raises(UserError, match=r"it has reviews\.csv: hold out part of train with --config\S*=0\.1, or give"):
        by_file.read("dev")
    (tmp_path / name).write_text(content)
    assert [example.text for example in by_file.read("dev")] == ["x"]


@pytest.mark.parametrize(
    ("files", "data", "advice"),
    [
        (["my reviews.csv", "notes.md"], {}, r"type --data_dir='\S+/my reviews\.csv' --config\.data\.dev_fraction=0"),
        (["reviews.csv.gz"], {"dev_fraction": 0.2}, r"type --data_dir=\S+/reviews\.csv\.gz, or give"),
        (["reviews.csv", "more.csv"], {}, "give the folder"),
        (["dev.csv"], {}, "give the folder"),
        ([], {}, "give the folder"),
    ],
)  # fmt: skip
def test_the_error_for_a_folder_with_one_file_says_first_how_to_train_on_it(
    tmp_path: Path, files: list[str], data: dict[str, Any], advice: str
):
    for file in files:
        (tmp_path / file).write_text("review,sentiment\nx,a\n")
    task = own(tmp_path, kind="classification", data=data)
    with pytest.raises(UserError, match=rf"contains no train\.jsonl .*: {advice}"):
        task.read("train")


def test_all_missing_columns_are_in_one_error(tmp_path: Path):
    (tmp_path / "reviews.csv").write_text("review,sentiment\nx,a\n")
    options = r"--config\.own\.text=NAME --config\.own\.label=NAME$"
    match = rf"line 2: there are no columns 'text' and 'label'; the columns are review, sentiment: type {options}"
    for kind in ("classification", "regression", "multilabel"):
        with pytest.raises(UserError, match=match):
            own(tmp_path / "reviews.csv", kind=kind).read("train")
    with pytest.raises(UserError, match=r"no columns 'a' and 'b'; .*: type --config\.own\.label=NAME$"):
        own(tmp_path / "reviews.csv", kind="multilabel", text="review", label="a,b").read("train")


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
def test_json_is_read_by_what_it_contains_not_by_its_suffix(tmp_path: Path, name: str):
    rows = [{"text": "x", "label": "a", "data": [{"y": 1}]}, {"text": "y", "label": "b"}]
    forms = [rows, {"version": "1", "data": rows}, {"data": rows}]
    contents = [json.dumps(form, indent=indent) for form in forms for indent in (None, 1)]
    for content in (*contents, "\n".join(map(json.dumps, rows)), "\ufeff\n" + contents[0]):
        (tmp_path / name).write_text(content, encoding="utf-8")
        task = own(tmp_path, kind="classification")
        assert [(example.text, example.label) for example in task.read("train")] == [("x", 0), ("y", 1)], content
    for damaged in (contents[1][:-9], contents[3][:-9]):
        (tmp_path / name).write_text(damaged)
        with pytest.raises(UserError, match=rf"{name}( line \d+)?: not JSON"):
            own(tmp_path, kind="classification").read("train")


MULTILABEL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "columns of 0 and 1": ("train.csv", "text,toxic,rude\nx,1,0\ny,0,0\nz,1,1\n", {"label": "toxic,rude"}),
    "columns of truth values": (
        "train.jsonl",
        '{"text": "x", "toxic": true, "rude": false}\n{"text": "y", "toxic": 0, "rude": 0}\n'
        '{"text": "z", "toxic": 1.0, "rude": 1}\n',
        {"label": "toxic,rude"},
    ),
    "a separator": (
        "train.tsv",
        "text\tlabel\nx\ttoxic\ny\t\nz\ttoxic|rude\n",
        {"label_separator": "|", "labels": "toxic,rude"},
    ),
    "a separator in JSON": (
        "train.jsonl",
        '{"text": "x", "label": "toxic"}\n{"text": "y", "label": ""}\n{"text": "z", "label": "rude; toxic"}\n',
        {"label_separator": ";", "labels": "toxic,rude"},
    ),
    "a list in a table": (
        "train.csv",
        "text,label\nx,\"['toxic']\"\ny,[]\nz,\"['rude', 'toxic']\"\n",
        {"labels": "toxic,rude"},
    ),
    "vectors": (
        "train.jsonl",
        '{"text": "x", "label": [1, 0]}\n{"text": "y", "label": [0, 0]}\n{"text": "z", "label": [1.0, 1.0]}\n',
        {"labels": "toxic,rude"},
    ),
}


@pytest.mark.parametrize("form", MULTILABEL)
def test_several_labels_are_read_in_every_form(tmp_path: Path, form: str):
    file, content, options = MULTILABEL[form]
    (tmp_path / file).write_text(content)
    task = own(tmp_path, kind="multilabel", **options)
    assert task.labels == ("toxic", "rude")
    targets = task.load("train", tokenizer=tokenizer()).features.targets
    np.testing.assert_array_equal(targets, [[1, 0], [0, 0], [1, 1]])  # type: ignore[arg-type]


def test_lists_in_tables_are_those_that_pandas_and_json_write(tmp_path: Path):
    """For words and tags, choices and labels; the form of NumPy arrays would be misread, so it is refused."""
    (tmp_path / "train.csv").write_text(
        "words,tags\n\"['New York', 'it''s']\",\"['B-LOC', 'O']\"\n".replace("''", "_")
        + '"[""a"", ""b""]","[""O"", ""B-LOC""]"\nx y,O O\n'
    )
    task = own(tmp_path, kind="tags", text="words", label="tags")
    assert [s.words for s in task.read("train")] == [("New York", "it_s"), ("a", "b"), ("x", "y")]
    (tmp_path / "train.csv").write_text("words,tags\n\"['a' 'b']\",\"['O' 'O']\"\n")
    with pytest.raises(
        UserError, match=r"train.csv line 2: column 'words' is \['a' 'b'\]: write a list as \['a', 'b'\]"
    ):
        own(tmp_path, kind="tags", text="words", label="tags").read("train")
    (tmp_path / "train.csv").write_text("text,c,label\nx,\"['one, two', 'three']\",1\n")
    assert own(tmp_path, kind="choice", choices="c").read("train")[0].endings == ("one, two", "three")


def test_one_content_is_the_same_in_two_hundred_forms(tmp_path: Path):
    """Formats, order of columns, further columns, quotes, line ends and byte order marks."""
    rng = random.Random(0)
    content = [("it was good", 10), ('he said "bad"', 2), ("a, b;\tc", 2), ("日本\u2028語", 10), ("two\nlines", 2)]
    for number in range(200):
        form = rng.choice(["jsonl", "json", "csv", "tsv"])
        names = ["text", "label", *rng.sample(["id", "", "note"], rng.randint(0, 3))]
        rng.shuffle(names)
        records = [{"id": 7, "": 0, "note": "x", "text": text, "label": label} for text, label in content]
        records = [{name: record[name] for name in names} for record in records]
        if form == "jsonl":
            blank = rng.choice(["", "\n"])
            text = "\n".join(json.dumps(r, ensure_ascii=rng.random() < 0.5) + blank for r in records)
        elif form == "json":
            text = json.dumps(records, indent=rng.choice([None, 2]))
        else:
            stream = io.StringIO(newline="")
            end, mark = rng.choice(["\n", "\r\n"]), "\t" if form == "tsv" else rng.choice(",;")
            quoting: Any = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
            table = csv.DictWriter(stream, names, delimiter=mark, lineterminator=end, quoting=quoting)
            table.writeheader()
            table.writerows(records)
            text = stream.getvalue()
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"train.{form}").write_bytes(text.encode(rng.choice(["utf-8", "utf-8-sig"])))
        task = own(folder, kind="classification")
        assert task.labels == ("2", "10"), number
        assert [(e.text, task.labels[e.label]) for e in task.read("train")] == [(t, str(v)) for t, v in content], number


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ([[0, 1], [1, 0]], [[0, 1], [1, 0]]),  # as names, both would be labels of every text
        ([[1], [0, 1]], [[0, 1], [1, 1]]),  # names
        ([[0, 2], [1, 0]], [[1, 0, 1], [1, 1, 0]]),  # names
        ([[0, 1, 0], [0, 1]], r"line 2: column 'label' is \[0, 1\]: write a list of 3 numbers, 0 or 1, as in the"),
        ([[0, 1, 0], []], r"line 2: column 'label' is \[\]: write a list of 3 numbers"),
        ([[0, 1, 0], [0, 2, 0]], r"line 2: column 'label' is \[0, 2, 0\]: write a list of 3 numbers"),
    ],
)
def test_lists_of_0_and_1_are_vectors_of_one_length_or_names(tmp_path: Path, lists: list[Any], expected: Any):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": value} for value in lists])
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f'x,"{value}"\n' for value in lists))
    for file in ("train.jsonl", "train.csv"):
        task = own(tmp_path, kind="multilabel", data={"train_file": file})
        if isinstance(expected, str):
            with pytest.raises(UserError, match=expected.replace("line 2", f"line {3 if '.csv' in file else 2}")):
                task.load("train", tokenizer=tokenizer())
        else:
            targets = task.load("train", tokenizer=tokenizer()).features.targets
            np.testing.assert_array_equal(targets, expected)  # type: ignore[arg-type]
    if lists[0] == [0, 1, 0]:
        write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": lists[0]}])
        with pytest.raises(UserError, match=r"config.own.labels names 2 labels, but the lists .* have 3 numbers"):
            own(tmp_path, kind="multilabel", labels="a,b").load("train", tokenizer=tokenizer())


def test_a_wrong_bit_or_vector_is_one_line(tmp_path: Path):
    (tmp_path / "train.csv").write_text("text,toxic,rude\nx,1,0\ny,2,0\n")
    with pytest.raises(UserError, match=r"train.csv line 3: column 'toxic' is '2': write 0 or 1"):
        own(tmp_path, kind="multilabel", label="toxic,rude").load("train", tokenizer=tokenizer())
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": [0, 0, 1]}])
    write_jsonl(tmp_path / "dev.jsonl", [{"text": "x", "label": [0, 1]}])
    task = own(tmp_path, kind="multilabel")
    assert task.labels == ("0", "1", "2")
    with pytest.raises(UserError, match=r"dev.jsonl line 1: column 'label' is \[0, 1\]: write a list of 3 numbers"):
        task.load("dev", tokenizer=tokenizer())


@pytest.mark.numerics
def test_balanced_weights_are_scikit_learns_and_the_loss_is_pytorchs(tmp_path: Path):
    torch = pytest.importorskip("torch")
    weights_of = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    labels = [0, 0, 0, 0, 0, 1, 2, 2]
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": label} for label in labels])
    task = own(tmp_path, kind="classification", class_weights="balanced")
    weights = task.class_weights(task.load("train", tokenizer=tokenizer()))
    np.testing.assert_allclose(weights, weights_of("balanced", classes=np.arange(3), y=labels))
    logits = np.random.default_rng(0).normal(size=(1, 8, 3)).astype(np.float32)
    kind = Classification(num_labels=3, class_weights=weights)
    gold = Gold(np.array([labels]), np.ones((1, 8), np.float32), np.zeros((1, 8), np.int32))  # type: ignore[arg-type]
    scores = kind.scores(logits, gold)  # type: ignore[arg-type]
    loss = float((scores.losses * scores.weights).sum() / kind.weights(gold).sum())
    expected = torch.nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float32))(
        torch.tensor(logits[0]), torch.tensor(labels)
    )
    bound = cross_entropy_bound(3, largest=float(np.abs(logits).max()))
    assert_rounded_alike(loss, float(expected), bound=bound)
    assert scores.counted is not None  # the accuracy counts examples, not weights
    assert float(scores.counted.sum()) == 8


def test_wrong_weights_and_metrics_are_one_line(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": label} for label in "ab"])
    for option, match in (("1,2,3", "has 3 weights, but there are 2 labels"), ("1,x", "give positive numbers")):
        task = own(tmp_path, kind="classification", class_weights=option)
        with pytest.raises(UserError, match=match):
            task.class_weights(task.load("train", tokenizer=tokenizer()))
    assert own(tmp_path, kind="classification", data={"selection": "macro_f1"}).selection == "macro_f1"
    with pytest.raises(
        UserError, match=r"config.data.selection='f2': own has no such metric: .* accuracy, macro_f1, mcc"
    ):
        own(tmp_path, kind="classification", data={"selection": "f2"})


def test_the_forms_of_huggingface_datasets_are_read(tmp_path: Path):
    """SQuAD's answers as lists in an object, its files' lists of objects, and answers without text."""
    row = {"question": "was it", "context": "it was good and nice"}
    answers: list[Any] = [
        {"text": ["good", "nice"], "answer_start": [7, 16]},
        {"text": [], "answer_start": []},
        [{"text": "nice", "answer_start": 16}],
        {"text": [""], "answer_start": [-1]},
    ]
    write_jsonl(tmp_path / "dev.jsonl", [row | {"answers": answer} for answer in answers])
    task = own(tmp_path, kind="span", text="question", text_pair="context", label="answer")
    found = [[(a.text, a.start) for a in question.answers] for question in task.read("dev")]
    assert found == [[("good", 7), ("nice", 16)], [], [("nice", 16)], []]
    write_jsonl(tmp_path / "train.jsonl", [{"tokens": ["EU", "rejects", "call"], "ner_tags": [3, 0, 7]}])
    plain = own(tmp_path, kind="tags", text="words", label="tags")
    assert (plain.labels, plain.selection) == (("0", "3", "7"), "accuracy")
    names = "O,B-PER,I-PER,B-ORG,I-ORG,B-LOC,I-LOC,B-MISC,I-MISC"
    named = own(tmp_path, kind="tags", text="words", label="tags", labels=names)
    assert (named.labels, named.selection) == (tuple(names.split(",")), "f1")
    assert named.read("train")[0].tags == ("B-ORG", "O", "B-MISC")
    with pytest.raises(UserError, match=r"line 1: tag 3 has no name: config.own.labels names 2 tags, from 0 to 1"):
        own(tmp_path, kind="tags", text="words", label="tags", labels="O,B-PER").read("train")


def test_entities_as_character_spans_become_tags_of_whole_words(tmp_path: Path):
    text = "Mira Kettle's mill, 東京 (1902)"
    spans: list[Any] = [
        {"start": 0, "end": 11, "label": "PER"},
        {"start": 20, "end": 22, "label": "LOC"},
        {"start": 24, "end": 26, "label": "DATE"},  # a part of a word
    ]
    forms = [spans, [[s["start"], s["end"], s["label"]] for s in spans]]
    write_jsonl(
        tmp_path / "train.jsonl", [{"text": text, "entities": form} for form in forms] + [{"text": "x", "entities": []}]
    )
    task = own(tmp_path, kind="tags", text="words", label="tags")
    first, second, last = task.read("train")
    assert first.words == ("Mira", "Kettle", "'", "s", "mill", ",", "東", "京", "(", "1902", ")")
    assert first.tags == ("B-PER", "I-PER", "O", "O", "O", "O", "B-LOC", "I-LOC", "O", "B-DATE", "O")
    assert (second.tags, last.tags) == (first.tags, ("O",))
    write_jsonl(tmp_path / "test.jsonl", [{"text": "in 東."}])
    test = task.read("test")[0]
    assert (test.words, test.labeled) == (("in", "東", "."), False)
    wrong = [
        ([{"start": 0, "end": 99, "label": "PER"}], "the entity 0-99 .* is not in the text of 29 characters"),
        ([{"start": "0", "end": 4, "label": "PER"}], "is not an entity: write"),
        ([[0, 4, "O"]], "the entity 0-4 has the label O, which means no entity: leave it out"),
        ([[0, 10**40, "PER"]], "the entity 0-a number of more than 60 digits|the entity 0-1000"),
        ([[0, 4, "PER"], [3, 6, "LOC"]], r"the entities 0-4 \(PER\) and 3-6 \(LOC\) overlap"),
    ]  # fmt: skip
    for entities, match in wrong:
        write_jsonl(tmp_path / "train.jsonl", [{"text": text, "entities": entities}])
        with pytest.raises(UserError, match=f"train.jsonl line 1: .*{match}"):
            own(tmp_path, kind="tags", text="text", label="entities").read("train")


def test_long_texts_are_counted_and_read_as_the_option_says(tmp_path: Path):
    words = ["good"] * 30 + ["bad"] * 30
    write_jsonl(tmp_path / "train.jsonl", [{"text": " ".join(words), "label": "a"}, {"text": "film", "label": "b"}])
    tokens = tokenizer()
    shown = {}
    for truncation in ("head", "head_tail", "windows"):
        task = own(tmp_path, kind="classification", data={"truncation": truncation})
        split = task.load("train", tokenizer=tokens)
        assert split.features.uncut is not None
        assert split.features.uncut.tolist() == [62, 3]
        pieces = [tokens.convert_ids_to_pieces(ids.tolist())[1:-1] for ids in split.features.ids]
        shown[truncation] = [(p.count("good"), p.count("bad"), p.count("film")) for p in pieces]
    assert shown["head"] == [(30, 8, 0), (0, 0, 1)]
    assert shown["head_tail"] == [(10, 28, 0), (0, 0, 1)]
    assert shown["windows"] == [(30, 8, 0), (8, 30, 0), (0, 0, 1)]
    assert split.features.targets == [0, 0, 1]


def test_the_output_for_a_text_is_the_mean_over_its_windows(tmp_path: Path):
    from bert_jax.tasks.interface import gold_targets, merged

    write_jsonl(tmp_path / "train.jsonl", [{"text": "good " * 60, "label": "a"}, {"text": "film", "label": "b"}])
    task = own(tmp_path, kind="classification", data={"truncation": "windows"})
    split = task.load("train", tokenizer=tokenizer())
    outputs = merged(split.features, [np.array([4.0, 0]), np.array([0, 1.0]), np.array([0, 3.0])])
    np.testing.assert_array_equal(outputs, [[2, 0.5], [0, 3]])
    assert gold_targets(split) == [0, 1]
    assert task.score(split, outputs)["accuracy"] == 1
    path = task.write_predictions(split, outputs, directory=tmp_path)[0]
    assert [json.loads(line)["prediction"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_an_empty_dev_file_of_choices_is_called_empty(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "c": ["one", "two", "three"], "label": 0}])
    (tmp_path / "dev.jsonl").write_text("")
    task = own(tmp_path, kind="choice", choices="c")
    assert len(task.load("train", tokenizer=tokenizer()).features.ids) == 3
    with pytest.raises(UserError, match="the dev set of own is empty"):
        task.load("dev", tokenizer=tokenizer())


def test_a_file_of_json_lines_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": "a"}])
    paths: list[Path] = []
    read_text = files.read_text
    monkeypatch.setattr(files, "read_text", lambda path: paths.append(path) or read_text(path))
    assert len(own(tmp_path, kind="classification", labels="a,b").read("train")) == 1
    assert paths == [tmp_path / "train.jsonl"]
