"""Prediction from lines and texts: rows in, rows out, in order; what fails is reported and loses nothing else."""

import io
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_helpers import SMALL_TEST, random_source

from bert_jax.config.task_options import HOLD_OUT
from bert_jax.convert.export_folder import export_folder
from bert_jax.errors import UserError
from bert_jax.prediction import json_lines, layout
from bert_jax.prediction import lines as prediction_lines
from bert_jax.prediction.json_lines import Counts, predict_lines
from bert_jax.prediction.model import Model
from tests import runs
from tests.rounding import encoder_bound
from tests.terminals import on_terminal

pytestmark = pytest.mark.numerics

# float32 sums of padded and unpadded rows, in another order.
ATOL = encoder_bound(SMALL_TEST)


@pytest.fixture(scope="module")
def pretrained() -> Model:
    return Model(random_source("small-test"))


# A program with a model that gives the same answer to every row.
STUB = """
from bert_jax import streams
from bert_jax.prediction import json_lines
class Model:
    num_cut = 0
    def columns(self, task): return {{}}
    def task(self, name, **options): return None
    def predict(self, task, rows, **options): return ({answer} for row in rows)
streams.prepare()
"""
LINES = [
    b'{"id": "x", "text": "the cat"}',
    b"not json",
    b"",
    b'["text"]',
    b'{"id": 2, "text": 5}',
    b'{"text": "a \\ud800 dog"}',
    b'{"text": "' + b"\xff\xfe" + b'"}',
    b'{"text": ""}',
]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "", "\udcff", "/dev/zero", "/", "none"])
def test_what_cannot_be_an_input_is_one_line(pretrained, tmp_path, monkeypatch, name):
    monkeypatch.setattr(prediction_lines, "_MAX_LINE", 1 << 16)
    monkeypatch.setattr(prediction_lines, "_LONGEST_LINE", 1 << 20)
    with pytest.raises(UserError, match=r"--input|this input is not text"):
        predict_lines(pretrained, task="embed", input=name, output=str(tmp_path / "out"), report=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_named_pipe_is_waited_for_with_a_line(pretrained, tmp_path):
    os.mkfifo(tmp_path / "in")
    told = []
    writer = threading.Thread(target=(tmp_path / "in").write_bytes, args=[b'{"text": "the cat"}\n'])
    writer.start()
    options = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "report": told.append}
    assert predict_lines(pretrained, task="embed", **options) == Counts(1, 0)
    writer.join()
    assert "is a pipe: waiting for what is written to it" in told[0]


def test_a_named_pipe_for_the_answers_is_waited_for_with_a_line(pretrained, tmp_path):
    os.mkfifo(tmp_path / "out")
    told, read = [], []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "out").read_bytes()))
    reader.start()
    options = {"texts": ["the cat"], "output": str(tmp_path / "out"), "report": told.append}
    assert predict_lines(pretrained, task="embed", **options) == Counts(1, 0)
    reader.join()
    assert "embedding" in json.loads(read[0])
    assert "is a pipe: waiting for what reads it" in told[0]
    assert (tmp_path / "out").is_fifo()


def test_lines_that_fail_are_counted_and_the_others_answered_in_order(pretrained, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(LINES))
    told = []
    counts = predict_lines(
        pretrained,
        task="embed",
        input=str(tmp_path / "in.jsonl"),
        output=str(tmp_path / "out.jsonl"),
        report=told.append,
    )
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert counts == Counts(7, 4)
    assert [("error" in a, a.get("id")) for a in answers] == [
        (False, "x"),
        (True, None),
        (True, None),
        (True, 2),
        (False, None),
        (True, None),
        (False, None),
    ]
    assert "line 2: is not JSON" in told[0]
    assert "4 of 7 rows failed" in told[-1]
    np.testing.assert_allclose(answers[0]["embedding"], pretrained.embed("the cat"), atol=ATOL)


