"""Files are written whole or not at all."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax import files
from bert_jax.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


WRITERS = {
    "bytes": lambda file: files.write_bytes(file, b"new"),
    "text": lambda file: files.write_text(file, "new"),
    "JSON": lambda file: files.write_json(file, {"new": 1}),
    "JSON lines": lambda file: files.write_json_lines(file, [{"new": 1}]),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("durable", [True, False])
def test_a_writing_that_fails_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, durable: bool
):
    file = tmp_path / "file"
    file.write_text("old")
    refused = "fsync" if durable else "replace"

    def full(*_: Any) -> None:
        assert len(names(tmp_path)) == 2  # the new content is there already, under another name
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if durable else Path, refused, full)
    with pytest.raises(OSError, match="No space left"):
        write(file)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_body_that_fails_halfway_changes_nothing(tmp_path: Path, error: type[BaseException]):
    (tmp_path / "file").write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises(error), files.replacing(tmp_path / "file") as partial:
        fail(partial)
    with pytest.raises(error), files.new_folder(tmp_path / "folder") as partial:
        fail(partial / "file")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path):
    with files.replacing(tmp_path / "arrays.npz") as partial, partial.open("wb") as stream:
        np.savez(stream, a=np.arange(3))
        assert names(tmp_path) == [partial.name]
        assert partial.name.endswith(files.SUFFIX)
    with np.load(tmp_path / "arrays.npz") as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]
    with files.new_folder(tmp_path / "folder") as partial:
        (partial / "inside").write_text("")
        assert not (tmp_path / "folder").exists()
    assert names(tmp_path / "folder") == ["inside"]


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError, match="a pipe or a device"):
            files.write_text(file, "text")
    assert names(tmp_path) == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_new_folder_takes_the_place_of_no_other(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "theirs").write_text("")
    with pytest.raises(OSError), files.new_folder(tmp_path / "folder") as partial:
        (partial / "ours").write_text("")
    assert names(tmp_path / "folder") == ["theirs"]
    assert names(tmp_path) == ["folder"]


def test_durable_files_are_on_the_disk_before_they_have_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: calls.append("fsync") or fsync(number))
    monkeypatch.setattr(Path, "replace", lambda path, target: calls.append("replace") or replace(path, target))
    files.write_text(tmp_path / "a", "x")
    files.write_text(tmp_path / "b", "x", durable=False)
    assert calls == ["fsync", "replace", "replace"]


def test_a_refusal_of_the_system_names_what_was_written_and_the_remedy(tmp_path: Path):
    file = tmp_path / "gone" / "file"
    with (
        pytest.raises(UserError, match=rf"^{file} cannot be written \(No such file or directory\): make the folder$"),
        files.writing(file, remedy="make the folder"),
    ):
        files.write_text(file, "x")
