"""Encode sequences as fixed-size records and decode them: the only module that knows the binary layout.

A record (row) is one vector of uint16 (int32 for a large vocabulary), so a few whole-array operations decode a batch:

    header       S x (length_a, length_b, next_sentence_label)
    ids          T token ids; padding after the last instance
    word starts  T bits, least significant first, in as many elements as necessary

`length_a` counts `[CLS] A [SEP]`, `length_b` counts `B [SEP]` (0 for a single segment). Instance s occupies the
`length_a + length_b` positions after instance s - 1; its token types are `length_a` zeros and `length_b` ones; its
position ids start at 0. An empty instance is 0, 0, 0. S is 1 without packing.

A word-start bit is set at `[CLS]`, at each `[SEP]`, at the first token of a segment (possibly the rest of a truncated
word), and at every token that starts a word; it is not set at padding.

On disk a record is the only feature, a byte string, of a `tf.train.Example`, the format that TFDS reads.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bert_jax.data.pairs import Instances, TokenizedDocuments
from bert_jax.rows.packing import Placement, token_positions
from bert_jax.rows.special_ids import SpecialIds

FEATURE = "row"
_ROWS_AT_ONCE = 4096  # limits the int64 temporaries of encode_rows to a few MB


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """The layout of a row. `dtype` is "uint16" or "int32"."""

    max_seq_length: int
    instances_per_row: int
    dtype: str

    @property
    def num_elements(self) -> int:
        """Return the number of elements of a row."""
        return 3 * self.instances_per_row + self.max_seq_length + self.num_bit_elements

    @property
    def num_bit_elements(self) -> int:
        """Return the number of elements for the word-start bits."""
        return -(-self.max_seq_length // (8 * np.dtype(self.dtype).itemsize))

    @property
    def num_bytes(self) -> int:
        """Return the number of bytes of a row, without `record_prefix`."""
        return self.num_elements * np.dtype(self.dtype).itemsize


def row_spec(max_seq_length: int, *, vocab_size: int, instances_per_row: int = 1) -> RowSpec:
    """Return the layout for rows of up to `instances_per_row` instances over a vocabulary of `vocab_size`."""
    return RowSpec(max_seq_length, instances_per_row, dtype="uint16" if vocab_size <= 65536 else "int32")


def instance_lengths(instances: Instances) -> np.ndarray:
    """Return the number of positions of each instance [I], including special tokens."""
    return _segment_lengths(instances).sum(-1)


def _segment_lengths(instances: Instances) -> np.ndarray:
    """Return `length_a` and `length_b` [I, 2]."""
    num_tokens = np.stack([instances.a[:, 1] - instances.a[:, 0], instances.b[:, 1] - instances.b[:, 0]], axis=1)
    return num_tokens + np.where(num_tokens > 0, [2, 1], 0)


def encode_rows(
    instances: Instances,
    *,
    placement: Placement,
    documents: TokenizedDocuments,
    word_starts: np.ndarray,
    special: SpecialIds,
    spec: RowSpec,
    words_span_segments: bool = False,
) -> np.ndarray:
    """Return rows [placement.num_rows, spec.num_elements].

    `word_starts` [vocab_size] marks the ids that start a word. The first token of a segment starts one too, except that
    of B with `words_span_segments`: there whole-word masking of the original continues A's last word.
    """
    length, num_header = spec.max_seq_length, 3 * spec.instances_per_row
    rows = np.zeros((placement.num_rows, spec.num_elements), spec.dtype)
    header = np.zeros((placement.num_rows, spec.instances_per_row, 3), spec.dtype)
    header[placement.rows, placement.slots, :2] = _segment_lengths(instances)
    header[placement.rows, placement.slots, 2] = instances.labels
    rows[:, :num_header] = header.reshape(placement.num_rows, num_header)
    tokens = np.full(placement.num_rows * length, special.pad_id, spec.dtype)
    starts = np.zeros(placement.num_rows * length, np.bool_)
    first_tokens = placement.rows * length + placement.starts
    lengths = instance_lengths(instances)
    order = np.argsort(lengths, kind="stable")  # instances of similar length are unfolded together
    for first in range(0, len(order), _ROWS_AT_ONCE):
        part = order[first : first + _ROWS_AT_ONCE]
        group = Instances(a=instances.a[part], b=instances.b[part], labels=instances.labels[part])
        group_tokens, group_starts, inside = _unfold(group, documents.ids, word_starts, special)
        if not words_span_segments:
            group_starts |= _first_of_b(group)[:, None] == np.arange(group_starts.shape[1])
        positions = token_positions(first_tokens[part], lengths=lengths[part])
        tokens[positions] = group_tokens[inside]
        starts[positions] = group_starts[inside]
    rows[:, num_header : num_header + length] = tokens.reshape(placement.num_rows, length)
    bits = np.packbits(starts.reshape(placement.num_rows, length), axis=1, bitorder="little")
    width = spec.num_bit_elements * np.dtype(spec.dtype).itemsize
    bits = np.pad(bits, ((0, 0), (0, width - bits.shape[1])))
    rows[:, num_header + length :] = bits.view(spec.dtype)
    return rows


def _unfold(
    instances: Instances, ids: np.ndarray, word_starts: np.ndarray, special: SpecialIds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each instance's tokens from [CLS], its word starts, and a mask of the positions inside it.

    The first token of B is a word start only if it starts a word.
    """
    a, b = instances.a.astype(np.int32), instances.b.astype(np.int32)  # a shard has fewer than 2**31 tokens
    lengths = _segment_lengths(instances).astype(np.int32)
    length_a, length = lengths[:, :1], lengths.sum(-1, keepdims=True)
    position = np.arange(length.max(initial=1), dtype=np.int32)[None, :]
    first_sep, last_sep = length_a - 1, length - 1
    in_a = (position >= 1) & (position < first_sep)
    in_b = (position > first_sep) & (position < last_sep)
    # The offset in `ids` of every position's token; 0 for special tokens.
    offset = np.where(in_a, (a[:, :1] - 1) + position, 0)
    offset = np.where(in_b, (b[:, :1] - length_a) + position, offset)
    tokens = ids[offset]
    is_sep = (position == first_sep) | (position == last_sep)
    starts = ((in_a | in_b) & word_starts[tokens]) | is_sep | (position <= 1)
    tokens = np.where(is_sep, special.sep_id, tokens)
    tokens[:, 0] = special.cls_id
    return tokens, starts, position < length


