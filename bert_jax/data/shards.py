"""Build one shard of the data set: a pure function of the intermediate shards, the config and the shard's range."""

import dataclasses
import errno
import functools
import hashlib
import os
import random
from pathlib import Path

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]  # a C++ module

from bert_jax.data.intermediate import IntermediateShards, StoredDocument
from bert_jax.data.pairs import TokenizedDocuments, make_instances
from bert_jax.data.records import encode_rows, instance_lengths, record_prefix, row_spec
from bert_jax.data.sentences import document_sentences
from bert_jax.data.statistics import LengthCounts, ShardCounts
from bert_jax.data.survey import Shard
from bert_jax.data.tokenization import Tokenizer, load_tokenizer
from bert_jax.data.workers import Advance
from bert_jax.errors import UserError
from bert_jax.files import replacing, write_json
from bert_jax.json_files import load_json
from bert_jax.rows.packing import best_fit, one_per_row

DATASET_NAME = "bert_pretraining"
VERSION = "1.0.0"
INFO_FILE = "dataset_info.json"  # TFDS's; written last
METADATA_FILE = "metadata.json"  # TFDS's file for extra metadata
# Random-access readers expect one record per group. Compression saves only 4 % on ids and halves the reading speed.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_NUM_DONORS = 8  # documents to sample a random B from, for a shard that contains only one document


@dataclasses.dataclass(frozen=True)
class ShardSpec:
    """Inputs and outputs of shards: all that a worker needs."""

    out: str
    results: str  # folder with the counts of finished shards
    vocab_directory: str
    intermediate: IntermediateShards
    max_seq_lengths: tuple[int, ...]
    objective: str
    recipe: str
    short_seq_prob: float
    seed: int
    language: str
    paragraphs_below: int  # paragraph hashes below this are kept to find duplicates
    instances_per_row: tuple[int, ...]  # per length; 1: no packing
    max_instance_length: int  # with packing; 0: max_seq_length


def dataset_directory(out: str | Path, *, max_seq_length: int) -> Path:
    """Return the TFDS directory of one length."""
    return Path(out) / DATASET_NAME / f"len{max_seq_length}" / VERSION


def shard_name(shard: Shard) -> str:
    """Return the TFDS file name of a shard."""
    return f"{DATASET_NAME}-{shard.split}.array_record-{shard.index:05d}-of-{shard.count:05d}"


def read_result(plan: ShardSpec, shard: Shard) -> ShardCounts | None:
    """Return the counts of a shard if it is finished and its files are complete, else None."""
    try:
        counts: ShardCounts = load_json(_result_path(plan, shard), form=ShardCounts)
    except (FileNotFoundError, ValueError):
        return None
    for max_seq_length in plan.max_seq_lengths:
        file = dataset_directory(plan.out, max_seq_length=max_seq_length) / shard_name(shard)
        expected = counts.lengths.get(max_seq_length)
        if expected is None or not file.exists() or file.stat().st_size != expected.file_bytes:
            return None
    return counts


def write_shard(item: Shard, *, plan: ShardSpec, advance: Advance) -> None:
    """Write the files of a shard, one per length, and its counts, unless they are complete already."""
    if read_result(plan, item) is not None:
        advance(item.text_bytes)
        return
    tokenizer = _tokenizer(plan.vocab_directory)
    documents, counts = _tokenize(item, plan, tokenizer, advance)
    for max_seq_length, per_row in zip(plan.max_seq_lengths, plan.instances_per_row, strict=True):
        spec = row_spec(max_seq_length, vocab_size=tokenizer.vocab_size, instances_per_row=per_row)
        rng = _generator(plan.seed, item, max_seq_length)
        instances = make_instances(
            documents,
            max_seq_length=min(max_seq_length, plan.max_instance_length or max_seq_length),
            objective=plan.objective,
            recipe=plan.recipe,
            short_seq_prob=plan.short_seq_prob,
            rng=rng,
            word_starts=tokenizer.is_word_start,
        )
        lengths = instance_lengths(instances)
        if per_row == 1:
            placement = one_per_row(len(instances))
        else:
            # Packing orders sequences by their longest instance. Evaluation takes the first sequences of a split:
            # shuffled, they are representative.
            packed = best_fit(lengths, max_seq_length=max_seq_length, instances_per_row=per_row)
            placement = packed.shuffled(rng)
        rows = encode_rows(
            instances,
            placement=placement,
            documents=documents,
            word_starts=tokenizer.is_word_start,
            special=tokenizer.special_ids,
            spec=spec,
            words_span_segments=plan.recipe == "original",
        )
        file = dataset_directory(plan.out, max_seq_length=max_seq_length) / shard_name(item)
        _write_records(file, rows, record_prefix(spec))
        counts.lengths[max_seq_length] = LengthCounts(
            num_rows=len(rows),
            num_instances=len(instances),
            num_tokens=int(lengths.sum()),
            num_token_pairs=int((lengths**2).sum()),
            num_labels=int(instances.labels.sum()),
            file_bytes=file.stat().st_size,
        )
    write_json(_result_path(plan, item), dataclasses.asdict(counts))


