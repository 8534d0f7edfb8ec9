"""Read the user's inputs as documents, in constant memory for any size."""

import functools
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path

from bert_jax.data import formats, tfds_text
from bert_jax.data.embedded_corpus import EMBEDDED, embedded_source, read_embedded_corpus
from bert_jax.data.file_types import NOT_TEXT, markup, why_not_text, why_not_utf8
from bert_jax.data.opening import ByteStream, open_texts
from bert_jax.data.row_text import why_not_prose
from bert_jax.data.sentences import split_paragraph
from bert_jax.data.source import LEFT_OUT, Document, NoTextError, ReadReport, TextLayout, TextSource
from bert_jax.errors import UserError
from bert_jax.locations import refuse_url

__all__ = [
    "Document",
    "ReadReport",
    "TextLayout",
    "TextSource",
    "find_sources",
    "read_documents",
    "read_source",
    "split_paragraph",
]

MAX_PART = 1 << 20  # characters; a longer document is split into parts


def find_sources(
    inputs: str | Sequence[str], *, leave_out: Sequence[Path] = (), download: bool = True
) -> list[TextSource]:
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
            others.extend(tfds_text.find_tfds_sources(item, download=download))
        else:
            files.update(_find_files(item, leave_out={Path(os.path.realpath(folder)) for folder in leave_out}))
    return _file_sources(sorted(files)) + others


def read_documents(
    inputs: str | Sequence[str],
    *,
    format: str = "auto",
    language: str = "en",
    split_sentences: bool = True,
    report: ReadReport | None = None,
    layout: TextLayout | None = None,
) -> Iterator[Document]:
    """Read all documents of all sources, one source after the other.

    Raises:
        UserError: as `find_sources` and `read_source`, and if all sources together yield no text.
    """
    report = ReadReport() if report is None else report
    for source in find_sources(inputs):
        yield from read_source(
            source, format=format, language=language, split_sentences=split_sentences, report=report, layout=layout
        )
    report.require_text(inputs)


def read_source(
    source: TextSource,
    *,
    format: str = "auto",
    language: str = "en",
    split_sentences: bool = True,
    report: ReadReport | None = None,
    layout: TextLayout | None = None,
    max_part: int = 0,
) -> Iterator[Document]:
    """Read the documents of a source, and count them in `report`.

    `format` is "auto" (detected from the first 64 KiB of each text) or one of `formats.FORMATS`; it is ignored for TFDS
    and the embedded corpus. Without `split_sentences`, prose comes as paragraphs for `split_paragraph`, with `is_split`
    false; the format with one sentence per line is always split. Files that are not UTF-8 text, or have no text at the
    layout's key or column, are skipped and counted. A document longer than `max_part`
    (0: `MAX_PART`) characters comes in parts.

    Raises:
        UserError: for an unknown format; a file that cannot be read or is damaged.
    """
    report = ReadReport() if report is None else report
    layout = TextLayout() if layout is None else layout
    format = layout.format if format == "auto" else format
    if format != "auto" and format not in formats.FORMATS:
        raise UserError(f"data.format: '{format}' is unknown: type auto, {', '.join(formats.FORMATS)}")
    splitter = language if split_sentences else None
    assemble = functools.partial(_assemble, language=splitter, report=report, max_part=max_part or MAX_PART)
    if source.kind == "embedded":
        report.add_format(source.name, "prose")
        for document in read_embedded_corpus():
            events = [*document.sentences, None]
            yield from assemble(events, prefix=document.key, is_split=False)
    elif source.kind == "tfds":
        report.add_format(source.name, "tfds")
        events = tfds_text.read_tfds_events(source, report=report)
        yield from assemble(events, prefix=source.name, is_split=False)
    else:
        yield from _read_file(source, format=format, assemble=assemble, report=report, layout=layout)