def test_order_is_kept_over_many_batches(pretrained, tmp_path, monkeypatch):
    monkeypatch.setitem(json_lines._ROWS, "features", 16)
    texts = [" ".join(["cat"] * (1 + (7 * index) % 19)) for index in range(50)]
    rows = [json.dumps({"id": index, "text": text}) for index, text in enumerate(texts)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    predict_lines(pretrained, task="features", input=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out.jsonl"))
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == list(range(50))
    assert [len(answer["tokens"]) - 2 for answer in answers] == [len(text.split()) for text in texts]


def test_missing_and_empty_files_are_told(pretrained, tmp_path):
    with pytest.raises(UserError, match="cannot open the file"):
        predict_lines(pretrained, task="embed", input=str(tmp_path / "absent"))
    (tmp_path / "empty").write_text("\n\n")
    (tmp_path / "answers").write_text("kept")
    with pytest.raises(UserError, match="no line in this file"):
        predict_lines(pretrained, task="embed", input=str(tmp_path / "empty"), output=str(tmp_path / "answers"))
    with pytest.raises(UserError, match="this is the input file"):
        predict_lines(pretrained, task="embed", input=str(tmp_path / "answers"), output=str(tmp_path / "answers"))
    assert (tmp_path / "answers").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"answers", "empty"}
    with pytest.raises(UserError, match=r"cannot be written .*: make it first"):
        predict_lines(pretrained, task="embed", input=str(tmp_path / "answers"), output=str(tmp_path / "no" / "x"))


def test_standard_streams_are_read_and_written(pretrained, monkeypatch):
    class Stream:
        def __init__(self, content: bytes):
            self.buffer = io.BytesIO(content)

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Stream(b'{"text": "the cat"}\n'))
    out = Stream(b"")
    monkeypatch.setattr(sys, "stdout", out)
    assert predict_lines(pretrained, task="embed", input="-") == Counts(1, 0)
    assert len(json.loads(out.buffer.getvalue())["embedding"]) == 8


def test_the_door_answers_and_complains_in_one_line(tmp_path):
    export_folder(random_source("small-test"), out=tmp_path / "model", report=lambda line: None)
    command = [sys.executable, "-m", "bert_jax.predict", f"--model={tmp_path / 'model'}"]

    def run(*arguments, text=""):
        return runs.run([*command, *arguments], text=text)

    done = run("--task=fill_mask", "--top_k=2", text='{"id": 1, "text": "the [MASK] sat"}\n')
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["id"] == 1
    assert len(answer["predictions"][0]) == 2
    wrong = run("--task=answer")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert wrong.stderr.startswith("error: ")
    former = run("--task=qa")
    assert former.returncode == 2
    assert former.stderr.splitlines()[-1] == wrong.stderr.strip()


def test_a_file_of_texts_needs_no_json(pretrained, tmp_path):
    (tmp_path / "in.txt").write_text("[MASK] cat\n\n{not json\nthe dog\n")
    out = tmp_path / "out.jsonl"
    assert predict_lines(pretrained, task="embed", input=str(tmp_path / "in.txt"), output=str(out)) == Counts(3, 0)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    np.testing.assert_allclose(answers[2]["embedding"], pretrained.embed("the dog"), atol=ATOL)


@pytest.mark.parametrize("first", ["[]", "5", "null", "the cat"])
def test_an_object_after_a_line_of_text_is_not_answered_as_text(pretrained, tmp_path, first):
    told, out = [], tmp_path / "out.jsonl"
    for name in ("in.jsonl", "in.txt"):
        (tmp_path / name).write_text(first + '\n{"text": "the dog"}\n')
        counts = predict_lines(
            pretrained, task="embed", input=str(tmp_path / name), output=str(out), report=told.append
        )
        assert counts == Counts(2, 1)
        answers = [json.loads(line) for line in out.read_text().splitlines()]
        if name == "in.jsonl":  # never text
            np.testing.assert_allclose(answers[1]["embedding"], pretrained.embed("the dog"), atol=ATOL)
        else:
            assert answers[1]["error"].startswith("is a JSON object, the first line is text: name the file .jsonl")


