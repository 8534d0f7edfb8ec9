"""Every reader of JSON meets 50 kinds of wrong JSON: a value of the right kind, or one line that names the file."""

import ast
import json
import os
import socket
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert_jax import json_files
from bert_jax.config import from_saved
from bert_jax.convert.folder_config import read_config as read_folder_config
from bert_jax.convert.huggingface import read_tensors
from bert_jax.convert.tokenizer_files import find_tokenizer
from bert_jax.data.dataset_info import load_dataset_info
from bert_jax.data.documents import read_documents
from bert_jax.data.intermediate import read_done
from bert_jax.data.manifest import check_manifest
from bert_jax.data.vocabulary import read_casing
from bert_jax.errors import UserError, closest
from bert_jax.files import open_regular
from bert_jax.finetuning.run_result import RunResult
from bert_jax.json_files import MAX_DEPTH, load_json, parse_object, read_json, read_log
from bert_jax.runs.goodput import Goodput
from bert_jax.runs.workdir import read_config
from bert_jax.runs.writers import JsonLinesWriter
from bert_jax.tasks import files as task_files
from bert_jax.tasks.files import read_json as read_task_json
from bert_jax.tasks.files import read_json_lines
from bert_jax.tasks.scoring import score_predictions
from bert_jax.tasks.squad_files import read_questions

ROOT = Path(__file__).parent.parent / "bert_jax"
DEEP = 10_000


def test_json_is_parsed_in_one_module():
    elsewhere = []
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "json":
                elsewhere.append(f"{file.relative_to(ROOT)}:{node.lineno}")
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "json":
                allowed = ("dumps", "dump", "JSONDecodeError")
                elsewhere += [f"{file.relative_to(ROOT)}:{node.lineno}"] * (node.attr not in allowed)
    assert [place for place in elsewhere if not place.startswith("json_files.py:")] == []
    assert elsewhere  # the search finds something


# What stands in the place of a value. Python writes NaN and Infinity as these words.
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    3,
    1.5,
    10**400,
    1 << 70,
    float("nan"),
    float("inf"),
    "",
    "text",
    "\ud800",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
    [None],
)


def wrong_documents(right: Any) -> dict[str, bytes]:
    """Return variants of a document, with another value in the place of the whole and of each of its parts."""
    documents = {
        "empty": b"",
        "cut": json.dumps(right).encode()[:-2],
        "two": json.dumps(right).encode() + b" {}",
        "NUL": b"\0" * 20,
        "binary": bytes(range(256)),
        "UTF-16": json.dumps(right).encode("utf-16"),
        "byte order mark": b"\xef\xbb\xbf" + json.dumps(right).encode(),
        "deep lists": b"[" * DEEP + b"]" * DEEP,
        "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "rather deep": b"[" * 500 + b"]" * 500,
        "unclosed": b"[" * DEEP,
        "digits": b"9" * 100_000,
        "exponent": b"[1e999999]",
        "name twice": b'{"data": 1, "data": 2}',
    }
    documents |= {f"{index} as a whole": json.dumps(value).encode() for index, value in enumerate(VALUES)}
    paths = list(parts(right))
    for index in range(50 - len(documents)):  # every part has its turn, and every value
        path = paths[index % len(paths)]
        value = VALUES[(7 * index) % len(VALUES)]
        documents[f"{value!r:.20} at {path}"] = json.dumps(replaced(right, path, value)).encode()
    return documents


