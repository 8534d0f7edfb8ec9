import collections
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from bert_jax.config import DataConfig
from bert_jax.data.builder import build_dataset, describe_inputs, load_dataset_info
from bert_jax.data.documents import Document, ReadReport, find_sources, read_documents
from bert_jax.data.embedded_corpus import read_embedded_corpus
from bert_jax.data.markup import sentences_of
from bert_jax.data.sentences import split_paragraph
from bert_jax.errors import UserError

# What the corpus must not hold: examples, directives, roles, quotations of code, rules, fields, signatures, grammars.
MARKS = re.compile(r">>>|\.\. \w+::|:\w+:`|``|[=*~^-]{5,}|:param |\) ?->|::=|\\n\\n|\t| {2}")


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return list(read_embedded_corpus())


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Return a small standard library with everything in it that must not get into the corpus."""
    shop = '''
        """Sell the things that are on the shelves of the shop."""
        import sys
        open({marker!r}, "w").close()
        class Shop:
            """A shop is a place where one can buy what is for sale.

            >>> Shop().open()
            True
            """
            # The door is opened from the inside, since the key is not always in the lock.
            def open(self):
                """Open the door of the shop.

                :param hard: Push the door with all of the force that is left.
                """
    '''
    files = {
        "shop.py": re.sub("^        ", "", shop, flags=re.MULTILINE).format(marker=str(tmp_path / "imported")),
        "store/__init__.py": '"""Keep the things that are not yet on the shelves of the shop."""',
        "store/latin.py": "# -*- coding: latin-1 -*-\n'''Keep the cr\xe8me away from the things that are sold.'''",
        "store/test/test_store.py": '"""Check that the things in the store are not to be sold yet."""',
        "site-packages/other.py": '"""This is the documentation of some other package than the library."""',
        "broken.py": '"""This module is not one that can be parsed by the parser."""\ndef (',
        "other_encoding.py": b'"""This is not in the encoding that it should be in: \xff\xfe."""',
        "compiled.pyc": b"\0\1\2",
        "pydoc_data/topics.py": "topics = {'selling': '''Selling\\n*****\\n\\nA thing is sold when it has a price.'''}",
    }
    for name, content in files.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("latin-1"))
    return tmp_path / "lib"


def test_library_is_parsed_never_imported_and_only_its_own_sources(library: Path):
    found = {document.key: document.sentences for document in read_embedded_corpus(library)}
    assert found == {
        "embedded#topics/selling": ["A thing is sold when it has a price."],
        "embedded#shop": [
            "Sell the things that are on the shelves of the shop.",
            "A shop is a place where one can buy what is for sale.",
            "The door is opened from the inside, since the key is not always in the lock.",
            "Open the door of the shop.",
            "Push the door with all of the force that is left.",
        ],
        "embedded#store": ["Keep the things that are not yet on the shelves of the shop."],
        "embedded#store.latin": ["Keep the crème away from the things that are sold."],
    }
    assert not (library.parent / "imported").exists()


def test_library_without_topics_or_sources_is_no_error(library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (library / "pydoc_data" / "topics.py").unlink()
    assert next(read_embedded_corpus(library)).key == "embedded#shop"
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python.zip"))
    with pytest.raises(UserError, match="no text in input 'embedded'"):
        list(read_documents("embedded"))


def test_order_does_not_depend_on_hashes(library: Path):
    code = (
        "import hashlib, pathlib, sys; from bert_jax.data.embedded_corpus import read_embedded_corpus;"
        "print(hashlib.sha256(repr(list(read_embedded_corpus(pathlib.Path(sys.argv[1])))).encode()).hexdigest())"
    )
    folder = Path(sysconfig.get_path("stdlib"), "email")
    digests = set()
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", code, str(folder)]
        digests.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(digests) == 1


def test_corpus_is_large_enough_and_its_size_is_foretold(corpus: list[Document]):
    size = sum(len(paragraph.encode()) for document in corpus for paragraph in document.sentences)
    assert size > 1_700_000  # 2.11 MB on Python 3.11, 2.00 on 3.12, 1.98 on 3.13
    [source] = find_sources("embedded")
    assert source.name == "embedded"
    assert abs(source.size - size) < 0.15 * size


def test_documents_are_topics_and_modules_each_once(corpus: list[Document]):
    keys = [document.key for document in corpus]
    assert len(set(keys)) == len(keys) > 400
    assert {"embedded#topics/assert", "embedded#argparse", "embedded#asyncio.tasks"} <= set(keys)
    assert not any(re.search(r"\btests?\b|idle_test|site-packages", key) for key in keys)
    assert not any(document.is_split for document in corpus)


def test_no_paragraph_and_no_longer_sentence_comes_twice(corpus: list[Document]):
    paragraphs = [paragraph for document in corpus for paragraph in document.sentences]
    repeated = [text for text, count in collections.Counter(paragraphs).items() if count > 1 and len(text.split()) > 5]
    assert not repeated
    sentences = [s for paragraph in paragraphs for s in split_paragraph(paragraph, language="en") if len(s.split()) > 5]
    # Joined to paragraphs, a few sentences are split in another place than alone.
    assert len(set(sentences)) > 0.995 * len(sentences)


def test_corpus_is_english_prose(corpus: list[Document]):
    paragraphs = [paragraph for document in corpus for paragraph in document.sentences]
    text = "\n".join(paragraphs)
    assert sum(bool(MARKS.search(paragraph)) for paragraph in paragraphs) < 0.005 * len(paragraphs)
    assert sum(bool(re.search(r"[.!?][\"')’”]*$", paragraph)) for paragraph in paragraphs) == len(paragraphs)
    assert sum(c.isalpha() or c in " \n.,;:'\"()-" for c in text) > 0.97 * len(text)
    words = re.findall(r"[a-z]+", text.lower())
    counts = collections.Counter(words)
    # Of English prose the word "the" is 5 to 7 %, of lists of names and of code next to nothing.
    assert 0.05 < counts["the"] / len(words) < 0.09
    assert counts.most_common(1)[0][0] == "the"
    assert {"a", "is", "of", "to"} <= {word for word, _ in counts.most_common(8)}
    sentences = [s for paragraph in paragraphs[::10] for s in split_paragraph(paragraph, language="en")]
    assert 8 < sum(len(s.split()) for s in sentences) / len(sentences) < 20


def test_corpus_is_read_as_a_source(library: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library))
    report = ReadReport()
    found = list(read_documents("embedded", report=report))
    assert [document.key for document in found] == [f"{document.key}#0" for document in read_embedded_corpus(library)]
    assert all(document.is_split for document in found)
    assert (report.documents, report.paragraphs) == (4, 8)
    assert report.formats == {"embedded": "prose"}
    assert not report.warnings()


@pytest.mark.parametrize(
    ("text", "paragraphs"),
    [
        ("open(file, mode='r') -> file object\n\nOpen the file and return it.", [["Open the file and return it."]]),
        ("Return the name of it\n", [["Return the name of it."]]),
        ("A title of a section\n====================\n\nThe text goes on below.", [["The text goes on below."]]),
        ("See this::\n\n    The code is not shown.\n\nThis is below the code.", [["This is below the code."]]),
        ("It is simple.\n\n>>> It is not.\nIt is.\n\nThis is below the code.", [["This is below the code."]]),
        ("The first line of it\n  is continued here. And so on, for a while.", None),
        ("Use :class:`~a.b.Thing` or ``it`` for this.", [["Use a.b.Thing or it for this."]]),
        ("The *first* one is **bold** [1]_.", [["The first one is bold."]]),
        ("Read `the manual <http://a.b>`_ of the thing.", [["Read the manual of the thing."]]),
        ('The "__eq__()" method is not what the operator "is not" calls.', None),
        ("* One of the items is this.\n* And\n  another is that one.", None),
        ("Args:\n    x (int): The number of the beast.\n    y: Not used by any of them.", None),
        ("===== =====\na     b\n===== =====\n1     2 of them.", []),
        ("stmt ::= the rule of a grammar.\n\nA rule is a part of a grammar.", [["A rule is a part of a grammar."]]),
        ("alpha, beta, gamma, delta, epsilon.", []),
        ("TODO: this is to be done by somebody.", []),
        ("dir() returns the names of a thing.", [["dir() returns the names of a thing."]]),
        ("Two sentences are here. the second is none (it seems", [["Two sentences are here."]]),
    ],
)
def test_only_sentences_are_left_of_documentation(text: str, paragraphs: list[list[str]] | None):
    expected = {
        'The "__eq_': [['The __eq__() method is not what the operator "is not" calls.']],
        "The first": [["The first line of it is continued here.", "And so on, for a while."]],
        "* One of t": [["One of the items is this."], ["And another is that one."]],
        "Args:\n    ": [["The number of the beast."], ["Not used by any of them."]],
    }
    if paragraphs is None:
        [paragraphs] = [value for key, value in expected.items() if text.startswith(key)]
    assert sentences_of(text) == paragraphs


def test_the_estimate_counts_the_time_to_parse_the_sources():
    def seconds(inputs: str) -> int:
        lines: list[str] = []
        describe_inputs(DataConfig(input=inputs, num_workers=1), out="", max_seq_lengths=(128,), report=lines.append)
        match = re.search(r"; (\d+) s with 1 worker$", lines[0])
        assert match, lines[0]
        return int(match[1])

    assert seconds("embedded") >= 2  # as text of this size it would take half a second


@pytest.mark.slow  # builds the corpus
@pytest.mark.parametrize("vocab_size", [1024, 8192])
@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm"])
def test_the_estimated_number_of_sequences_is_that_of_the_data_set(tmp_path: Path, objective: str, vocab_size: int):
    lines: list[str] = []
    build_dataset(
        DataConfig(input="embedded", num_workers=1, objective=objective),
        out=tmp_path / "out",
        max_seq_lengths=(64, 128),
        vocab_size=vocab_size,
        report=lines.append,
    )
    estimated = {
        int(length): int(rows.replace(",", "")) for rows, length in re.findall(r"([\d,]+) sequences of (\d+)", lines[0])
    }
    assert set(estimated) == {64, 128}
    for length, rows in estimated.items():  # the corpus is that of the Python that runs this
        assert rows == pytest.approx(
            load_dataset_info(tmp_path / "out", max_seq_length=length).num_train_rows, rel=0.15
        )
