"""Texts, and how tests write and read them."""

import bz2
import gzip
import io
import lzma
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import zstandard

from bert_jax.data.documents import Document, read_documents

PARAGRAPHS = [
    "It was a bright cold day in April, and the clocks were striking thirteen. Nobody on the stairs looked up at all.",
    "The well-known lighthouse keeper (who had seen it all before) climbed the stairs for the last time; he was tired.",
    "“Was he?” she asked. Nobody answered her, so she went on writing her letter by the light of a single candle.",
    "On the far side of the harbour lay three ships, each of them older than anyone who had sailed in one of them.",
    "A paragraph of one sentence can be quite short.",
    "Then there are those which go on and on, with comma after comma, as if their author had been paid by the word, "
    "which may well have been the case. Others stop early. This one has several sentences, and the last of them ends "
    "in the middle of the third line, or wherever the width of the page makes it end.",
]

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(inputs: str | list[str] | Path, **options) -> list[Document]:
    return list(read_documents(str(inputs) if isinstance(inputs, Path) else inputs, **options))


def paragraphs_of(path: Path, **options) -> list[list[str]]:
    return [document.sentences for document in read(path, split_sentences=False, **options)]


def squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
