"""Intermediate shards: the documents of a corpus, shuffled on disk in constant memory.

A document (or part of a long one) gets a position: a 64-bit hash of its key and part. A process that reads sources
collects documents into blocks, sorts each block by position, and writes it as a file of text and a file of index
entries. A shard of the data set is a range of positions: its documents are contiguous in every block, so reading it
costs one short read per block. Positions and blocks do not depend on the number of processes.

A second hash, of the key alone, splits documents into held-out and training: no document has parts in both.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from bert_jax.data.documents import read_source
from bert_jax.data.source import ReadReport, TextLayout, TextSource
from bert_jax.data.workers import Advance
from bert_jax.files import write_json
from bert_jax.json_files import load_json
from bert_jax.json_forms import Between, Count

BLOCK_BYTES = 16 << 20  # of text per block, which a process holds in memory
CHUNK_BYTES = 16 << 20  # of sources per chunk, at least: many small files share a block
_ADVANCE_BYTES = 1 << 20
IS_SPLIT, IS_FIRST_PART = 1, 2  # flags of an entry

INDEX = np.dtype(
    [("position", "<u8"), ("key", "<u8"), ("offset", "<u8"), ("length", "<u4"), ("flags", "<u4")], align=True
)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Sources that one process reads in one go: the unit of resuming."""

    index: int
    sources: tuple[TextSource, ...]


@dataclasses.dataclass(frozen=True)
class ChunkSpec:
    """The output directory, and the settings that determine the documents and their order."""

    directory: str
    layout: TextLayout
    language: str
    seed: int
    max_part: int = 0  # characters of a part of a document; 0: the default


@dataclasses.dataclass(frozen=True)
class StoredDocument:
    """A document, or a part of one: sentences if `is_split`, else paragraphs."""

    key: int
    is_first_part: bool
    is_split: bool
    texts: list[str]


@dataclasses.dataclass(frozen=True)
class DoneChunk:
    """What `done.json` says of a complete chunk."""

    paragraphs: Count
    digest: int  # the sum of hashes of the documents
    report: ReadReport
    blocks: Annotated[int, Between(0, 1 << 20, "a number of blocks")]


def read_done(directory: Path) -> DoneChunk | None:
    """Return what is known about the chunk in `directory` if it is complete; a damaged file means that it is not."""
    try:
        return load_json(directory / "done.json", form=DoneChunk)
    except (FileNotFoundError, ValueError):
        return None


def make_chunks(sources: Sequence[TextSource]) -> list[Chunk]:
    """Group adjacent sources into chunks of at least `CHUNK_BYTES`."""
    groups: list[list[TextSource]] = []
    size = CHUNK_BYTES
    for source in sources:
        if size >= CHUNK_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(source)
        size += source.size
    return [Chunk(index, tuple(group)) for index, group in enumerate(groups)]


def write_chunk(item: Chunk, *, spec: ChunkSpec, advance: Advance) -> None:
    """Write the blocks of a chunk, unless they are complete already."""
    directory = Path(spec.directory) / f"{item.index:06d}"
    if read_done(directory) is not None:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    report, blocks = ReadReport(), _BlockWriter(directory)
    paragraphs = digest = unreported = 0
    for source in item.sources:
        previous, part = "", -1
        for document in read_source(
            source,
            layout=spec.layout,
            language=spec.language,
            split_sentences=False,
            report=report,
            max_part=spec.max_part,
        ):
            text = "\n".join(item.replace("\n", " ") for item in document.sentences).encode("utf-8", "replace")
            if not text:
                continue
            part = part + 1 if document.key == previous else 0
            previous = document.key
            flags = IS_SPLIT * document.is_split + IS_FIRST_PART * (part == 0)
            position, key = _hash(spec.seed, document.key, part), _hash(spec.seed, document.key)
            blocks.append(position, key, flags, text)
            paragraphs += len(document.sentences)
            digest += int.from_bytes(
                hashlib.blake2b(b"%d %d %d " % (position, key, flags) + text, digest_size=16).digest()
            )
            unreported += len(text)
            if unreported >= _ADVANCE_BYTES:
                advance(unreported)
                unreported = 0
    blocks.flush()
    advance(unreported)
    write_json(
        directory / "done.json",
        {"paragraphs": paragraphs, "digest": digest, "report": dataclasses.asdict(report), "blocks": blocks.count},
    )


def _hash(seed: int, key: str, part: int = -1) -> int:
    text = f"{seed}\0{part}\0{key}".encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


