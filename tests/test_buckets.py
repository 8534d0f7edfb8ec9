"""Models and data sets in buckets: whole or absent, found again in the cache, and errors of one line."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from memory_bucket import MemoryBuckets, memory_bucket
from source_helpers import random_source
from test_export import write_workdir

from bert_jax.buckets import BucketFolder, Object, cache_folder
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.errors import UserError

__all__ = ["memory_bucket"]


def quiet(line: str) -> None:
    del line


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(bucket: MemoryBuckets) -> list[str]:
    return sorted(name.removeprefix("/bucket/") for name in bucket.store)


def test_an_exported_model_in_a_bucket_is_that_of_a_local_folder(memory_bucket, tmp_path: Path):
    source = random_source("small-test")
    export_folder(source, out=tmp_path / "model", report=quiet)
    lines: list[str] = []
    done = export_folder(source, out="gs://bucket/exports/model", report=lines.append)
    assert str(done.folder) == "gs://bucket/exports/model"
    local = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    remote = {
        name.removeprefix("exports/model/"): memory_bucket.cat(f"/bucket/{name}") for name in names(memory_bucket)
    }
    assert remote == local
    loaded = load_pretrained("gs://bucket/exports/model/", report=lines.append)
    assert loaded.architecture == source.architecture
    assert [line for line in lines if line.startswith(("uploading", "downloading"))]


def test_config_json_is_uploaded_when_all_else_is_there(memory_bucket, monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    put = MemoryBuckets.put_file

    def record(self, lpath, rpath, **options):
        order.append(rpath.rpartition("/")[2])
        put(self, lpath, rpath, **options)

    monkeypatch.setattr(MemoryBuckets, "put_file", record)
    export_folder(random_source("small-test"), out="gs://bucket/model", report=quiet)
    assert order[-1] == "config.json"
    assert len(order) > 5


def test_a_folder_in_a_bucket_that_holds_something_is_left_alone(memory_bucket):
    memory_bucket.pipe("/bucket/model/notes.txt", b"mine")
    with pytest.raises(UserError, match=r"^--out=gs://bucket/model: this folder exists and is not empty: name a new"):
        export_folder(random_source("small-test"), out="gs://bucket/model", report=quiet)
    assert names(memory_bucket) == ["model/notes.txt"]


def test_an_upload_that_fails_leaves_nothing(memory_bucket, monkeypatch: pytest.MonkeyPatch):
    put = MemoryBuckets.put_file

    def refuse(self, lpath, rpath, **options):
        if rpath.endswith("vocab.txt"):
            raise OSError("Forbidden: quota")
        put(self, lpath, rpath, **options)

    monkeypatch.setattr(MemoryBuckets, "put_file", refuse)
    with pytest.raises(UserError, match=r"^--out=gs://bucket/model: no permission \(Forbidden: quota\): give"):
        export_folder(random_source("small-test"), out="gs://bucket/model", report=quiet)
    assert names(memory_bucket) == []


def test_of_a_workdir_the_newest_complete_checkpoint_is_downloaded_once(memory_bucket, cache: Path, tmp_path: Path):
    write_workdir(tmp_path / "run", random_source("small-test"), steps=(3, 7, 9))
    memory_bucket.put(str(tmp_path / "run"), "/bucket/run", recursive=True)
    memory_bucket.pipe("/bucket/run/data/large", b"not needed")
    lines: list[str] = []
    assert load_pretrained("gs://bucket/run", report=lines.append).record["step"] == 9
    for step in (3, 7):  # as Orbax marks them, in a bucket at the end of a save
        memory_bucket.pipe(f"/bucket/run/checkpoints/{step}/commit_success.txt", b"")
    memory_bucket.rm_file("/bucket/run/checkpoints/9/commit_success.txt")
    assert load_pretrained("gs://bucket/run", report=lines.append).record["step"] == 7
    assert load_pretrained("gs://bucket/run/checkpoints/3", report=lines.append).record["step"] == 3
    assert load_pretrained("gs://bucket/run", report=lines.append).record["step"] == 7
    assert len([line for line in lines if line.startswith("downloading gs://bucket/run to ")]) == 3
    assert not [path for path in cache.rglob("*") if path.name == "large"]
    with pytest.raises(UserError, match="not a complete checkpoint: give one of the steps 3, 7"):
        load_pretrained("gs://bucket/run/checkpoints/9", report=quiet)


def test_weights_of_other_libraries_are_not_downloaded(memory_bucket, cache: Path, tmp_path: Path):
    export_folder(random_source("small-test"), out=tmp_path / "model", report=quiet)
    for name in ("tf_model.h5", "pytorch_model.bin", "onnx/model.onnx"):
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes(b"x")
    memory_bucket.put(str(tmp_path / "model"), "/bucket/model", recursive=True)
    load_pretrained("gs://bucket/model", report=quiet)
    assert not [path for path in cache.rglob("*") if path.suffix in (".h5", ".bin", ".onnx")]


def test_a_model_that_is_not_there_is_one_line(memory_bucket):
    with pytest.raises(UserError, match=r"^gs://bucket/none: contains no model: give a workdir"):
        load_pretrained("gs://bucket/none", report=quiet)


def test_a_file_that_arrives_damaged_is_not_kept(memory_bucket, tmp_path: Path):
    memory_bucket.pipe("/bucket/a/file", b"12345")
    folder = BucketFolder("gs://bucket/a", name="--init")
    with pytest.raises(UserError, match=r"^--init=gs://bucket/a: file arrived with other bytes than the bucket says"):
        folder.download({"file": Object(5, md5="AAAA")}, to=tmp_path / "to", report=quiet)
    assert not list((tmp_path / "to").iterdir())


def test_a_download_that_was_killed_keeps_its_whole_files(memory_bucket, tmp_path: Path, monkeypatch):
    for name in "abcd":
        memory_bucket.pipe(f"/bucket/a/{name}", name.encode() * 10)
    folder = BucketFolder("gs://bucket/a", name="--init")
    get = MemoryBuckets.get_file

    def fail(self, rpath, lpath, **options):
        if rpath.endswith("c"):
            raise TimeoutError
        get(self, rpath, lpath, **options)

    monkeypatch.setattr(MemoryBuckets, "get_file", fail)
    with pytest.raises(UserError, match="the store cannot be reached or refused"):
        folder.download(folder.objects(), to=tmp_path / "to", report=quiet)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    assert "c" not in whole
    assert all(content == name.encode() * 10 for name, content in whole.items())
    monkeypatch.setattr(MemoryBuckets, "get_file", get)
    lines: list[str] = []
    folder.download(folder.objects(), to=tmp_path / "to", report=lines.append)
    missing = 4 - len(whole)
    assert lines == [f"downloading gs://bucket/a to {tmp_path / 'to'}: {missing} files, {missing * 10} B"]
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["a", "b", "c", "d"]


def test_two_that_create_an_object_do_not_both_succeed(memory_bucket):
    folder = BucketFolder("gs://bucket/a", name="--workdir")
    assert folder.create("lock", b"first")
    assert not folder.create("lock", b"second")
    assert folder.read("lock") == b"first"


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    # Where another test has met a real bucket, fsspec still has the class.
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "gs", raising=False)
    with pytest.raises(UserError, match=r"^model=gs://bucket/a: needs gcsfs: pip install 'bert_jax\[gcs\]'$"):
        load_pretrained("gs://bucket/a", report=quiet)


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("BERT_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("models", "gs://a/b").parent == tmp_path / "bert_jax" / "models"
    assert cache_folder("models", "gs://a/b") != cache_folder("models", "gs://a/c")


def test_local_paths_import_no_library_of_a_store():
    code = (
        "import sys, bert_jax.buckets, bert_jax.locations, bert_jax.convert.destination\n"
        "assert not {'fsspec', 'gcsfs', 'google'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
