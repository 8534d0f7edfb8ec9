"""Estimate, before anything is read, how large a data set will be and how long it takes to make."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from bert_jax.data.opening import without_compression
from bert_jax.data.records import row_spec
from bert_jax.data.source import TextSource
from bert_jax.errors import UserError
from bert_jax.progress import duration, format_bytes

# By how much text grows when it is decompressed: novels, each packed with the program's default setting.
_EXPANSION = {".gz": 2.6, ".bz2": 3.6, ".xz": 3.7, ".zst": 2.7}
_BYTES_A_TOKEN = 4.4  # of English; other languages have fewer, Chinese 3
_FILLED_SHARE = 0.85  # of a row's positions, the rest is padding
_RECORD_BYTES = 68  # that ArrayRecord and the Example around a row take
_TEXT_BYTES_A_SECOND = 5e6  # a core, one length: benchmarks/data_set.py


def estimate_text(sources: Sequence[TextSource]) -> int:
    """Return about how many bytes of text the sources hold."""
    return int(sum(source.size * _EXPANSION.get(without_compression(source.path)[1], 1.0) for source in sources))


def describe_estimate(text_bytes: int, *, max_seq_lengths: Sequence[int], num_workers: int) -> str:
    """Say in a line what will come out and when."""
    rows = ", ".join(f"{_num_rows(text_bytes, length):,} rows of {length}" for length in max_seq_lengths)
    size = format_bytes(_data_set_bytes(text_bytes, max_seq_lengths))
    seconds = text_bytes / _TEXT_BYTES_A_SECOND / num_workers
    return (
        f"{format_bytes(text_bytes)} of text, more or less: about {rows}, {size} in all (while it is made, "
        f"{format_bytes(text_bytes)} more); about {duration(seconds)} with {num_workers} workers"
    )


def check_room(out: Path, *, text_bytes: int, max_seq_lengths: Sequence[int]) -> None:
    """Compare what is still to be written with what the disk has left.

    Raises:
      UserError: if the disk is too small.
    """
    existing = next(parent for parent in [out, *out.parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    needed = _data_set_bytes(text_bytes, max_seq_lengths) + text_bytes
    needed -= sum(path.stat().st_size for path in out.rglob("*") if path.is_file())  # of a build that was stopped
    if needed > free:
        raise UserError(
            f"the disk of {existing} has {format_bytes(free)} free and about {format_bytes(needed)} are needed: "
            "free some, or choose another --out"
        )


def _num_rows(text_bytes: int, max_seq_length: int) -> int:
    return int(text_bytes / _BYTES_A_TOKEN / (max_seq_length * _FILLED_SHARE)) + 1


def _data_set_bytes(text_bytes: int, max_seq_lengths: Sequence[int]) -> int:
    sizes = {length: row_spec(length, vocab_size=1).num_bytes + _RECORD_BYTES for length in max_seq_lengths}
    return sum(_num_rows(text_bytes, length) * size for length, size in sizes.items())