def test_texts_fill_the_fields_of_a_row_in_order(pretrained, tmp_path):
    out = tmp_path / "out.jsonl"
    texts = ["the cat", "it ran", "a dog", "it sat"]
    assert predict_lines(pretrained, task="nsp", texts=texts, output=str(out)) == Counts(2, 0)
    answers = [json.loads(line)["is_next"] for line in out.read_text().splitlines()]
    assert answers == pytest.approx(pretrained.nsp([("the cat", "it ran"), ("a dog", "it sat")]), abs=ATOL)
    with pytest.raises(UserError, match="--task=nsp takes 2 texts per row: type --text=TEXT_A --text=TEXT_B"):
        predict_lines(pretrained, task="nsp", texts=["the cat"])
    with pytest.raises(UserError, match="leave one out"):
        predict_lines(pretrained, task="nsp", texts=texts, input="file")


def test_a_terminal_is_asked_for_one_row_after_the_other(pretrained, monkeypatch, capsysbinary):
    typed = iter(["the [MASK]", "", "a [MASK]"])

    def answer() -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert predict_lines(pretrained, task="fill_mask") == Counts(2, 0)
    shown = capsysbinary.readouterr()
    assert shown.err == b"write [MASK] where a word is missing; Ctrl-D ends\n" + b"text> " * 4 + b"\n"
    answers = [json.loads(line) for line in shown.out.splitlines()]
    assert [list(answer) for answer in answers] == [["predictions"]] * 2


def test_ctrl_c_at_the_prompt_leaves_with_a_line_of_its_own(pretrained, monkeypatch, capsys):
    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(KeyboardInterrupt):
        predict_lines(pretrained, task="embed")
    assert capsys.readouterr().err == "Ctrl-D ends\ntext> \n"


NESTED = {"id": 1, "predictions": [[{"token": "é", "id": 5}, {"token": "a", "id": 6}], []], "size": [1, 2]}


def test_a_nested_answer_has_a_line_per_innermost_value_on_a_terminal():
    assert layout.readable(NESTED).splitlines() == [
        "{",
        '  "id": 1,',
        '  "predictions": [',
        "    [",
        '      {"token": "é", "id": 5},',
        '      {"token": "a", "id": 6}',
        "    ],",
        "    []",
        "  ],",
        '  "size": [1, 2]',
        "}",
    ]
    assert json.loads(layout.readable(NESTED)) == NESTED
    assert layout.readable({"label": "a", "score": 0.5}) == '{"label": "a", "score": 0.5}'


def test_answers_are_readable_on_a_terminal_and_one_line_in_a_file(tmp_path):
    answer = {"predictions": [[{"token": "a"}]]}
    out = str(tmp_path / "out")
    for given in ("", f", output={out!r}"):
        shown = on_terminal(
            f"{STUB.format(answer=answer)}json_lines.predict_lines(Model(), task='embed', texts=['a']{given})"
        )
        assert shown.strip() == ("" if given else layout.readable(answer))
    assert Path(out).read_text() == json.dumps(answer) + "\n"


@pytest.mark.parametrize(("counts", "failed"), [(Counts(2, 2), True), (Counts(2, 1), False), (Counts(0, 0), False)])
def test_a_prediction_failed_only_if_every_row_did(counts, failed):
    assert counts.all_failed == failed


