"""Data sets in buckets: built here and uploaded whole, downloaded whole, never mixed with another."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from built_datasets import config_for, content, make_corpus
from memory_bucket import MemoryBuckets, memory_bucket

from bert_jax.config import DataConfig
from bert_jax.data import bucket_datasets
from bert_jax.data.bucket_datasets import build_in_bucket
from bert_jax.data.builder import build_dataset
from bert_jax.data.dataset_info import DatasetInfo, load_dataset_info, require_shards
from bert_jax.data.loader import PretrainingBatches
from bert_jax.errors import UserError

__all__ = ["memory_bucket"]

URL = "gs://bucket/data"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return what changes to a machine of a name, with a cache of its own."""

    def change(name: str) -> Path:
        bucket_datasets.forget()
        monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path / name))
        return tmp_path / name

    change("first")
    return change


def build(config: DataConfig, *, lengths=(64,), url: str = URL, report=lambda line: None) -> DatasetInfo:
    bucket_datasets.forget()
    return build_in_bucket(
        url,
        build=lambda folder: build_dataset(config, out=folder, max_seq_lengths=lengths, vocab_size=0, report=report),
        report=report,
    )


def names(bucket: MemoryBuckets) -> set[str]:
    return {name.removeprefix("/bucket/data/") for name in bucket.store}


def first_batch(info: DatasetInfo) -> np.ndarray:
    return PretrainingBatches(info.directory, max_seq_length=info.max_seq_length, batch_size=4, seed=1)[0]["input_ids"]


def test_a_data_set_in_a_bucket_is_that_of_a_folder_and_grows_on_any_machine(
    memory_bucket, machine, corpus: Path, tmp_path: Path
):
    config = config_for(corpus)
    build_dataset(config, out=tmp_path / "here", max_seq_lengths=(32, 64), vocab_size=0, report=lambda line: None)
    local = content(tmp_path / "here")
    lines: list[str] = []
    build(config, report=lines.append)
    assert names(memory_bucket) == {name for name in local if "/len32/" not in name}
    assert any(line.startswith("uploading to gs://bucket/data") for line in lines)

    machine("second")
    with pytest.raises(
        UserError, match=r"^gs://bucket/data was built with seed=12345, now it is 5: choose another --out"
    ):
        build(config_for(corpus, seed=5))
    shutil.rmtree(machine("second"))
    build(config, lengths=(32,))
    assert names(memory_bucket) == set(local)

    cache = machine("third")
    memory_bucket.get("/bucket/data", str(tmp_path / "copy"), recursive=True)
    assert content(tmp_path / "copy") == local
    with pytest.raises(UserError, match=r"^gs://bucket/data has no sequences of max_seq_length=16, only of 32, 64"):
        load_dataset_info(URL, max_seq_length=16)
    info = load_dataset_info(URL, max_seq_length=64)
    assert not list(cache.rglob("*.array_record*"))  # facts are cheap
    require_shards(URL, info=info, report=lines.append)
    assert lines[-1].startswith("downloading gs://bucket/data to ")
    expected = load_dataset_info(tmp_path / "here", max_seq_length=64)
    np.testing.assert_array_equal(first_batch(info), first_batch(expected))
    before = len(lines)
    require_shards(URL, info=load_dataset_info(URL, max_seq_length=64), report=lines.append)
    assert len(lines) == before


def test_an_upload_that_was_cut_off_is_no_data_set_and_is_finished_by_the_same_command(
    memory_bucket, machine, corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    config, put = config_for(corpus), MemoryBuckets.put_file

    def fail(self, lpath, rpath, **options):
        if "validation.array_record" in rpath:
            raise TimeoutError
        put(self, lpath, rpath, **options)

    monkeypatch.setattr(MemoryBuckets, "put_file", fail)
    with pytest.raises(UserError, match=r"^--out=gs://bucket/data: the store cannot be reached"):
        build(config)
    bucket_datasets.forget()
    with pytest.raises(UserError, match="data set gs://bucket/data does not exist: make it with prepare"):
        load_dataset_info(URL, max_seq_length=64)

    sent: list[str] = []

    def record(self, lpath, rpath, **options):
        sent.append(rpath.removeprefix("/bucket/data/"))
        put(self, lpath, rpath, **options)

    monkeypatch.setattr(MemoryBuckets, "put_file", record)
    there = names(memory_bucket)
    lines: list[str] = []
    build(config, report=lines.append)
    assert any("is complete, nothing to do" in line for line in lines)
    assert sent
    assert not there & set(sent)
    assert sent[-1].endswith("dataset_info.json")
    bucket_datasets.forget()
    assert load_dataset_info(URL, max_seq_length=64).num_train_rows > 0


def test_what_is_not_a_data_set_is_not_written_to(memory_bucket, corpus: Path):
    memory_bucket.pipe("/bucket/data/notes.txt", b"mine")
    with pytest.raises(UserError, match=r"^--out=gs://bucket/data: was not made by prepare: choose another --out"):
        build(config_for(corpus))
    assert names(memory_bucket) == {"notes.txt"}


def test_a_data_set_that_was_replaced_is_not_mixed_with_its_copy(memory_bucket, machine, corpus: Path):
    build(config_for(corpus))
    first = load_dataset_info(URL, max_seq_length=64)
    memory_bucket.rm("/bucket/data", recursive=True)
    build(config_for(corpus, seed=7))
    bucket_datasets.forget()
    second = load_dataset_info(URL, max_seq_length=64)
    assert first.directory != second.directory
    assert (first_batch(first) != first_batch(second)).any()