def parts(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Yield the path of each part of a value, inner ones too."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield (*path, name)
        yield from parts(item, (*path, name))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    parent = copy
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = new
    return copy


COUNTS = {"num_rows": 2, "num_instances": 2, "num_tokens": 9, "num_token_pairs": 9, "num_labels": 1, "file_bytes": 9}
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "A river.",
                    "qas": [
                        {
                            "id": "q",
                            "question": "What?",
                            "is_impossible": False,
                            "answers": [{"text": "river", "answer_start": 2}],
                        }
                    ],
                }
            ],
        }
    ],
}
GOODPUT = {
    "starts": 1,
    "lost_steps": 0,
    "most_lost_steps": 0,
    "seconds": dict.fromkeys(
        ("useful", "startup", "compile", "data_wait", "checkpoint", "evaluation", "lost", "down", "other"), 1.0
    ),
    "last": {"seen": 1.0, "start": 0, "step": 5, "useful": 1.0},
}
TOKENS = {token: index for index, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"))}
TOKENIZER = {
    "added_tokens": [{"id": 0, "content": "[PAD]", "special": True}],
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": TOKENS},
}
DATASET = {
    "vocab_size": 6,
    "vocabulary_fingerprint": "f",
    "do_lower_case": True,
    "objective": "mlm",
    "recipe": "modern",
    "max_seq_length": 8,
    "instances_per_row": 1,
    "max_token_id": 5,
    "data_fingerprint": "d",
    "row_spec": {"max_seq_length": 8, "instances_per_row": 1, "dtype": "uint16"},
    "shards": {"train": [{"name": "s", "num_rows": 2, "num_bytes": 9}]},
    "statistics": {
        "documents": {"train": 1},
        "tokens": {"train": 9},
        "rows": {"train": 2},
        "instances": {"train": 2},
        "attended_share": 1.0,
        "padding_share": 0.0,
    },
}
RESULT = {
    "name": "b1",
    "settings": {"batch_size": 1, "learning_rate": 0.1, "num_epochs": 1.0, "seed": 0},
    "num_steps": 1,
    "history": [{"step": 1, "metrics": {"accuracy": 1.0}}],
    "best": {"step": 1, "metrics": {"accuracy": 1.0}},
    "train_seconds": 1.0,
    "sequences_per_second": 1.0,
    "metrics": {"dev": {"accuracy": 1.0}},
    "collapsed": False,
}
HUGGINGFACE = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 6,
    "max_position_embeddings": 8,
    "hidden_act": "gelu",
    "id2label": {"0": "no", "1": "yes"},
    "hidden_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
}


def goodput(file: Path) -> None:
    assert Goodput(file.parent, started_at=time.time(), start=3).metrics()["perf/goodput"] is not None


def metrics(file: Path) -> None:
    for line in read_log(file):
        assert isinstance(line.get("step", 0), int)
    JsonLinesWriter(file, resume_step=3).close()


def data_set(file: Path) -> None:
    folder = file.parent / "bert_pretraining/len8/1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_info.json").touch()
    file.replace(folder / "metadata.json")
    info = load_dataset_info(file.parent, max_seq_length=8)
    assert info.num_train_rows >= 0
    assert info.mean_instances > 0


def result(file: Path) -> None:
    try:
        record = RunResult.from_json(read_json(file))
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    assert record.settings.name


def predictions(file: Path, name: str) -> None:
    data = file.with_name("data.json")
    data.write_text(json.dumps(SQUAD))
    odds = file if name == "null_odds" else ""
    if odds:
        file = file.with_name("predictions.json")
        file.write_text('{"q": "river"}')
    score_predictions(task="squad_v2", predictions=file, data=data, null_odds=odds)


READERS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "config.json": (
        {"seed": 1, "recipe": "modern", "train": {"num_steps": 3}, "model": {"hidden_size": 768}},
        lambda file: read_config(file.parent, read=from_saved),
    ),
    "goodput.json": (GOODPUT, goodput),
    "metrics.jsonl": ({"step": 2, "eval/mlm_loss": 1.5, "text": None}, metrics),
    "metadata.json": (DATASET, data_set),
    "manifest.json": (
        {"layout": 1, "inputs": {"a": "1"}},
        lambda file: check_manifest(file.parent, {"layout": 1, "inputs": {"a": "2"}}),
    ),
    "done.json": (
        {"paragraphs": 1, "digest": 5, "report": {"documents": 1}, "blocks": 1},
        lambda file: read_done(file.parent),
    ),
    "result.json": (RESULT, result),
    "folder/config.json": (HUGGINGFACE, lambda file: read_folder_config(file.parent).labels),
    "tokenizer.json": (TOKENIZER, lambda file: find_tokenizer(file.parent)),
    "tokenizer_config.json": (
        {"do_lower_case": True, "strip_accents": None},
        lambda file: read_casing(file, do_lower_case=None),
    ),
    "model.safetensors.index.json": (
        {"weight_map": {"a": "model-1.safetensors"}},
        lambda file: read_tensors(file.parent),
    ),
    "squad.json": (SQUAD, read_questions),
    "predictions.json": ({"q": "river"}, lambda file: predictions(file, "predictions")),
    "null odds": ({"q": 0.5}, lambda file: predictions(file, "null_odds")),
    "rows.jsonl": ({"text": "a", "label": "b"}, lambda file: list(read_json_lines(file))),
    "corpus.json": ([{"text": "A river."}, {"text": "A town."}], lambda file: list(read_documents(str(file)))),
    "corpus.jsonl": ({"text": "A river.", "title": "t"}, lambda file: list(read_documents(str(file)))),
}


