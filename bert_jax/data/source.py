"""What is read: sources, the documents in them, and the report of what was found on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from bert_jax.errors import UserError

MAX_PROBLEMS = 20  # examples kept for the message; the counts go on


@dataclass(frozen=True)
class Document:
    """A document, or a part of about 1 MB of a long one.

    The parts of one document follow each other and share its key.
    """

    key: str  # "<source name>#<index>"
    sentences: list[str]  # sentences where `is_split`, otherwise paragraphs that are still to be split
    is_split: bool = True


@dataclass(frozen=True)
class TextSource:
    """Something that is read from its start to its end by one process: the unit of parallel reading."""

    name: str  # does not change when the whole corpus moves to another folder or machine
    size: int  # bytes on disk, before decompression; of the embedded corpus, an estimate of the text
    kind: Literal["file", "tfds", "embedded"] = "file"
    path: str = ""  # the file; for TFDS the registered name or the directory
    split: str = ""  # TFDS only: the range of records, as "train[0:5000]"
    feature: str = ""  # TFDS only: the feature that holds the text


@dataclass
class ReadReport:
    """What reading found; reports of several sources are merged in the order of the sources."""

    documents: int = 0
    paragraphs: int = 0  # lines, in the sentence-a-line format
    characters: int = 0
    bytes: int = 0  # after decompression
    invalid_utf8: int = 0  # byte sequences (or lone surrogates) replaced by U+FFFD
    nul_characters: int = 0  # removed
    long_lines_cut: int = 0
    broken_lines: int = 0  # of JSON lines, left out
    not_text: int = 0  # files, or members of an archive, that are not UTF-8 text: left out
    formats: dict[str, str] = field(default_factory=dict)  # source name -> format found
    problems: list[str] = field(default_factory=list)  # the first MAX_PROBLEMS, each naming the file and the line

    def add_problem(self, problem: str) -> None:
        """Keep a problem as an example, unless there are enough of them."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def add_format(self, source: str, found: str) -> None:
        """Record the format found in a source; an archive may hold several."""
        known = set(self.formats[source].split(", ")) if source in self.formats else set()
        self.formats[source] = ", ".join(sorted(known | {found}))

    def merge(self, other: "ReadReport") -> None:
        """Add another report to this one."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if isinstance(mine, int):
                setattr(self, item.name, mine + theirs)
        for source, found in other.formats.items():
            for name in found.split(", "):
                self.add_format(source, name)
        for problem in other.problems:
            self.add_problem(problem)

    def warnings(self) -> list[str]:
        """Say in one line each what was replaced, cut or left out; nothing where all was well."""
        counts = (
            (self.not_text, "file(s) left out: not UTF-8 text"),
            (self.broken_lines, "broken JSON line(s) left out"),
            (self.invalid_utf8, "invalid UTF-8 sequence(s) replaced by U+FFFD"),
            (self.nul_characters, "NUL character(s) removed"),
            (self.long_lines_cut, "line(s) too long for one piece, cut at white space"),
        )
        return [f"{count:,} {what}" for count, what in counts if count] + self.problems

    def require_text(self, inputs: str | Sequence[str]) -> None:
        """Refuse a corpus of which nothing is left.

        Raises:
            UserError: no document was read; names the inputs and what was left out.
        """
        if self.documents:
            return
        given = inputs if isinstance(inputs, str) else ",".join(inputs)
        reasons = "; ".join(self.warnings()) or "all files are empty"
        raise UserError(f"no text in input '{given}' ({reasons}): give text files in UTF-8, plain or compressed")
