"""What a corpus is, found by reading a sample of it before the work begins."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from bert_jax.config import DataConfig
from bert_jax.data.documents import read_source
from bert_jax.data.estimate import TextSize, estimate_text
from bert_jax.data.losses import check_one_sentence
from bert_jax.data.opening import without_compression
from bert_jax.data.pairs import ONE_DOCUMENT, WHERE_DOCUMENTS_END
from bert_jax.data.sentences import document_sentences
from bert_jax.data.separators import WAYS
from bert_jax.data.source import LEFT_OUT, Document, ReadReport, TextLayout, TextSource
from bert_jax.errors import UserError, counted
from bert_jax.progress import ByteProgress

SAMPLE_CHARS = 8 << 20  # of text that is read to count documents, shared by the kinds of files
_COUNTED_CHARS = 1 << 20  # of a source
_SEEN_CHARS = 1 << 13  # of a source whose documents are not counted
MAX_SOURCES = 1000  # that are opened
_NUM_SHOWN = 3
_SPLIT_CHARS = 1 << 20  # of text whose sentences are counted, shared by the sources
_LEAST_SPLIT_CHARS = 1 << 12  # of a source
_SHOWN_CHARS = 160
_MAX_LEFT_OUT = 8  # files that are named


@dataclasses.dataclass
class Sample:
    """What was read of the sources, and what all of them have according to it."""

    sources: Sequence[TextSource] = ()  # other than the embedded corpus
    opened: Sequence[TextSource] = ()
    embedded: Sequence[TextSource] = ()
    report: ReadReport = dataclasses.field(default_factory=ReadReport)
    documents: float = 0  # of the sources that were read, estimated where the end was not
    unread: list[tuple[str, int]] = dataclasses.field(default_factory=list)  # formats and bytes of the others
    rates: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # documents and their bytes, by format
    num_read: int = 0
    chars_of_suffix: Counter[str] = dataclasses.field(default_factory=Counter)
    text_bytes: float = 0  # of the sources that were opened, estimated where the end was not read
    text_chars: float = 0
    archives: list[str] = dataclasses.field(default_factory=list)
    has_more_members: bool = False  # in archives whose end was not read
    is_complete: bool = True
    one_sentence: int = 0  # documents of one sentence, among the `num_counted` whose sentences were counted
    num_counted: int = 0
    one_sentence_chars: int = 0
    counted_chars: int = 0
    shown: dict[str, list[list[Document]]] = dataclasses.field(default_factory=dict)  # by format and source

    @property
    def scale(self) -> float:
        """Return the number of sources per opened one."""
        return len(self.sources) / max(len(self.opened), 1)

    def size(self) -> TextSize:
        """Return the estimated size of the text in all sources."""
        size = TextSize(
            bytes=int(self.text_bytes * self.scale),
            documents=round(self.num_documents() * self.scale),
            one_sentence=self.one_sentence / max(self.num_counted, 1),
        )
        return size.with_embedded(estimate_text(self.embedded))

    def num_documents(self) -> float:
        """Return the estimated number of documents of all sources that were opened."""
        total = self.documents
        for name, size in self.unread:
            documents, num_bytes = self.rates.get(name, (0, 0))
            total += max(size * documents / num_bytes, 1) if num_bytes else 1
        return total

    def count_sentences(self, document: Document, language: str) -> int:
        """Count a document by whether it has one sentence, and return its characters."""
        num_chars, is_one = sum(map(len, document.sentences)), len(_sentences(document, language)) == 1
        self.num_counted += 1
        self.counted_chars += num_chars
        self.one_sentence += is_one
        self.one_sentence_chars += is_one * num_chars
        return num_chars


def layout_of(config: DataConfig) -> TextLayout:
    """Return where the text is in the files, as the config says."""
    return TextLayout(
        format=config.format,
        text_column=config.text_column,
        text_key=config.text_key,
        documents=config.documents,
    )


def read_sample(sources: Sequence[TextSource], *, config: DataConfig, report: Callable[[str], None]) -> Sample:
    """Read the start of the sources, each kind of file as far as the others.

    Raises:
      UserError: if there is no text, or most of it would be left out.
    """
    others = [source for source in sources if source.kind != "embedded"]  # reading that one takes seconds
    opened = _spread(others, MAX_SOURCES)
    sample = Sample(others, opened, [source for source in sources if source.kind == "embedded"])
    sample.is_complete = len(opened) == len(others)
    quota = SAMPLE_CHARS // max(len({_suffix(source) for source in opened}), 1)
    # A sample is read in seconds, except where an archive has a million members before its first text.
    progress = ByteProgress("looking at the input", total=sum(source.size for source in opened), report=report)
    for source in opened:
        split_chars = max(_SPLIT_CHARS // len(opened), _LEAST_SPLIT_CHARS)
        _read(source, sample, config=config, quota=quota, split_chars=split_chars)
        progress.advance(source.size)
    progress.finish()
    if not sample.embedded:
        sample.report.require_text(config.input)
    return sample


def inspect_corpus(
    sample: Sample, *, config: DataConfig, report: Callable[[str], None], shows_documents: bool = True
) -> list[str]:
    """Report lines that say what was found: files by format, documents, three of them, what is left out.

    Returns the warnings that a build gives later, once the text is read.

    Raises:
      UserError: if the documents allow no next-sentence prediction.
    """
    if sample.embedded:
        report("found: the documentation inside the installed Python")
    if not sample.sources:
        return []
    documents = round(sample.num_documents() * sample.scale)
    report(_describe(sample, documents))
    for number, document in enumerate(_shown(sample) if shows_documents else (), start=1):
        report(_show(number, document, config.language))
    for line in (*_left_out(sample.report), *_warnings(sample, config)):
        report(line)
    if sample.embedded:
        return []
    if documents == 1 and sample.is_complete and config.objective == "mlm+nsp":
        raise UserError(ONE_DOCUMENT)
    if documents == 1:
        report(f"it is one document; {WHERE_DOCUMENTS_END}")
        return []
    return check_one_sentence(
        sample.one_sentence,
        sample.num_counted,
        share_of_text=sample.one_sentence_chars / max(sample.counted_chars, 1),
        objective=config.objective,
    )


def _spread(sources: Sequence[TextSource], number: int) -> Sequence[TextSource]:
    """Return at most `number` sources, at equal distances."""
    if len(sources) <= number:
        return sources
    return [sources[index * len(sources) // number] for index in range(number)]


def _suffix(source: TextSource) -> str:
    """Return what files of one kind have in common, before they are opened."""
    return PurePosixPath(without_compression(source.path)[0]).suffix.lower()


def _read(source: TextSource, sample: Sample, *, config: DataConfig, quota: int, split_chars: int) -> None:
    """Read the start of a source: enough to count its documents, until `quota` characters of its kind are read.

    Sentences are counted in its first `split_chars` characters.
    """
    budget = _COUNTED_CHARS if sample.chars_of_suffix[_suffix(source)] < quota else _SEEN_CHARS
    report, ended, shown = ReadReport(), True, dict[str, Document]()
    # At the end of a block: text is read in blocks, and the rest of a block is not counted.
    num_documents = num_bytes = num_text = 0
    text_bytes = 0
    documents = read_source(
        source, layout=layout_of(config), language=config.language, split_sentences=False, report=report
    )
    for document in documents:
        if len(shown) < _NUM_SHOWN:
            shown.setdefault(document.key, document)
        text_bytes += sum(len(sentence.encode("utf-8", "replace")) for sentence in document.sentences)
        if split_chars > 0:
            split_chars -= sample.count_sentences(document, config.language)
        is_block = report.bytes > num_bytes > 0
        if report.characters >= budget and (is_block or budget == _SEEN_CHARS):
            ended = next(documents, None) is None
            break
        num_documents, num_bytes, num_text = report.documents, report.bytes, text_bytes
    name = next(iter(report.formats.values()), "")
    if shown and len(sample.shown.setdefault(name, [])) < _NUM_SHOWN:
        sample.shown[name].append(list(shown.values()))
    if report.members:
        sample.archives.append(source.name)
        sample.has_more_members |= not ended
    whole = text_bytes
    if not ended:
        whole = max(estimate_text([source]) * (num_text / num_bytes if num_text and num_bytes else 1.0), text_bytes)
    sample.text_bytes += whole
    sample.text_chars += report.characters * whole / max(text_bytes, 1)
    if ended:
        sample.documents += report.documents
    elif budget == _SEEN_CHARS or report.documents < 2:
        sample.unread.append((name, estimate_text([source])))
    else:
        sample.documents += num_documents * max(estimate_text([source]) / num_bytes, 1)
    sample.is_complete &= ended
    if not ended:  # what is left out counts in full, too
        report.bytes = max(report.bytes, estimate_text([source]))
    if budget == _COUNTED_CHARS and num_documents > 1:
        rate = sample.rates.setdefault(name, [0, 0])
        rate[0] += num_documents
        rate[1] += num_bytes
    sample.num_read += report.documents
    sample.chars_of_suffix[_suffix(source)] += report.characters
    sample.report.merge(report)


def _shown(sample: Sample) -> list[Document]:
    """Return documents to show: of every format before a second one of a format."""
    of_format = [[d for level in itertools.zip_longest(*lists) for d in level if d] for lists in sample.shown.values()]
    return [d for level in itertools.zip_longest(*of_format) for d in level if d][:_NUM_SHOWN]


def _describe(sample: Sample, documents: int) -> str:
    sources, num_opened = sample.sources, len(sample.opened)
    formats = Counter(sample.report.formats.values())
    files = ", ".join(f"{count:,} {name.replace(', ', '+')}" for name, count in sorted(formats.items()))
    about = "" if sample.is_complete else "about "
    mean = sample.text_chars / max(sample.num_documents(), 1)
    where = "source" if any(source.kind != "file" for source in sources) else "file"
    looked = "" if num_opened == len(sources) else f" of {num_opened:,} that were opened"
    return (
        f"found: {about}{counted(documents, 'document')} of {mean:,.0f} characters on average in "
        f"{counted(len(sources), where)} ({files}{looked}){_archives(sample)}"
    )


def _archives(sample: Sample) -> str:
    names, members = sample.archives, sample.report.members
    if not members:
        return ""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    texts = sum(members.values())
    kinds = ", ".join(f"{count:,} {name}" for name, count in sorted(members.items()))
    least = "at least " if sample.has_more_members else ""
    return (
        f"; {shown} {'is an archive' if len(names) == 1 else 'are archives'} of {least}{counted(texts, 'text')} "
        f"({kinds})"
    )


def _show(number: int, document: Document, language: str) -> str:
    sentences = _sentences(document, language)
    text = " | ".join(sentences[:20])
    text = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ..."
    count = counted(len(sentences), "sentence")
    return f"document {number} ({document.key}), {count}: {text}"


def _sentences(document: Document, language: str) -> list[str]:
    return document_sentences(document.sentences, is_split=document.is_split, language=language)


def num_left_out(report: ReadReport) -> int:
    """Return the number of files that are not read."""
    return report.left_out + report.not_text


def _left_out(report: ReadReport) -> list[str]:
    number = num_left_out(report)
    if not number:
        return []
    names = [problem for problem in report.problems if problem.startswith(LEFT_OUT)]
    lines = [f"left out: {counted(number, 'file')}"]
    lines += [f"  {problem.removeprefix(LEFT_OUT)}" for problem in names[:_MAX_LEFT_OUT]]
    return lines + ["  ..."] * (number > _MAX_LEFT_OUT)


def _warnings(sample: Sample, config: DataConfig) -> list[str]:
    """Return lines about rows that are left out and text that is replaced, and about a separator that is not there."""
    of = "" if sample.is_complete else f"of the first {sample.num_read:,} documents: "
    lines = [f"warning: {of}{warning}" for warning in sample.report.warnings()]
    if config.documents and config.documents not in WAYS and not sample.report.separators:
        lines.append(
            f"warning: {of}data.documents={config.documents!r} is in none of the texts, so each plain text is one "
            "document"
        )
    return lines
