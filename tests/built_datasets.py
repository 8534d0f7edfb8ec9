"""Data sets of a small generated corpus, and what is in them."""

import hashlib
from pathlib import Path

import pytest
from text_corpus import make_documents, marker, write_corpus, write_vocabulary

from bert_jax.config import DataConfig
from bert_jax.data import intermediate, survey
from bert_jax.data.builder import build_dataset
from bert_jax.data.loader import PretrainingBatches
from bert_jax.data.tokenization import load_tokenizer

LENGTH = 64


def make_corpus(folder: Path) -> Path:
    """Return a folder of text of 150 documents, next to a vocabulary for it."""
    write_vocabulary(folder / "vocabulary")
    return write_corpus(folder / "text", make_documents(150))


def use_small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a corpus of a few hundred kB fall into several shards, chunks and blocks."""
    monkeypatch.setattr(survey, "_MIN_SHARD_BYTES", 1 << 16)
    monkeypatch.setattr(intermediate, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(intermediate, "BLOCK_BYTES", 1 << 15)


def config_for(corpus: Path, **changes) -> DataConfig:
    settings = {"heldout_fraction": 0.1, "num_workers": 1, **changes}
    return DataConfig(input=str(corpus), vocab=str(corpus.parent / "vocabulary" / "vocab.txt"), **settings)


def build(config: DataConfig, out: Path, *, lengths=(LENGTH,), vocab_size=0, **changes):
    lines: list[str] = []
    info = build_dataset(
        config, out=out, max_seq_lengths=lengths, vocab_size=vocab_size, report=lines.append, **changes
    )
    return info, lines


def content(out: Path) -> dict[str, str]:
    """Return a hash of every file of a data set."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(out: Path, split: str, *, length=LENGTH) -> list[tuple[list[int], int]]:
    """Return (ids without padding, label) of every row of a split, in order."""
    batches = PretrainingBatches(out, max_seq_length=length, split=split, batch_size=50, seed=0, shuffle=False)
    rows = []
    for number in range(len(batches)):
        batch = batches[number]
        for ids, lengths, label in zip(
            batch["input_ids"], batch["segment_lengths"], batch["next_sentence_labels"], strict=True
        ):
            if lengths.sum():
                rows.append((ids[: lengths.sum()].tolist(), int(label[0])))
    return rows


def markers_of(out: Path, split: str, *, only_a: bool = False) -> set[int]:
    """Return which documents' markers occur in the rows of a split."""
    pieces = load_tokenizer(out / "vocab").pieces
    known = {marker(number): number for number in range(400)}
    found = set()
    for ids, _ in rows_of(out, split):
        tokens = ids[: ids.index(3)] if only_a else ids
        found |= {known[pieces[number]] for number in tokens if pieces[number] in known}
    return found
