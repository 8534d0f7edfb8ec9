"""JSON that cannot be read, or is something else than expected, is one line that names file and place."""

import json
from pathlib import Path

import numpy as np
import pytest

from bert_jax import json_files
from bert_jax.errors import UserError
from bert_jax.files import write_json, write_json_lines


def test_half_a_surrogate_pair_is_written_as_json(tmp_path: Path):
    write_json(tmp_path / "file", {"text": "\ud800 é"})
    assert json_files.load_json(tmp_path / "file") == {"text": "\ud800 é"}
    assert "é" in (tmp_path / "file").read_text(encoding="utf-8")


def test_a_byte_order_mark_is_skipped(tmp_path: Path):
    (tmp_path / "file").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert json_files.read_json(tmp_path / "file") == {"a": 1}
    assert json_files.parse_object('\ufeff{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"is not JSON \(Expecting value"),
        (b'{"a": ', r"is not JSON \(Expecting value"),
        (b'{"a": "\xff"}', r"is not JSON \(byte 7 is not UTF-8\)"),
        (b"[" * 100_000, r"is not JSON \(it is nested too deeply\)"),
        (b"9" * 10_000, r"is not JSON \(Exceeds the limit"),
        (b"[1]", "must hold a JSON object"),
        (b"null", "must hold a JSON object"),
    ],
)
def test_what_is_wrong_with_a_json_file_is_one_line(tmp_path: Path, content: bytes, reason: str):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{file}: {reason}.*: make it again$") as error:
        json_files.read_json(file, remedy="make it again")
    assert len(str(error.value)) < len(str(file)) + 200


def test_a_json_file_that_is_missing_unreadable_or_huge_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"config.json: does not exist: make one$"):
        json_files.read_json(tmp_path / "config.json", missing="make one")
    with pytest.raises(UserError, match=r": cannot be read: Is a directory"):
        json_files.read_json(tmp_path)
    monkeypatch.setattr(json_files, "MAX_JSON_BYTES", 1 << 20)
    (tmp_path / "config.json").write_text(json.dumps("x" * (1 << 20)))
    with pytest.raises(UserError, match=r"config.json: cannot be read: it is larger than 1 MiB"):
        json_files.read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("line", "reason"), [("{", r"^not JSON \("), ("[]", "^not a JSON object$"), (b"\xff", r"^not JSON \(byte 0 ")]
)
def test_what_is_wrong_with_a_line_is_said_in_a_few_words(line: str | bytes, reason: str):
    with pytest.raises(ValueError, match=reason):
        json_files.parse_object(line)


def test_nan_is_taken_or_refused():
    assert np.isnan(json_files.parse_object('{"a": NaN}')["a"])
    with pytest.raises(ValueError, match=r"^not JSON \(NaN is not JSON\)$"):
        json_files.parse_object('{"a": NaN}', allow_nan=False)


def test_lines_that_a_killed_run_cut_off_are_skipped(tmp_path: Path):
    assert json_files.read_log(tmp_path / "metrics.jsonl") == []
    write_json_lines(tmp_path / "metrics.jsonl", [{"text": "a\u2028b"}, {"step": 2}])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'[3]\n\n{"step": 4')
    assert json_files.read_log(tmp_path / "metrics.jsonl") == [{"text": "a\u2028b"}, {"step": 2}]