@pytest.mark.parametrize("name", list(READERS))
def test_fifty_variants_of_a_document_are_read_or_refused_in_one_line(tmp_path: Path, name: str):
    right, read = READERS[name]
    refused = {}
    documents = {"right": json.dumps(right).encode(), **wrong_documents(right)}
    assert len(documents) == 51
    for index, (kind, content) in enumerate(documents.items()):
        file = tmp_path / str(index) / Path(name.replace(" ", "_")).name
        file.parent.mkdir()
        file.write_bytes(content)
        try:
            read(file)
        except UserError as error:
            refused[kind] = str(error)
    assert "right" not in refused or name in ("manifest.json", "model.safetensors.index.json"), refused
    assert all("\n" not in line and len(line) < 1500 for line in refused.values())
    assert all(str(tmp_path) in line for line in refused.values())
    skipped_lines = (
        "goodput.json",
        "metrics.jsonl",
        "done.json",
        "corpus.jsonl",
    )
    assert len(refused) >= (0 if name in skipped_lines else 20), sorted(refused)


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device", "unreadable name"])
def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path, kind: str):
    file = tmp_path / "config.json"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "device":
        file = Path("/dev/null")
    elif kind == "unreadable name":
        file = tmp_path / ("x" * 300)
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "socket":
            server.bind(str(file)[-100:] if len(str(file)) < 100 else "\0" + str(file)[-90:])
        with pytest.raises(UserError, match=r"(cannot be read|does not exist): \w"):
            read_json(file)
        with pytest.raises(OSError):
            open_regular(file)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, DEEP])
def test_nesting_is_limited_on_every_version_of_python(depth: int):
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        with pytest.raises(ValueError, match="nested too deeply"):
            json_files.parse_json(opening * depth + "1" + closing * depth)
    assert json_files.parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert len(json_files.parse_json("[" + "[1]," * 500 + "1]")) == 501  # wide is not deep


def test_a_name_that_is_there_twice_is_refused_with_the_name():
    with pytest.raises(ValueError, match=r'it has the name "a" twice'):
        parse_object('{"x": [{"a": 1, "b": 2, "a": 3}]}')


def test_a_value_of_100_mb_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as stream:
        stream.truncate(100 << 20)
    monkeypatch.setattr(json_files, "parse_json", lambda content: pytest.fail(f"{len(content)} bytes are parsed"))
    with pytest.raises(UserError, match="larger than 64 MiB"):
        read_json(file)
    with pytest.raises(OSError, match="larger than 64 MiB"):
        load_json(file)


def test_the_number_of_values_is_limited_because_each_takes_a_hundred_times_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "dev.json"
    file.write_text("[" + "[]," * (json_files.MAX_VALUES // 2) + "[]]")
    monkeypatch.setattr(json_files.json, "loads", lambda text, **options: pytest.fail("it is parsed"))
    for read in (read_json, load_json):
        with pytest.raises((UserError, ValueError), match="more than 8,000,000 values, the most that is read"):
            read(file)
    monkeypatch.undo()
    monkeypatch.setattr(task_files, "_MAX_VALUES", 1000)
    with pytest.raises(UserError, match=r"dev\.json: not JSON \(it has more than 1,000 values, the most that is read"):
        read_task_json(file)


def test_a_name_of_megabytes_is_compared_in_constant_memory():
    name = "x" * (4 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"config\.xxx.*no such field"):
            from_saved({name: 1})
        assert closest("traim" + name, ["train", "x"]) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert closest("traim", ["train", "x"]) == ["train"]
    assert peak < 10 * len(name)  # compared whole, it took 40 bytes for each character
