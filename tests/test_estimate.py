"""The estimated size of a data set, and the time to build it."""

import re

import pytest

from bert_jax.config import DataConfig
from bert_jax.data.estimate import TextSize, describe_estimate, estimate_rows, rows_by_length

NOVELS = TextSize(bytes=15_773_229, documents=16)  # every sixth of shared data's 100 English novels
# Rows of lengths 64, 128 and 512 that were built, by objective and size of the learned vocabulary. The constants were
# chosen by them: this holds the formula, and is no evidence for other text.
BUILT = {
    ("mlm+nsp", 1024): (65_981, 44_325, 13_580),
    ("mlm+nsp", 4096): (59_417, 37_230, 10_771),
    ("mlm+nsp", 8192): (57_212, 35_106, 10_103),
    ("mlm+nsp", 30522): (55_347, 33_141, 9_432),
    ("mlm", 1024): (90_322, 44_294, 10_920),
    ("mlm", 4096): (70_254, 34_573, 8_543),
    ("mlm", 8192): (65_065, 32_063, 7_931),
    ("mlm+sop", 1024): (48_754, 32_481, 10_016),
    ("mlm+sop", 4096): (43_616, 27_131, 7_992),
    ("mlm+sop", 8192): (42_009, 25_649, 7_442),
}


@pytest.mark.parametrize(("objective", "vocab_size"), BUILT)
def test_the_sequences_of_novels_are_estimated(objective: str, vocab_size: int):
    for length, built in zip((64, 128, 512), BUILT[objective, vocab_size], strict=True):
        config = DataConfig(objective=objective)
        rows = estimate_rows(NOVELS, config=config, max_seq_length=length, vocab_size=vocab_size)
        assert rows == pytest.approx(built, rel=0.15)


def test_a_short_document_is_an_instance_and_packing_joins_them():
    reviews = TextSize(bytes=450_000, documents=10_000)  # 10 tokens each
    for objective, instances in {"mlm": 10_000, "mlm+sop": 10_000, "mlm+nsp": 20_000}.items():
        config = DataConfig(objective=objective)
        rows = estimate_rows(reviews, config=config, max_seq_length=128, vocab_size=30522)
        assert rows == pytest.approx(instances, rel=0.01)
    packed = DataConfig(objective="mlm", pack=True)
    assert estimate_rows(reviews, config=packed, max_seq_length=128, vocab_size=30522) == pytest.approx(2500, rel=0.01)
    one = TextSize(bytes=450_000, documents=10_000, one_sentence=1)
    assert estimate_rows(one, config=DataConfig(), max_seq_length=128, vocab_size=30522) == pytest.approx(1e4, rel=0.01)


@pytest.mark.parametrize("vocab_size", [8, 200_000])
def test_every_length_and_vocabulary_has_an_estimate(vocab_size: int):
    for length in (1, 2, 5, 100_000):
        assert estimate_rows(TextSize(0, 0), config=DataConfig(), max_seq_length=length, vocab_size=vocab_size) > 0
        assert estimate_rows(NOVELS, config=DataConfig(), max_seq_length=length, vocab_size=vocab_size) > 0


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp", "mlm+sop"])
def test_longer_sequences_and_larger_vocabularies_make_fewer(objective: str):
    config = DataConfig(objective=objective)
    lengths = rows_by_length(NOVELS, config=config, max_seq_lengths=(16, 64, 128, 512), vocab_size=4096)
    by_vocabulary = [
        estimate_rows(NOVELS, config=config, max_seq_length=64, vocab_size=size) for size in (1024, 4096, 8192, 30522)
    ]
    for rows in (list(lengths.values()), by_vocabulary):
        assert rows == sorted(set(rows), reverse=True)


def test_the_time_to_learn_a_vocabulary_is_part_of_the_estimate():
    def seconds(vocab: str, *, num_workers: int) -> int:
        text = TextSize(bytes=120_000_000, documents=100)
        config = DataConfig(vocab=vocab, num_workers=num_workers)
        line = describe_estimate(text, config=config, max_seq_lengths=(128,), vocab_size=8192)
        match = re.search(r"; (\d+) s with ", line)
        assert match, line
        return int(match[1])

    assert seconds("vocab.txt", num_workers=4) < seconds("vocab.txt", num_workers=2)
    for num_workers in (2, 4):  # one process learns
        assert seconds("", num_workers=num_workers) == pytest.approx(
            seconds("vocab.txt", num_workers=num_workers) + 20, abs=1
        )