def _read_file(
    source: TextSource,
    *,
    format: str,
    assemble: Callable[..., Iterator[Document]],
    report: ReadReport,
    layout: TextLayout,
) -> Iterator[Document]:
    for stream in open_texts(source.path):
        actual = _find_format(stream, format=format, report=report, documents=layout.documents)
        if actual is None:
            continue
        before, problems = _counts(report), len(report.problems)
        known = report.formats.get(source.name)
        report.add_format(source.name, actual)
        is_new_member = stream.name != source.path
        try:
            for document in assemble(
                formats.read_events(stream, format=actual, report=report, layout=layout),
                prefix=source.name + stream.name.removeprefix(source.path),
                is_split=actual == "sentences" and layout.documents != "lines",
            ):
                if is_new_member:  # with text: an archive may have a million empty ones
                    report.add_members(actual, 1)
                    is_new_member = False
                yield document
        except NoTextError as error:
            size = source.size if stream.path else report.bytes - before["bytes"] + _rest(stream)
            vars(report).update(before)
            del report.problems[problems:], report.formats[source.name]
            report.skipped_rows.pop(stream.name, None)
            if known is not None:
                report.formats[source.name] = known
            report.leave_out(str(error), num_bytes=0 if error.is_metadata else size)
        finally:  # also where a sample ends
            if report.invalid_utf8 > before["invalid_utf8"] and not report.damaged:
                report.damaged = stream.name


def _counts(report: ReadReport) -> dict[str, int]:
    return {name: value for name, value in vars(report).items() if isinstance(value, int)}


def _find_format(stream: ByteStream, *, format: str, report: ReadReport, documents: str) -> formats.Format | None:
    """Return the format of a text; None if it is not text, which is reported."""
    head = stream.peek(formats.SAMPLE)
    binary = formats.binary_format(head)
    if binary is not None and format in ("auto", "parquet", "arrow"):
        return binary
    if reason := why_not_text(head, name=stream.name):
        report.leave_out(f"{stream.name}: {reason}")
        return None
    if not formats.is_text(head):
        report.not_text += 1
        reason = why_not_utf8(head)
        report.add_problem(f"{LEFT_OUT}{stream.name}: {reason}")
        if reason != NOT_TEXT:
            report.miss(f"{stream.name}: {reason}", num_bytes=_rest(stream))
        return None
    if format != "auto":
        return format  # type: ignore[return-value]  # checked by the caller
    actual = formats.detect_format(head, name=stream.name, documents=documents)
    is_prose = actual in ("prose", "sentences")
    if is_prose and (reason := markup(head, name=stream.name) or why_not_prose(formats.sample_lines(head))):
        report.leave_out(f"{stream.name}: {reason}", num_bytes=_rest(stream))
        return None
    return actual


def _rest(stream: ByteStream) -> int:
    """Return how many bytes of a stream are unread."""
    if stream.path:
        return Path(stream.path).stat().st_size
    size = 0
    while block := stream.read(1 << 20):
        size += len(block)
    return size


def _assemble(
    events: Iterable[str | None],
    *,
    prefix: str,
    language: str | None,
    is_split: bool,
    report: ReadReport,
    max_part: int,
) -> Iterator[Document]:
    """Group paragraphs into documents (None ends one) and parts of documents."""
    split = language is not None and not is_split
    is_split = is_split or split
    index, size, sentences, is_first = 0, 0, [], True
    if max_part < MAX_PART:
        events = _cut_paragraphs(events, language=language or "en", max_part=max_part)
    for event in events:
        if event is not None:
            report.paragraphs += 1
            report.characters += len(event)
            size += len(event)
            if split:
                sentences += split_paragraph(event, language=language or "")
            else:
                sentences.append(event)
        if sentences and (event is None or size >= max_part):
            report.documents += is_first
            yield Document(key=f"{prefix}#{index}", sentences=sentences, is_split=is_split)
            size, sentences, is_first = 0, [], False
        if event is None and not is_first:
            index, is_first = index + 1, True


def _cut_paragraphs(events: Iterable[str | None], *, language: str, max_part: int) -> Iterator[str | None]:
    """Yield the events with paragraphs of at most `max_part` characters, cut between sentences."""
    for event in events:
        if event is None or len(event) <= max_part:
            yield event
            continue
        piece: list[str] = []
        size = 0
        for sentence in split_paragraph(event, language=language):
            if piece and size + len(sentence) > max_part:
                yield " ".join(piece)
                piece, size = [], 0
            piece.append(sentence)
            size += len(sentence)
        yield " ".join(piece)


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
    if not files and os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises for a name that is too long
        raise UserError(f"data.input: '{item[:200]}' is a folder without files: name one with the text")
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
        if "state.json" in names:  # a folder of HuggingFace `datasets`: results of earlier calls, kept to save time
            names = [name for name in names if not (name.startswith("cache-") and name.endswith(".arrow"))]
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
