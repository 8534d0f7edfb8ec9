"""Extract English sentences from documentation: docstrings, reStructuredText and Sphinx's plain text."""

import inspect
import re
from collections.abc import Iterator

from bert_jax.data.sentences import split_paragraph

_RULE = re.compile(r"\W{3,}")  # a line of punctuation only: underlines a heading or borders a table
_COLUMNS = re.compile(r"\S {3,}\S+.* {3,}\S")  # three columns: a table
_ITEM = re.compile(r"\s*(?:[-*+•o]|\(?\w[.)]|\d+[.)]|\[\w+\])\s+(?=\S)")  # list item or footnote
_LABEL = re.compile(  # ":param x: ", "x (int): ", "x -- ", or a first column before three spaces
    r"\s*(?:(?:[:@](?:param|arg|return|raise|type|keyword)[^:]*:|[*\w.]+(?: ?\([^)]*\))? ?(?::|--?))\s+"
    r"|[*\w.()\\]+ {3,})(?=\S)"
)
_TERM = 40  # characters; a longer line above an indented one is a hanging indent, not a term with its definition
_VERSION = re.compile(r"(?:Deprecated|New|Changed|Added)(?: since|in)? version [\w.]+(?:, [^:]*)?[:.] ?")

_INLINE = (
    (re.compile(r"\s*\[(?:\d+|#\w*)\]_?"), ""),  # footnotes
    (re.compile(r":[a-z][\w:+-]*:`~?(?:[^`<]*?<)?!?([^`>]+?)>?`"), r"\1"),  # roles
    (re.compile(r"`([^`<]+?)\s*<[^`>]+>`_+"), r"\1"),  # links
    (re.compile(r"``(.+?)``|`([^`']+)[`']_*"), r"\1\2"),  # code, in either kind of quotes
    (re.compile(r"(?<![\w*])\*{1,2}([\w.() -]+?)\*{1,2}(?![\w*])"), r"\1"),  # emphasis
    (re.compile(r'"([^\s"]+)"'), r"\1"),  # Sphinx quotes code; longer quotes are quotations
    (re.compile(r"(?<=\S) {2,}"), " "),
)

_WORD = re.compile(r"[\"'(\[‘“]*[A-Za-z]+(?:['’/-][A-Za-z]+)*[\"')\]’”.,;:!?]*")
_START = re.compile(r"[\"'(‘“]*[A-Z]|[\"'‘“]\w|[\w.]+[_(.]")  # a capital, or an identifier: "dir() converts"
_END = re.compile(r"[.!?][\"')’”]*$")
_DASH = re.compile(r":\s| --? ")  # with a dash and no full stop, it is probably a list entry
_NOTE = re.compile(r"XXX|TODO|FIXME")
_CODE = frozenset("=<>{}[]\\|@#$%^&*+~/`")
_COMMON = re.compile(
    r"\b(?:a|an|and|are|as|at|be|but|by|can|for|from|has|have|if|in|is|it|its|may|must|no|not|of|on|only|or|should|so|than|"
    r"that|the|then|there|these|this|to|used|was|when|where|which|will|with|you)\b",
    re.IGNORECASE,
)


def sentences_of(text: str) -> list[list[str]]:
    """Return the paragraphs of a documentation text as lists of sentences.

    Headings, signatures, examples, tables, grammars and lists of names are removed; sentences in lists and in tables of
    parameters are kept. The result is prose without reStructuredText markup.
    """
    paragraphs = []
    for paragraph in _paragraphs(inspect.cleandoc(text).expandtabs()):
        for pattern, replacement in _INLINE:
            paragraph = pattern.sub(replacement, paragraph)
        sentences = split_paragraph(paragraph, language="en")
        if sentences and sentences[-1][-1].isalnum() and not _DASH.search(sentences[-1]):
            sentences[-1] += "."  # many summary lines are sentences without a full stop
        sentences = [sentence for sentence in sentences if is_sentence(sentence)]
        if sentences:
            paragraphs.append(sentences)
    return paragraphs


def is_sentence(text: str) -> bool:
    """Return whether a text looks like an English sentence, not like code, a heading or a list of names."""
    words = text.split()
    if len(words) < 4 or not _START.match(text) or not _END.search(text) or _NOTE.search(text):
        return False
    if sum(character in _CODE for character in text) > 0.06 * len(text):
        return False
    if not _COMMON.search(text):
        return False
    return sum(_WORD.fullmatch(word) is not None for word in words) >= 0.75 * len(words)


def _paragraphs(text: str) -> Iterator[str]:
    literal: int | None = None  # the indent of the paragraph that introduced a literal block with "::"
    for block in re.split(r"\n\s*\n", text):
        lines = [line.rstrip() for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        if literal is not None and min(map(_indent, lines)) > literal:
            continue
        literal = _indent(lines[-1]) if lines[-1].endswith("::") else None
        yield from _block_paragraphs(lines)


def _block_paragraphs(lines: list[str]) -> Iterator[str]:
    prose: list[str] = []
    for line in lines:
        if line.lstrip().startswith((">>>", "..")) or "::=" in line:
            break  # an example, a directive or a grammar, to the end of the block
        if _RULE.fullmatch(line.strip()):
            prose = prose[:-1]  # the heading above it
        else:
            prose.append(line)
    if sum(_COLUMNS.search(line) is not None for line in prose) > 1:
        return
    has_labels = sum(_LABEL.match(line) is not None for line in prose) > 1  # a single match may be a dash inside prose
    parts: list[str] = []
    for number, line in enumerate(prose):
        before = prose[number - 1] if number else line
        deeper = _indent(line) - _indent(before)
        is_item = _ITEM.match(line) or (has_labels and _LABEL.match(line))
        is_defined = deeper > 0 and len(parts) == 1 and len(before.strip()) < _TERM and not _is_labelled(before)
        if parts and (is_item or is_defined or deeper < 0):
            yield _join(parts)
            parts = []
        parts.append(line)
    if parts:
        yield _join(parts)


def _join(lines: list[str]) -> str:
    text = " ".join(line.strip() for line in lines)
    text = _ITEM.sub("", text, count=1) if _ITEM.match(text) else text
    text = _VERSION.sub("", text)
    label = _LABEL.match(text)
    if label and text[label.end()].isupper():
        text = text[label.end() :]
    is_name = re.search(r"[\W_]\w|[\d(]", text.partition(" ")[0])  # an identifier: keeps its case
    return text if is_name else text[:1].upper() + text[1:]


def _is_labelled(line: str) -> bool:
    return (_ITEM.match(line) or _LABEL.match(line)) is not None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
