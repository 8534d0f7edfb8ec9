"""Sources of text, their documents, and the report of problems while reading."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from bert_jax.errors import UserError, counted

LEFT_OUT = "left out: "  # a problem that is a whole file
MAX_PROBLEMS = 20  # problems kept as examples; all are counted
_MAX_EXAMPLES = 4  # of the rows of a file
_NUM_SHOWN, _SHOWN_CHARS = 3, 120  # of those in a warning


class NoTextError(UserError):
    """A file without text that can be read: it is left out if the other files have more text.

    With `is_metadata` it is probably a description of the corpus, not a part of it, and no loss.
    """

    def __init__(self, message: str, *, is_metadata: bool = False):
        super().__init__(message)
        self.is_metadata = is_metadata


def alternatives(name: str) -> tuple[str, ...]:
    """Return the columns or keys that a field names: itself, then what its commas separate."""
    return tuple(dict.fromkeys((name, *filter(None, map(str.strip, name.split(","))))))


def others_and(name: str) -> str:
    """Return what an advice writes before another column or key, so that the files that have these are still read."""
    return "" if name == TextLayout.text_column else f"{name},"


@dataclass(frozen=True)
class TextLayout:
    """Where the text is in a file, and where its documents end.

    Attributes:
      format: "auto" (detected, file by file) or one of `formats.FORMATS`.
      text_column: column of the text in tables (CSV, TSV, parquet, arrow), by name; without a header by number from 1.
        Of several, separated by commas, the first that a file has.
      text_key: key of the text in JSON; dots lead into nested objects. Of several, the first with a text.
      documents: in plain text, a document is "lines": a line; "blank_lines": what is between blank lines; otherwise
        what is between occurrences of this separator; "": what the format says.
    """

    format: str = "auto"
    text_column: str = "text"
    text_key: str = "text"
    documents: str = ""


@dataclass(frozen=True)
class Document:
    """A document, or a part of about 1 MB of a long one.

    The parts of a document are consecutive and share its key.
    """

    key: str  # "<source name>#<index>"
    sentences: list[str]  # sentences if `is_split`, else paragraphs still to be split
    is_split: bool = True


@dataclass(frozen=True)
class TextSource:
    """An input that one process reads from start to end: the unit of parallel reading."""

    name: str  # independent of the folder and machine of the corpus
    size: int  # bytes on disk, before decompression; for the embedded corpus, an estimate
    kind: Literal["file", "tfds", "embedded"] = "file"
    path: str = ""  # the file; for TFDS the registered name or the directory
    split: str = ""  # TFDS only: the range of records, such as "train[0:5000]"
    feature: str = ""  # TFDS only: the feature with the text


@dataclass
class ReadReport:
    """Counts and problems of reading; reports are merged in the order of the sources."""

    documents: int = 0
    paragraphs: int = 0  # lines, if each line is a sentence
    characters: int = 0
    bytes: int = 0  # after decompression
    invalid_utf8: int = 0  # byte sequences (or lone surrogates) replaced by U+FFFD
    nul_characters: int = 0  # removed
    long_lines_cut: int = 0
    broken_lines: int = 0  # JSON lines that are invalid or have no text, skipped
    broken_rows: int = 0  # rows of a table with another number of columns than its header, skipped
    empty_rows: int = 0  # rows of a table, or elements of a JSON array, whose text is empty or null, skipped
    separators: int = 0  # occurrences of the separator of `TextLayout.documents`
    not_text: int = 0  # files, or members of an archive, that are not UTF-8 text: skipped
    left_out: int = 0  # files outside of the corpus: metadata, HTML, images, tables without the column of the text
    left_out_bytes: int = 0  # of those that may be text: after decompression
    remedy: str = ""  # what to type to read the first of those
    damaged: str = ""  # the first file with invalid UTF-8
    formats: dict[str, str] = field(default_factory=dict)  # source name -> detected format
    members: dict[str, int] = field(default_factory=dict)  # texts inside archives, by format
    skipped_rows: dict[str, int] = field(default_factory=dict)  # those of the first MAX_PROBLEMS files that have some
    problems: list[str] = field(default_factory=list)  # the first MAX_PROBLEMS, each with file and line

    def add_problem(self, problem: str) -> None:
        """Keep up to MAX_PROBLEMS problems as examples."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def skip_row(self, file: str, problem: str) -> None:
        """Count a row or line of a file that is skipped, and keep the first as examples; a caller counts its kind."""
        if file in self.skipped_rows or len(self.skipped_rows) < MAX_PROBLEMS:
            self.skipped_rows[file] = self.skipped_rows.get(file, 0) + 1
            if self.skipped_rows[file] <= _MAX_EXAMPLES:
                self.add_problem(f"{file}:{problem}")

    def leave_out(self, reason: str, *, num_bytes: int = 0) -> None:
        """Count a file that is left out; `num_bytes` is its size if it may be text."""
        self.left_out += 1
        self.add_problem(f"{LEFT_OUT}{reason}")
        if num_bytes:
            self.miss(reason, num_bytes=num_bytes)

    def miss(self, reason: str, *, num_bytes: int) -> None:
        """Count the bytes of a text that is not read; the first reason is the advice."""
        self.left_out_bytes += num_bytes
        self.remedy = self.remedy or reason

    def add_format(self, source: str, name: str) -> None:
        """Record the format of a source; an archive may contain several."""
        known = set(self.formats[source].split(", ")) if source in self.formats else set()
        self.formats[source] = ", ".join(sorted(known | {name}))

    def add_members(self, name: str, count: int) -> None:
        """Count texts of a format inside an archive."""
        self.members[name] = self.members.get(name, 0) + count

    def merge(self, other: "ReadReport") -> None:
        """Add another report to this one."""
        for item in fields(self):
            value, increment = getattr(self, item.name), getattr(other, item.name)
            if isinstance(value, int):
                setattr(self, item.name, value + increment)
        self.remedy = self.remedy or other.remedy
        self.damaged = self.damaged or other.damaged
        for source, names in other.formats.items():
            for name in names.split(", "):
                self.add_format(source, name)
        for name, count in other.members.items():
            self.add_members(name, count)
        for file, count in other.skipped_rows.items():
            if file in self.skipped_rows or len(self.skipped_rows) < MAX_PROBLEMS:
                self.skipped_rows[file] = self.skipped_rows.get(file, 0) + count
        for problem in other.problems:
            self.add_problem(problem)

    def warnings(self) -> list[str]:
        """Return a line for each kind of text that was replaced, split or skipped, and for each file with such rows."""
        counts = (
            (self.broken_lines, "JSON line", "skipped: invalid, or without a text"),
            (self.broken_rows, "row", "of tables skipped: another number of columns than the header"),
            (self.empty_rows, "row", "skipped: the text is empty or null"),
            (self.invalid_utf8, "invalid UTF-8 sequence", f"replaced by U+FFFD, the first in {self.damaged}"),
            (self.nul_characters, "NUL character", "removed"),
            (self.long_lines_cut, "line", "too long, split at white space"),
        )
        lines = [f"{counted(count, what)} {done}" for count, what, done in counts if count]
        problems = [problem for problem in self.problems if not problem.startswith(LEFT_OUT)]
        for file, count in self.skipped_rows.items():
            examples = [problem for problem in problems if problem.startswith(f"{file}:")]
            problems = [problem for problem in problems if problem not in examples]
            rows = [problem[len(file) + 1 :].strip()[:_SHOWN_CHARS] for problem in examples[:_NUM_SHOWN]]
            shown = [f"line {row}" if row[:1].isdecimal() else row for row in rows]
            more = "; ..." * (count > len(shown) > 0)
            lines.append(f"{file}: {count:,} skipped{': ' * bool(shown)}{'; '.join(shown)}{more}")
        return lines + problems

    def require_text(self, inputs: str | Sequence[str]) -> None:
        """Raise an error for a corpus without text, or of which most is left out.

        Raises:
            UserError: if no document was read, or more was left out than read; names the inputs and what was skipped.
        """
        names = inputs if isinstance(inputs, str) else ",".join(inputs)
        num_bytes = max(self.bytes, self.characters)  # the embedded corpus counts no bytes
        if self.documents and self.left_out_bytes > num_bytes:
            num_files = self.left_out + self.not_text
            raise UserError(
                f"most of the text in input '{names}' would be left out (files: {num_files}; bytes: "
                f"{self.left_out_bytes:,} of {self.left_out_bytes + num_bytes:,}): {self.remedy}"
            )
        if self.documents:
            return
        if self.remedy and self.left_out:
            raise UserError(f"no text in input '{names}': {self.remedy}")
        reasons = "; ".join(
            [*(p.removeprefix(LEFT_OUT) for p in self.problems if p.startswith(LEFT_OUT)), *self.warnings()]
        )
        reasons = reasons or "all files are empty"
        raise UserError(f"no text in input '{names}' ({reasons}): give UTF-8 text files, plain or compressed")
