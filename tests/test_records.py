import numpy as np
import pytest

from bert_jax.data.pairs import Instances, TokenizedDocuments
from bert_jax.data.records import (
    RowSpec,
    decode_rows,
    encode_rows,
    parse_records,
    record_prefix,
    row_spec,
)
from bert_jax.rows.packing import one_per_row
from bert_jax.rows.special_ids import SpecialIds

SPECIAL = SpecialIds(cls_id=2, sep_id=3, mask_id=4, pad_id=0, vocab_size=1000)


def random_instances(rng, *, max_seq_length, count, vocab_size, with_b=True):
    ids = rng.integers(5, vocab_size, 5000)
    documents = TokenizedDocuments(
        ids=ids, segment_bounds=np.array([0, 5000]), document_bounds=np.array([0, 1]), keys=np.array([0]), num_own=1
    )
    length_a = rng.integers(1, max_seq_length - 4, count)
    length_b = rng.integers(1, max_seq_length - 2 - length_a) if with_b else np.zeros(count, int)
    a, b = rng.integers(0, 4000, count), rng.integers(0, 4000, count)
    labels = rng.integers(0, 2, count).astype(np.int32)
    return documents, Instances(a=np.stack([a, a + length_a], 1), b=np.stack([b, b + length_b], 1), labels=labels)


def one_row(documents, instances, number, word_starts, max_seq_length, *, span_segments=False):
    """Return what row `number` must decode to, built token by token."""
    ids = documents.ids.tolist()
    a, b = ids[slice(*instances.a[number])], ids[slice(*instances.b[number])]
    tokens = [2, *a, 3] + ([*b, 3] if b else [])
    starts = [True, True, *word_starts[a[1:]], True] + (
        [not span_segments or word_starts[b[0]], *word_starts[b[1:]], True] if b else []
    )
    padding = max_seq_length - len(tokens)
    return tokens + [0] * padding, starts + [False] * padding, [len(a) + 2, len(b) + 1 if b else 0]


@pytest.mark.parametrize("max_seq_length", [8, 16, 33, 128, 512])
@pytest.mark.parametrize("vocab_size", [1000, 65536, 120_000])
@pytest.mark.parametrize(("with_b", "span_segments"), [(True, False), (True, True), (False, True)])
def test_rows_decode_to_the_tokens_lengths_and_word_starts_that_went_in(
    max_seq_length, vocab_size, with_b, span_segments
):
    """In the original the first token of B starts a word only if its piece does (`create_masked_lm_predictions`)."""
    rng = np.random.default_rng(max_seq_length + vocab_size)
    word_starts = rng.random(vocab_size) < 0.7
    documents, instances = random_instances(
        rng, max_seq_length=max_seq_length, count=50, vocab_size=vocab_size, with_b=with_b
    )
    spec = row_spec(max_seq_length, vocab_size=vocab_size)
    assert spec.dtype == ("int32" if vocab_size > 65536 else "uint16")
    rows = encode_rows(
        instances,
        placement=one_per_row(50),
        documents=documents,
        word_starts=word_starts,
        special=SPECIAL,
        spec=spec,
        words_span_segments=span_segments,
    )
    assert rows.shape == (50, spec.num_elements)
    assert rows.dtype == spec.dtype
    batch = decode_rows(rows, spec=spec)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "input_ids": ((50, max_seq_length), np.int32),
        "segment_lengths": ((50, 1, 2), np.int32),
        "next_sentence_labels": ((50, 1), np.int32),
        "word_starts": ((50, max_seq_length), np.bool_),
    }
    for number in range(50):
        tokens, starts, lengths = one_row(
            documents, instances, number, word_starts, max_seq_length, span_segments=span_segments
        )
        assert batch["input_ids"][number].tolist() == tokens
        assert batch["word_starts"][number].tolist() == starts
        assert batch["segment_lengths"][number, 0].tolist() == lengths
    assert batch["next_sentence_labels"][:, 0].tolist() == instances.labels.tolist()


def test_more_instances_than_are_encoded_at_once_come_out_in_order(monkeypatch):
    rng = np.random.default_rng(1)
    documents, instances = random_instances(rng, max_seq_length=32, count=100, vocab_size=500)
    settings = {
        "placement": one_per_row(100),
        "documents": documents,
        "word_starts": np.ones(500, bool),
        "special": SPECIAL,
    }
    spec = row_spec(32, vocab_size=500)
    whole = encode_rows(instances, **settings, spec=spec)
    monkeypatch.setattr("bert_jax.data.records._ROWS_AT_ONCE", 7)
    assert (encode_rows(instances, **settings, spec=spec) == whole).all()


def test_packed_rows_decode_to_several_instances():
    spec = RowSpec(max_seq_length=8, instances_per_row=2, dtype="uint16")
    row = np.array([[3, 2, 1, 3, 0, 0, 2, 9, 3, 8, 3, 2, 7, 3, 0b11111111]], np.uint16)
    batch = decode_rows(row, spec=spec)
    assert batch["segment_lengths"].tolist() == [[[3, 2], [3, 0]]]
    assert batch["next_sentence_labels"].tolist() == [[1, 0]]
    assert batch["input_ids"].tolist() == [[2, 9, 3, 8, 3, 2, 7, 3]]
    assert batch["word_starts"].all()


@pytest.mark.parametrize("spec", [RowSpec(8, 1, "uint16"), RowSpec(128, 1, "uint16"), RowSpec(512, 4, "int32")])
def test_records_are_what_tfds_serialises(spec):
    import tensorflow_datasets as tfds

    feature = tfds.features.Tensor(shape=(spec.num_elements,), dtype=np.dtype(spec.dtype), encoding="bytes")
    row = np.arange(spec.num_elements, dtype=spec.dtype)
    expected = tfds.features.FeaturesDict({"row": feature}).serialize_example({"row": row})
    assert record_prefix(spec) + row.tobytes() == expected
    assert (parse_records([expected, expected], spec=spec) == row).all()


def test_records_of_another_layout_are_refused():
    spec = RowSpec(16, 1, "uint16")
    good = record_prefix(spec) + bytes(spec.num_bytes)
    assert parse_records([], spec=spec).shape == (0, spec.num_elements)
    for bad in (good[:-1], good + b"x", b"x" + good[1:]):
        with pytest.raises(ValueError, match="record"):
            parse_records([good, bad], spec=spec)
    with pytest.raises(ValueError, match="record"):  # the right size only in sum
        parse_records([good[:-1], good + b"x"], spec=spec)


def test_empty_rows_decode_to_empty_instances():
    spec = RowSpec(16, 1, "uint16")
    batch = decode_rows(np.zeros((2, spec.num_elements), np.uint16), spec=spec)
    assert not any(array.any() for array in batch.values())
