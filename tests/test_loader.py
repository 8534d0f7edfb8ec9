import itertools
import random
import shutil
from collections import Counter

import numpy as np
import pytest
from text_corpus import make_documents, write_corpus, write_vocabulary

from bert_jax.config import DataConfig
from bert_jax.data import loader
from bert_jax.data.builder import build_dataset
from bert_jax.data.loader import PretrainingBatches
from bert_jax.data.shards import dataset_directory
from bert_jax.errors import UserError

LENGTH = 32
BATCH = 24


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Return a data set of several shards and a few thousand rows."""
    folder = tmp_path_factory.mktemp("dataset")
    text = write_corpus(folder / "text", make_documents(400))
    config = DataConfig(
        input=str(text),
        vocab=str(write_vocabulary(folder / "vocabulary")),
        heldout_fraction=0.1,
        num_workers=1,
        objective="mlm",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_jax.data.survey._MIN_SHARD_BYTES", 1 << 17)
        info = build_dataset(config, out=folder / "out", max_seq_lengths=[LENGTH], vocab_size=0, report=lambda _: None)
    assert len(info.shards["train"]) >= 4
    return folder / "out"


def open_batches(dataset, **changes):
    settings = {"max_seq_length": LENGTH, "batch_size": BATCH, "seed": 3, **changes}
    return PretrainingBatches(dataset, **settings)


def equal(left, right):
    return left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("host_count", [2, 3, 8])
def test_hosts_feed_contiguous_blocks_of_the_same_global_batch(dataset, host_count, shuffle):
    whole = open_batches(dataset, shuffle=shuffle)
    hosts = [
        open_batches(dataset, shards=(index,), num_shards=host_count, shuffle=shuffle) for index in range(host_count)
    ]
    numbers = [0, 1, 17] + ([10**7] if shuffle else [len(whole) - 1])
    for number in numbers:
        parts = [host[number] for host in hosts]
        assert {len(part["input_ids"]) for part in parts} == {BATCH // host_count}
        together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert equal(together, whole[number])


def test_batch_k_is_a_function_of_seed_and_k(dataset):
    batches = open_batches(dataset)
    order = list(range(20))
    first = [batches[number] for number in order]
    again = open_batches(dataset)
    random.Random(0).shuffle(order)
    assert all(equal(again[number], first[number]) for number in order)
    assert not any(equal(open_batches(dataset, seed=4)[number], first[number]) for number in range(20))


def test_batches_hold_the_arrays_of_the_contract(dataset):
    assert {name: (array.shape, array.dtype) for name, array in open_batches(dataset)[0].items()} == {
        "input_ids": ((BATCH, LENGTH), np.int32),
        "segment_lengths": ((BATCH, 1, 2), np.int32),
        "next_sentence_labels": ((BATCH, 1), np.int32),
        "word_starts": ((BATCH, LENGTH), np.bool_),
    }


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(dataset):
    batches = open_batches(dataset, batch_size=1)
    epochs = [
        [
            int(batches.row_indices(number)[0])
            for number in range(epoch * batches.num_rows, (epoch + 1) * batches.num_rows)
        ]
        for epoch in range(2)
    ]
    for rows in epochs:
        assert sorted(rows) == list(range(batches.num_rows))
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_batches_go_on_across_the_end_of_an_epoch(dataset):
    batches = open_batches(dataset, batch_size=1000)
    rows = np.concatenate([batches.row_indices(number) for number in range(2 * batches.num_rows // 1000 + 1)])
    assert set(Counter(rows[: 2 * batches.num_rows].tolist()).values()) == {2}


def test_a_batch_larger_than_the_data_set_is_filled(dataset):
    batches = open_batches(dataset, split="validation", batch_size=2000)
    assert batches.num_rows < 2000
    assert (batches[3]["segment_lengths"].sum((1, 2)) > 0).all()


@pytest.mark.parametrize("host_count", [1, 2])
def test_evaluation_counts_every_held_out_row_exactly_once(dataset, host_count):
    hosts = [
        open_batches(dataset, split="validation", shuffle=False, batch_size=48, shards=(index,), num_shards=host_count)
        for index in range(host_count)
    ]
    num_rows = hosts[0].num_rows
    assert num_rows % 48
    assert len(hosts[0]) == -(-num_rows // 48)
    rows = [
        int(row) for number in range(len(hosts[0])) for host in hosts for row in host.row_indices(number) if row >= 0
    ]
    assert rows == list(range(num_rows))
    last = [host[len(host) - 1] for host in hosts]
    lengths = np.concatenate([batch["segment_lengths"].sum((1, 2)) for batch in last])
    assert (lengths > 0).tolist() == [True] * (num_rows % 48) + [False] * (48 - num_rows % 48)
    empty = np.concatenate([batch["input_ids"] for batch in last])[lengths == 0]
    assert not empty.any()


def test_evaluation_ends(dataset):
    batches = open_batches(dataset, split="validation", shuffle=False)
    assert len(list(batches.iterate())) == len(batches)
    assert len(list(batches.iterate(start=1, stop=10**9))) == len(batches) - 1
    for number in (-1, len(batches)):
        with pytest.raises(IndexError):
            batches[number]


def test_shuffled_batches_have_no_end(dataset):
    with pytest.raises(TypeError, match="no end"):
        len(open_batches(dataset))


@pytest.mark.parametrize("num_threads", [1, 4])
def test_iteration_starts_anywhere_and_yields_the_same_batches(dataset, num_threads):
    batches = open_batches(dataset)
    for start in (0, 5, 10**9):
        found = list(itertools.islice(batches.iterate(start=start, num_threads=num_threads, prefetch=3), 6))
        assert all(equal(batch, batches[start + number]) for number, batch in enumerate(found))
    assert len(list(batches.iterate(start=7, stop=11))) == 4
    assert list(batches.iterate(start=7, stop=7)) == []


def test_rows_of_a_split_come_from_its_own_files(dataset):
    train, validation = (
        {
            tuple(ids)
            for number in range(len(batches))
            for ids in batches[number]["input_ids"].tolist()
            if ids[-1]  # full rows: short ones may be equal by chance
        }
        for batches in (open_batches(dataset, split=split, shuffle=False) for split in ("train", "validation"))
    )
    assert len(train) > len(validation) > 50
    assert not train & validation


@pytest.fixture
def damaged(dataset, tmp_path):
    """Return a copy of the data set and one of its shards."""
    copy = shutil.copytree(dataset, tmp_path / "copy")
    return copy, next(dataset_directory(copy, max_seq_length=LENGTH).glob("*train.array_record-00001*"))


def read_all(dataset):
    batches = open_batches(dataset, shuffle=False)
    for number in range(len(batches)):
        batches[number]


def test_no_flipped_bit_of_a_shard_changes_a_row(damaged):
    """Each record has checksums; what they do not cover is padding, which nothing reads."""
    copy, shard = damaged
    info = open_batches(copy).info
    first = info.shards["train"][0].num_rows // BATCH + 1
    numbers = range(first, first + 2)  # batches at the start of the second shard

    def read() -> list[dict[str, np.ndarray]]:
        batches = open_batches(copy, shuffle=False)
        return [batches[number] for number in numbers]

    whole, expected, refused = shard.read_bytes(), read(), 0
    for number in range(100):
        generator = np.random.default_rng(number)
        data = bytearray(whole)
        data[generator.integers(min(len(data), 8192))] ^= 1 << generator.integers(8)
        shard.write_bytes(data)
        try:
            rows = read()
        except UserError:
            refused += 1
        else:
            same = [np.array_equal(a[name], b[name]) for a, b in zip(rows, expected, strict=True) for name in a]
            assert all(same)
    assert 30 < refused < 100


def test_a_truncated_shard_is_named_when_the_loader_opens(damaged):
    copy, shard = damaged
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=rf"{shard.name} is damaged .* delete its folder and run prepare again"):
        open_batches(copy)


def test_a_missing_shard_is_named_when_the_loader_opens(damaged):
    copy, shard = damaged
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name} is damaged \(it does not exist\)"):
        open_batches(copy)


@pytest.mark.parametrize("damage", ["zeros", "bit", "other"])
def test_a_damaged_shard_of_the_right_size_is_named_when_it_is_read(damaged, damage):
    copy, shard = damaged
    data = bytearray(shard.read_bytes())
    if damage == "zeros":
        data = bytearray(len(data))
    elif damage == "bit":
        data[3000] ^= 1
    else:
        other = shard.with_name(shard.name.replace("-00001-", "-00002-"))
        data = bytearray((other.read_bytes() + bytes(len(data)))[: len(data)])
    shard.write_bytes(data)
    with pytest.raises(UserError, match=rf"{shard.name} is damaged"):
        read_all(copy)


def test_damage_found_by_a_prefetching_thread_reaches_the_caller(damaged):
    copy, shard = damaged
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(UserError, match="is damaged"):
        list(open_batches(copy, shuffle=False).iterate(num_threads=2))


def test_wrong_questions_get_one_line(dataset, tmp_path):
    with pytest.raises(UserError, match="24 sequences cannot be split into 5 shards: choose a multiple of 5"):
        open_batches(dataset, num_shards=5)
    with pytest.raises(UserError, match="max_seq_length=128, only of 32"):
        open_batches(dataset, max_seq_length=128)
    with pytest.raises(UserError, match="does not exist"):
        open_batches(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no test sequences"):
        open_batches(dataset, split="test")


def test_more_shards_than_open_files_are_allowed(monkeypatch):
    limits = {"now": (100, 1000)}
    monkeypatch.setattr(loader.resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(loader.resource, "setrlimit", lambda _, value: limits.update(now=value))
    loader._allow_open_files(10)
    assert limits["now"] == (266, 1000)
    loader._allow_open_files(10)
    assert limits["now"] == (266, 1000)
    loader._allow_open_files(5000)
    assert limits["now"] == (1000, 1000)