def _answers(model: Model, path: Path, **options: Any) -> list[dict[str, Any]]:
    predict_lines(model, task="embed", input=str(path), output=f"{path}.out", report=lambda _: None, **options)
    return [json.loads(line) for line in Path(f"{path}.out").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", '\ufeffid,text,stars\r\n1,"the ""big"" cat, and\na dog",5\r\n2,dog,1\r\n'),
        ("a.csv", 'stars;id;text\n5;1;"the ""big"" cat, and\na dog"\n1;2;dog\n'),
        ("A.TSV", 'id\ttext\n1\t"the ""big"" cat, and\na dog"\n2\tdog\n'),
    ],
)
def test_a_table_has_a_row_per_record_and_a_header(pretrained, tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    answers = _answers(pretrained, tmp_path / name)
    assert [answer["id"] for answer in answers] == ["1", "2"]
    texts = ['the "big" cat, and\na dog', "dog"]
    np.testing.assert_allclose([a["embedding"] for a in answers], pretrained.embed(texts), atol=ATOL)


def test_the_names_of_fine_tuning_are_understood_in_tables_and_json(pretrained, tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("review,stars\nthe cat,5\n")
    with pytest.raises(UserError, match=r"the table has no column 'text' \(columns: review, stars\)"):
        _answers(pretrained, tmp_path / "a.csv")
    monkeypatch.setitem(pretrained.source.record, "config", {"own": {"text": "review", "text_pair": ""}})
    (tmp_path / "a.jsonl").write_text('{"review": "the cat"}\n')
    for name in ("a.csv", "a.jsonl"):
        np.testing.assert_allclose(
            _answers(pretrained, tmp_path / name)[0]["embedding"], pretrained.embed("the cat"), atol=ATOL
        )


def test_a_row_of_a_table_that_is_wrong_fails_alone(pretrained, tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,the cat\n2\n3,dog\n")
    told = []
    counts = predict_lines(
        pretrained, task="embed", input=str(tmp_path / "a.csv"), output=str(tmp_path / "out"), report=told.append
    )
    assert counts == Counts(3, 1)
    assert told[0] == "line 3: has 1 column, the first line 2"


@pytest.mark.parametrize("content", [b"PAR1\x15\x04\x15", b"PK\x03\x04\0\0text", b"\x1f\x8b\x08\0\0\0"])
def test_a_file_that_is_not_text_is_refused(pretrained, tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match="this is not text"):
        _answers(pretrained, tmp_path / "a.parquet")


def test_on_a_terminal_answers_and_errors_are_not_glued_to_a_bar(tmp_path):
    code = STUB.format(answer={"error": "no [MASK]"})
    (tmp_path / "a.txt").write_text("a text\n")
    file, out = str(tmp_path / "a.txt"), str(tmp_path / "out")
    for given in (f"input={file!r}", f"input={file!r}, output={out!r}", "texts=['a text']"):
        code += f"print('next')\njson_lines.predict_lines(Model(), task='fill_mask', {given})\n"
    parts = [re.split(r"[\r\n]+", part.strip()) for part in on_terminal(code).split("next")]
    _, to_terminal, to_file, one_text = [[line for line in part if line.strip() and "|" not in line] for part in parts]
    answer, summary = '{"error": "no [MASK]"}', '1 of 1 row failed; its answer is {"error": ...}'
    assert to_terminal == ["line 1: no [MASK]", answer, summary]
    assert to_file == ["line 1: no [MASK]", summary]
    assert one_text == [answer]


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("classify", "classification"),
        ("pair", "classification --config.own.text_pair=COLUMN"),
        ("choice", "choice"),
        ("answer", "span"),
        ("tag", "tags"),
    ],
)
def test_a_model_that_is_not_fine_tuned_names_the_command_that_does(pretrained, task, kind):
    with pytest.raises(UserError) as caught:
        pretrained.task(task)
    command = (
        f"finetune --config=configs/finetune_own.py:{kind} --init={pretrained.source.path} --data_dir=FILE {HOLD_OUT}"
    )
    assert str(caught.value).endswith(command)
    tagger = Model(random_source("small-test", architecture="BertForTokenClassification"))
    if task != "tag":
        with pytest.raises(UserError, match=r"give a model that was trained for it$"):
            tagger.task(task)


def test_a_model_with_one_use_needs_no_task(pretrained, monkeypatch):
    assert pretrained.usual_task() == "fill_mask"
    tagger = Model(random_source("small-test", architecture="BertForTokenClassification"))
    assert tagger.usual_task() == "tag"
    classifier = Model(random_source("small-test", architecture="BertForSequenceClassification"))
    assert classifier.usual_task() == ""  # of texts or of pairs
    monkeypatch.setitem(classifier.source.record, "config", {"own": {"text": "text", "text_pair": "other"}})
    assert classifier.usual_task() == "pair"
