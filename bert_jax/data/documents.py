"""Read the user's inputs as documents, in constant memory for any size."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path

from bert_jax.data import formats, tfds_text
from bert_jax.data.embedded_corpus import EMBEDDED, embedded_source, read_embedded_corpus
from bert_jax.data.opening import open_texts
from bert_jax.data.sentences import split_paragraph
from bert_jax.data.source import Document, ReadReport, TextSource
from bert_jax.errors import UserError
from bert_jax.locations import refuse_url

__all__ = ["Document", "ReadReport", "TextSource", "find_sources", "read_documents", "read_source", "split_paragraph"]

MAX_PART = 1 << 20  # characters; a longer document is split into parts


def find_sources(inputs: str | Sequence[str], *, leave_out: Sequence[Path] = ()) -> list[TextSource]:
    """Find the sources that the user named, in an order that depends only on their names.

    Each input is a file, a folder (read recursively), a glob, "tfds:NAME" or "tfds:DIRECTORY" (with ":FEATURE" if the
    text is not in `text`), or "embedded"; a string may name several, separated by commas. Hidden files in folders and
    the folders `leave_out` (such as a run's own output) are skipped. A file's source name is its path relative to the
    deepest folder that contains all the files.

    Raises:
        UserError: if an input matches nothing, or is a data set that cannot be read.
    """
    files: set[Path] = set()
    others: list[TextSource] = []
    for item in dict.fromkeys(_items(inputs)):
        refuse_url(item, name="data.input")
        if item == EMBEDDED:
            others.append(embedded_source())
        elif item.startswith(tfds_text.PREFIX):
            others.extend(tfds_text.find_tfds_sources(item))
        else:
            files.update(_find_files(item, leave_out={folder.resolve() for folder in leave_out}))
    return _file_sources(sorted(files)) + others


def read_documents(
    inputs: str | Sequence[str],
    *,
    format: str = "auto",
    language: str = "en",
    split_sentences: bool = True,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Read all documents of all sources, one source after the other.

    Raises:
        UserError: as `find_sources` and `read_source`, and if all sources together yield no text.
    """
    report = ReadReport() if report is None else report
    for source in find_sources(inputs):
        yield from read_source(source, format=format, language=language, split_sentences=split_sentences, report=report)
    report.require_text(inputs)


def read_source(
    source: TextSource,
    *,
    format: str = "auto",
    language: str = "en",
    split_sentences: bool = True,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Read the documents of a source, and count them in `report`.

    `format` is "auto" (detected from the first 64 KiB of each text) or one of `formats.FORMATS`; it is ignored for TFDS
    and the embedded corpus. Without `split_sentences`, prose comes as paragraphs for `split_paragraph`, with `is_split`
    false; the format with one sentence per line is always split. Text that is mostly not UTF-8 is skipped and counted.

    Raises:
        UserError: for an unknown format; a file that cannot be read or is damaged; JSON lines without any valid line.
    """
    report = ReadReport() if report is None else report
    if format != "auto" and format not in formats.FORMATS:
        raise UserError(f"data.format: '{format}' is unknown: type auto, {', '.join(formats.FORMATS)}")
    splitter = language if split_sentences else None
    if source.kind == "embedded":
        report.add_format(source.name, "prose")
        for document in read_embedded_corpus():
            events = [*document.sentences, None]
            yield from _assemble(events, prefix=document.key, language=splitter, is_split=False, report=report)
    elif source.kind == "tfds":
        report.add_format(source.name, "tfds")
        events = tfds_text.read_tfds_events(source, report=report)
        yield from _assemble(events, prefix=source.name, language=splitter, is_split=False, report=report)
    else:
        yield from _read_file(source, format=format, language=splitter, report=report)


def _read_file(source: TextSource, *, format: str, language: str | None, report: ReadReport) -> Iterator[Document]:
    for stream in open_texts(source.path):
        head = stream.peek(formats.SAMPLE)
        if not formats.is_text(head):
            report.not_text += 1
            report.add_problem(
                f"{stream.name}: not UTF-8 text (convert it, for example with: iconv -f ENCODING -t UTF-8)"
            )
            continue
        actual = formats.detect_format(head, name=stream.name) if format == "auto" else format
        report.add_format(source.name, actual)
        yield from _assemble(
            formats.read_events(stream, format=actual, report=report),  # type: ignore[arg-type]  # checked above
            prefix=source.name + stream.name.removeprefix(source.path),
            language=language,
            is_split=actual == "sentences",
            report=report,
        )


def _assemble(
    events: Iterable[str | None], *, prefix: str, language: str | None, is_split: bool, report: ReadReport
) -> Iterator[Document]:
    """Group paragraphs into documents (None ends one) and parts of documents."""
    split = language is not None and not is_split
    is_split = is_split or split
    index, size, sentences, is_first = 0, 0, [], True
    for event in events:
        if event is not None:
            report.paragraphs += 1
            report.characters += len(event)
            size += len(event)
            if split:
                sentences += split_paragraph(event, language=language or "")
            else:
                sentences.append(event)
        if sentences and (event is None or size >= MAX_PART):
            report.documents += is_first
            yield Document(key=f"{prefix}#{index}", sentences=sentences, is_split=is_split)
            size, sentences, is_first = 0, [], False
        if event is None and not is_first:
            index, is_first = index + 1, True


def _items(inputs: str | Sequence[str]) -> list[str]:
    if not isinstance(inputs, str):
        items = list(inputs)
    elif os.path.exists(inputs):  # noqa: PTH110  a path with a comma in it
        items = [inputs]
    else:
        items = [item.strip() for item in inputs.split(",")]
    items = [item for item in items if item]
    if not items:
        raise UserError("data.input is empty: name files, a folder, a glob, tfds:NAME or embedded")
    return items


def _find_files(item: str, *, leave_out: Set[Path]) -> list[Path]:
    path = Path(os.path.expanduser(item))  # noqa: PTH111  raises for no name, nor does `exists` below
    # pathlib takes no absolute globs.
    names = [path] if os.path.exists(path) else glob.glob(str(path), recursive=True)  # noqa: PTH110, PTH207
    matches = [Path(name) for name in names]
    files = [file for match in matches for file in (_walk(match, leave_out) if match.is_dir() else [match])]
    if not files:
        raise UserError(
            f"data.input: '{item[:200]}' matches no file: name a file, a folder, a glob in quotes, tfds:NAME or "
            "embedded"
        )
    for file in files:
        if file.exists() and not file.is_file():
            raise UserError(
                f"data.input: '{file}' is not a regular file, and input is read more than once: save it to a file"
            )
    return [Path(os.path.normpath(file.absolute())) for file in files]


def _walk(folder: Path, leave_out: Set[Path]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"data.input: cannot read the folder {error.filename}: {error.strerror}") from error

    entered: set[Path] = set()  # links between folders may form a cycle
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := Path(parent).resolve()) in entered or real in leave_out:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(parent, name)
            if not name.startswith(".") and (
                file.is_file() or file.is_symlink()
            ):  # skips pipes; a dead link is an error later
                yield file


def _file_sources(paths: Sequence[Path]) -> list[TextSource]:
    if not paths:
        return []
    root = os.path.commonpath([path.parent for path in paths])
    try:
        return [
            TextSource(name=path.relative_to(root).as_posix(), size=path.stat().st_size, path=str(path))
            for path in paths
        ]
    except OSError as error:
        raise UserError(f"data.input: cannot read {error.filename}: {error.strerror}") from error