class _BlockWriter:
    """Writer of blocks: collects documents and writes a block when it is full."""

    def __init__(self, directory: Path):
        self.count = 0
        self._directory = directory
        self._clear()

    def append(self, position: int, key: int, flags: int, text: bytes) -> None:
        self._entries.append((position, key, flags))
        self._texts.append(text)
        self._size += len(text)
        if self._size >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._texts:
            return
        entries = np.array(self._entries, np.uint64)
        order = np.lexsort((entries[:, 1], entries[:, 0]))
        lengths = np.array([len(text) for text in self._texts], np.int64)[order]
        index = np.zeros(len(order), INDEX)
        index["position"], index["key"], index["flags"] = entries[order].T
        index["length"] = lengths
        index["offset"] = np.cumsum(lengths) - lengths
        with (self._directory / f"{self.count:06d}.text").open("wb") as file:
            file.writelines(self._texts[number] for number in order)
        np.save(self._directory / f"{self.count:06d}.npy", index)
        self.count += 1
        self._clear()

    def _clear(self) -> None:
        self._entries: list[tuple[int, int, int]] = []
        self._texts: list[bytes] = []
        self._size = 0


@dataclasses.dataclass(frozen=True)
class IntermediateShards:
    """Complete intermediate shards.

    Attributes:
      directory: their folder.
      blocks: names of the blocks, in the order of the sources.
      heldout_below: documents whose key hash is smaller are held out.
      by_part: there is only one document, and parts of it are held out: those whose position is smaller.
    """

    directory: str
    blocks: tuple[str, ...]
    heldout_below: int
    by_part: bool = False

    def indexes(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each block's name and its index entries, memory-mapped."""
        for block in self.blocks:
            yield block, np.load(Path(self.directory) / f"{block}.npy", mmap_mode="r")

    def in_split(self, index: np.ndarray, split: str) -> np.ndarray:
        """Return a mask of the index entries that belong to `split`."""
        heldout = index["position" if self.by_part else "key"] < np.uint64(self.heldout_below)
        return heldout if split == "validation" else ~heldout

    def read(self, *, split: str, low: int, high: int) -> list[StoredDocument]:
        """Return the documents of a split with positions in [low, high), in the order of their positions."""
        entries, texts = [], []
        for block, index in self.indexes():
            start = np.searchsorted(index["position"], np.uint64(low), side="left")
            end = np.searchsorted(index["position"], np.uint64(high - 1), side="right")
            selected = index[start:end]
            selected = selected[self.in_split(selected, split)]
            if len(selected):
                entries.append(selected)
                texts += self._read_texts(block, selected)
        return _in_order(entries, texts)

    def read_others(self, *, key: int, split: str, start: int, count: int) -> list[StoredDocument]:
        """Return up to `count` documents with another key than `key`: the next ones from position `start`, cyclically.

        They come from `split`, or from the training documents if `split` has no other.
        """
        for donor_split in dict.fromkeys((split, "train")):
            entries, texts = [], []
            for _, index in self.indexes():
                others = index[(index["key"] != np.uint64(key)) & self.in_split(index, donor_split)]
                nearest = np.argsort(others["position"] - np.uint64(start), kind="stable")[:count]
                entries.append(others[nearest])
            together = np.concatenate(entries)
            if len(together):
                limit = np.sort(together["position"] - np.uint64(start))[:count][-1]
                entries = [part[part["position"] - np.uint64(start) <= limit] for part in entries]
                for block, part in zip(self.blocks, entries, strict=True):
                    texts += self._read_texts(block, part)
                return _in_order(entries, texts)
        return []

    def _read_texts(self, block: str, entries: np.ndarray) -> list[bytes]:
        with (Path(self.directory) / f"{block}.text").open("rb") as file:
            texts = []
            for offset, length in zip(entries["offset"].tolist(), entries["length"].tolist(), strict=True):
                file.seek(offset)
                texts.append(file.read(length))
            return texts


def _in_order(entries: list[np.ndarray], texts: list[bytes]) -> list[StoredDocument]:
    if not texts:
        return []
    index = np.concatenate(entries)
    order = np.lexsort((index["key"], index["position"]))  # stable: ties keep the order of the sources
    return [
        StoredDocument(
            key=int(index["key"][number]),
            is_first_part=bool(index["flags"][number] & IS_FIRST_PART),
            is_split=bool(index["flags"][number] & IS_SPLIT),
            texts=texts[number].decode("utf-8").split("\n"),
        )
        for number in order
    ]