def _first_of_b(instances: Instances) -> np.ndarray:
    """Return the position of the first token of B [I], or -1 if there is no B."""
    lengths = _segment_lengths(instances)
    return np.where(lengths[:, 1] > 0, lengths[:, 0], -1)


def decode_rows(rows: np.ndarray, *, spec: RowSpec) -> dict[str, np.ndarray]:
    """Return the host batch encoded in rows [B, spec.num_elements].

    Returns:
      `input_ids` int32 [B, T], `segment_lengths` int32 [B, S, 2], `next_sentence_labels` int32 [B, S] and `word_starts`
      bool [B, T]: the fields of `bert_jax.types.Rows`.
    """
    num_rows, count = len(rows), 3 * spec.instances_per_row
    header = rows[:, :count].astype(np.int32).reshape(num_rows, spec.instances_per_row, 3)
    ids = rows[:, count : count + spec.max_seq_length].astype(np.int32)
    bits = np.ascontiguousarray(rows[:, count + spec.max_seq_length :]).view(np.uint8)
    starts = np.unpackbits(bits, axis=1, count=spec.max_seq_length, bitorder="little").view(np.bool_)
    return {
        "input_ids": ids,
        "segment_lengths": np.ascontiguousarray(header[:, :, :2]),
        "next_sentence_labels": np.ascontiguousarray(header[:, :, 2]),
        "word_starts": starts,
    }


def record_prefix(spec: RowSpec) -> bytes:
    """Return the bytes before a row in its record: the same for all rows, because their size is the same.

    The record is the protocol buffer `Example{features{feature{key: "row" value{bytes_list{value: ROW}}}}}`.
    """
    size = spec.num_bytes
    prefix = _length_delimited(1, size)  # BytesList.value
    prefix = _length_delimited(1, size + len(prefix)) + prefix  # Feature.bytes_list
    prefix = _length_delimited(2, size + len(prefix)) + prefix  # map entry: value
    name = FEATURE.encode()
    prefix = _length_delimited(1, len(name)) + name + prefix  # map entry: key
    prefix = _length_delimited(1, size + len(prefix)) + prefix  # Features.feature
    return _length_delimited(1, size + len(prefix)) + prefix  # Example.features


def _length_delimited(field: int, length: int) -> bytes:
    """Return the tag of a length-delimited field and its length as a varint."""
    out = bytearray([field << 3 | 2])
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


def parse_records(records: Sequence[bytes], *, spec: RowSpec) -> np.ndarray:
    """Return the rows [len(records), spec.num_elements] of `records`, read-only.

    Raises:
      ValueError: if a record is not a row of this layout.
    """
    prefix = record_prefix(spec)
    size = len(prefix) + spec.num_bytes
    joined = b"".join(records)
    if len(joined) != size * len(records) or any(len(record) != size for record in records):
        raise ValueError(f"expected records of {size} bytes")
    table = np.frombuffer(joined, np.uint8).reshape(len(records), size)
    if not (table[:, : len(prefix)] == np.frombuffer(prefix, np.uint8)).all():
        raise ValueError("unexpected prefix of a record")
    return np.ascontiguousarray(table[:, len(prefix) :]).view(spec.dtype)