def _result_path(plan: ShardSpec, shard: Shard) -> Path:
    return Path(plan.results) / f"{shard.split}-{shard.index:05d}-of-{shard.count:05d}.json"


@functools.lru_cache(maxsize=1)  # a process builds many shards with one vocabulary
def _tokenizer(directory: str) -> Tokenizer:
    return load_tokenizer(directory)


def _generator(seed: int, shard: Shard, max_seq_length: int) -> random.Random:
    """Return the random generator of a shard at a length; no two share a seed."""
    text = f"{seed} {shard.split} {shard.index} {shard.count} {max_seq_length}".encode()
    return random.Random(int.from_bytes(hashlib.blake2b(text, digest_size=16).digest()))


def _tokenize(
    shard: Shard, plan: ShardSpec, tokenizer: Tokenizer, advance: Advance
) -> tuple[TokenizedDocuments, ShardCounts]:
    """Read and tokenize a shard's documents, plus donors of a random B if the shard contains only one document."""
    remaining = plan.intermediate.read(split=shard.split, low=shard.low, high=shard.high)
    counts = ShardCounts(num_documents=sum(document.is_first_part for document in remaining))
    dtype = np.dtype(tokenizer.ids_dtype)
    ids, lengths, segments, keys = [], [], [], []
    num_own, paragraphs = 0, bytearray()

    def add(document: StoredDocument) -> None:
        encoded_ids, encoded_lengths = _encode(document, tokenizer, plan.language)
        if len(encoded_ids):
            ids.append(encoded_ids)
            lengths.append(encoded_lengths)
            segments.append(len(encoded_lengths))
            keys.append(document.key)

    remaining.reverse()
    while remaining:
        document = remaining.pop()  # frees the text once it is tokenized
        add(document)
        num_own = len(keys)
        counts.num_bytes += sum(len(text.encode()) for text in document.texts)
        paragraphs += _sampled_hashes(document.texts, plan.paragraphs_below)
        advance(sum(map(len, document.texts)))
    if plan.objective == "mlm+nsp" and num_own and len(set(keys)) == 1:
        others = plan.intermediate.read_others(
            key=keys[0], split=shard.split, start=shard.high % (1 << 64), count=_NUM_DONORS
        )
        for document in others:
            add(document)
    own = np.concatenate([*ids[:num_own], np.empty(0, dtype)])
    counts.paragraphs = paragraphs.hex()
    counts.num_tokens = len(own)
    counts.num_unknown = int(np.count_nonzero(own == tokenizer.unk_id))
    counts.max_token_id = int(max(own.max(initial=0), tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id))
    documents = TokenizedDocuments(
        ids=np.concatenate([own, *ids[num_own:]]),
        segment_bounds=_bounds(np.concatenate([*lengths, np.empty(0, np.int64)])),
        document_bounds=_bounds(np.array(segments, np.int64)),
        keys=np.array(keys, np.uint64),
        num_own=num_own,
    )
    return documents, counts


def _encode(document: StoredDocument, tokenizer: Tokenizer, language: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a document's ids and the lengths of its non-empty sentences."""
    sentences = document_sentences(document.texts, is_split=document.is_split, language=language)
    encoded = tokenizer.encode_sentences(sentences)
    return encoded.ids, encoded.lengths[encoded.lengths > 0]


def _sampled_hashes(texts: list[str], below: int) -> bytes:
    """Return the concatenated hashes of the texts whose hash, as a number, is below `below`."""
    hashes = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    if below < 1 << 64:
        limit = below.to_bytes(8)  # big-endian bytes sort like the numbers
        hashes = [item for item in hashes if item < limit]
    return b"".join(hashes)


def _bounds(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _write_records(file: Path, rows: np.ndarray, prefix: bytes) -> None:
    """Write an ArrayRecord file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    size = rows.shape[1] * rows.itemsize
    data = rows.tobytes()
    with replacing(file) as partial:
        try:
            writer = array_record_module.ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
            for start in range(0, len(data), size):
                writer.write(prefix + data[start : start + size])
            writer.close()
            reader = array_record_module.ArrayRecordReader(str(partial))
            complete = reader.num_records() == len(rows)
            reader.close()
        except (RuntimeError, ValueError, OSError) as error:  # the C++ library raises RuntimeError for everything
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, str(error)) from None
            raise UserError(f"{file} cannot be written: {error}") from None
        if not complete:
            raise UserError(
                f"{file} was not written completely: check that the disk is not full, then run the same command again"
            )
