"""Estimate the size of a data set and the time to build it, before reading the text."""

import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from bert_jax.data.opening import without_compression
from bert_jax.data.records import row_spec
from bert_jax.data.source import TextSource
from bert_jax.errors import UserError, counted
from bert_jax.progress import duration, format_bytes

# Expansion of compressed text, measured on novels with each program's default settings.
_EXPANSION = {".gz": 2.6, ".bz2": 3.6, ".xz": 3.7, ".zst": 2.7, ".zip": 2.6, ".parquet": 1.8}
_BYTES_PER_TOKEN = 4.4  # English; other languages have fewer, Chinese 3
_FILLED_FRACTION = 0.85  # of the positions of a sequence; the rest is padding
# Half of the sequences for next-sentence prediction take their second text from elsewhere, and what it replaced is
# read again: 1.21 for the embedded corpus at length 128.
_TIMES_READ = {"mlm+nsp": 1.2}
_RECORD_BYTES = 68  # overhead of ArrayRecord and the Example around a row
_TEXT_BYTES_PER_SECOND = 5e6  # per core, one length: benchmarks/data_set.py
_EMBEDDED_BYTES_PER_SECOND = 0.7e6  # of prose, by one process, which parses Python's sources


def estimate_text(sources: Sequence[TextSource]) -> int:
    """Return the estimated bytes of text in the sources."""
    return int(sum(source.size * _expansion(source.path) for source in sources))


def _expansion(path: str) -> float:
    return _EXPANSION.get(without_compression(path)[1] or PurePosixPath(path).suffix.lower(), 1.0)


def describe_estimate(
    text_bytes: int, *, embedded_bytes: int, max_seq_lengths: Sequence[int], num_workers: int, objective: str
) -> str:
    """Return a line with the estimated size and build time. `embedded_bytes` of the text are the embedded corpus."""
    rows = {length: estimate_rows(text_bytes, max_seq_length=length, objective=objective) for length in max_seq_lengths}
    sequences = ", ".join(f"{counted(number, 'sequence')} of {length}" for length, number in rows.items())
    size = format_bytes(_data_set_bytes(text_bytes, max_seq_lengths, objective=objective))
    seconds = text_bytes / _TEXT_BYTES_PER_SECOND / num_workers + embedded_bytes / _EMBEDDED_BYTES_PER_SECOND
    time = duration(seconds) if seconds >= 1 else "less than 1 s"
    return (
        f"estimate: {format_bytes(text_bytes)} of text, {sequences}, {size} in total (plus "
        f"{format_bytes(text_bytes)} during the build); {time} with {counted(num_workers, 'worker')}"
    )


def check_disk_space(out: Path, *, text_bytes: int, max_seq_lengths: Sequence[int], objective: str) -> None:
    """Compare the estimated size of the files still to be written with the free disk space.

    Raises:
      UserError: if the disk is too small.
    """
    existing = next(parent for parent in [out, *out.parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    needed = _data_set_bytes(text_bytes, max_seq_lengths, objective=objective) + text_bytes
    needed -= sum(path.stat().st_size for path in out.rglob("*") if path.is_file())  # files of an interrupted build
    if needed > free:
        raise UserError(
            f"the disk of {existing} has {format_bytes(free)} free, but about {format_bytes(needed)} are needed: "
            "free disk space, or choose another --out"
        )


def estimate_rows(text_bytes: int, *, max_seq_length: int, objective: str) -> int:
    """Return the estimated number of sequences of a text, for one of `config.data.objective`."""
    special = 2 if objective == "mlm" else 3
    tokens = text_bytes / _BYTES_PER_TOKEN * _TIMES_READ.get(objective, 1.0)
    return int(tokens / max(max_seq_length * _FILLED_FRACTION - special, 1)) + 1


def _data_set_bytes(text_bytes: int, max_seq_lengths: Sequence[int], *, objective: str) -> int:
    sizes = {length: row_spec(length, vocab_size=1).num_bytes + _RECORD_BYTES for length in max_seq_lengths}
    rows = {length: estimate_rows(text_bytes, max_seq_length=length, objective=objective) for length in sizes}
    return sum(rows[length] * size for length, size in sizes.items())
