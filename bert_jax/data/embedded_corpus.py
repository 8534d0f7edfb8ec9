"""The default corpus: the English documentation inside the installed Python."""

import ast
import hashlib
import os
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from bert_jax.data.markup import sentences_of
from bert_jax.data.source import Document, TextSource

EMBEDDED = "embedded"

# Prose in the source files: 2.11 of 11.4 MB on Python 3.11, 2.00 of 10.8 on 3.12, 1.98 of 10.6 on 3.13.
_PROSE_FRACTION = 0.185
_SKIPPED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"})
_TOPICS = Path("pydoc_data", "topics.py")
_COMMENT = re.compile(r"(?:^[ \t]*#.*\n)+", re.MULTILINE)
_COMMENT_MARK = re.compile(r"^[ \t]*#+[!:]? ?", re.MULTILINE)
_MIN_REPEATED = 6  # words; shorter sentences may repeat
_MIN_COMMENT = 60  # characters; a shorter comment means little without its code


def embedded_source() -> TextSource:
    """Return the corpus as a source; its size is an estimate of the prose, about 2 MB."""
    size = sum(path.stat().st_size for _, path in _modules(_library()))
    return TextSource(name=EMBEDDED, size=int(size * _PROSE_FRACTION), kind="embedded")


def read_embedded_corpus(folder: Path | None = None) -> Iterator[Document]:
    """Yield a document, in paragraphs, for each topic of `pydoc` and each module of the standard library.

    A module's document contains the sentences of its docstrings and longer comments, in source order. Files are parsed
    and never imported; modules without source are skipped. The order is fixed. No paragraph or sentence of six words
    or more is repeated. `folder` is the library's folder, by default that of this Python.
    """
    seen: set[bytes] = set()
    for name, texts in _texts(folder or _library()):
        paragraphs = [paragraph for text in texts for paragraph in _new_paragraphs(text, seen)]
        if paragraphs:
            yield Document(key=f"{EMBEDDED}#{name}", sentences=paragraphs, is_split=False)


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _texts(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for topic, text in sorted(_topics(folder / _TOPICS).items()):
        yield f"topics/{topic}", [text]
    for name, path in _modules(folder):
        yield name, _module_texts(path)


def _new_paragraphs(text: str, seen: set[bytes]) -> Iterator[str]:
    for sentences in sentences_of(text):
        new = [sentence for sentence in sentences if _is_new(sentence, seen)]
        paragraph = " ".join(new)
        if len(new) == 1 or (new and _is_new(paragraph, seen)):
            yield paragraph


def _is_new(text: str, seen: set[bytes]) -> bool:
    words = text.lower().split()
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
    is_new = digest not in seen
    seen.add(digest)
    return is_new or len(words) < _MIN_REPEATED


def _topics(path: Path) -> dict[str, str]:
    for node in _parse(path)[0].body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            try:
                topics = ast.literal_eval(node.value)
            except ValueError:
                continue
            if isinstance(topics, dict):
                return topics
    return {}


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and path of each source file of the library, sorted by name."""
    modules = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith("config-")]
        for file in files:
            path = Path(parent, file)
            relative = path.relative_to(folder)
            if path.suffix == ".py" and relative != _TOPICS:
                modules.append((".".join(relative.with_suffix("").parts).removesuffix(".__init__"), path))
    yield from sorted(modules)


def _parse(path: Path) -> tuple[ast.Module, str]:
    """Return the syntax tree and source, both empty if the file is missing or cannot be parsed."""
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in library code
            source = file.read()
            return ast.parse(source), source
    except (OSError, SyntaxError, ValueError):  # ValueError: wrong encoding declaration
        return ast.Module(body=[], type_ignores=[]), ""


def _module_texts(path: Path) -> list[str]:
    """Return docstrings and comments in source order."""
    tree, source = _parse(path)
    texts = []
    pending: list[ast.AST] = [tree]
    while pending:  # visits statements only: five times as fast as ast.walk
        node = pending.pop()
        for block in ("body", "orelse", "finalbody", "handlers"):
            pending += getattr(node, block, ())
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                texts.append((node.body[0].lineno, docstring))
    for match in _COMMENT.finditer(source):
        line = source.count("\n", 0, match.start()) + 1
        texts += [(line, _COMMENT_MARK.sub("", match[0]))] if len(match[0]) >= _MIN_COMMENT else []
    return [text for _, text in sorted(texts)]
