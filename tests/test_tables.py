"""Tables and record files: the right column becomes text, everything else one clear line."""

import gzip
import io
import json
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bert_jax.data import documents, lines
from bert_jax.data.documents import ReadReport, TextLayout
from bert_jax.errors import UserError
from tests.texts import PARAGRAPHS, paragraphs_of, read, tar_of, write

pa = pytest.importorskip("pyarrow", reason="needs the arrow extra: pip install -e '.[arrow]'")
import pyarrow.parquet as pq  # noqa: E402

TEXTS = [
    PARAGRAPHS[0],
    'She said, "No; never."\tTwice.',
    "Two paragraphs.\n\nThe second; it's short.",
    "Café | naïve 東京.",
]
EXPECTED = [[PARAGRAPHS[0]], ['She said, "No; never." Twice.'], TEXTS[2].split("\n\n"), [TEXTS[3]]]


def quoted(rows: list[list[str]], delimiter: str, end: str = "\n") -> str:
    cells = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    return "".join(delimiter.join(row) + end for row in cells)


def texts_of(path: Path, **layout) -> list[list[str]]:
    return [[" ".join(text.split()) for text in texts] for texts in paragraphs_of(path, layout=TextLayout(**layout))]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_row_of_csv_is_a_document_whatever_the_delimiter_and_the_order(
    tmp_path: Path, delimiter: str, end: str, column: int
):
    rows = [["id", "label"], *(["1", "x,y"] for _ in TEXTS)]
    for row, text in zip(rows, ["text", *TEXTS], strict=True):
        row.insert(column, text)
    path = write(tmp_path / "rows.csv", "\ufeff" + quoted(rows, delimiter, end))
    assert texts_of(path) == EXPECTED


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl", "json"])
def test_files_with_different_columns_are_read_together(suffix: str, tmp_path: Path):
    texts = {"body": "The first file has this.", "text": "The second has that.", "a,b": "The third has a comma."}
    paths = [tmp_path / f"{number}.{suffix}" for number in range(len(texts))]
    for path, (column, text) in zip(paths, texts.items(), strict=True):
        if suffix == "parquet":
            pq.write_table(pa.table({"id": [1, 2], column: [text] * 2}), path)
            continue
        rows = [json.dumps({"id": 1, column: text})] * 2
        array = f"[{','.join(rows)}]"
        write(path, {"csv": f'id,"{column}"\n1,{text}\n2,{text}\n', "jsonl": "\n".join(rows), "json": array}[suffix])
    layout = {"text_column": "text, body", "text_key": "text, body"}
    assert texts_of(paths[0], **layout) == [[texts["body"]]] * 2
    assert texts_of(paths[1], **layout) == [[texts["text"]]] * 2
    assert texts_of(paths[2], text_column="a,b", text_key="a,b") == [[texts["a,b"]]] * 2
    with pytest.raises(UserError, match=r"type --config\.data\.text_(column|key)=text, body,"):
        read(paths[2], layout=TextLayout(**layout))


def test_tsv_without_quotes_keeps_its_quotation_marks(tmp_path: Path):
    path = write(tmp_path / "rows.tsv", 'id\ttext\n1\t5" pipe and 6" pipe\n2\t"Why?" she asked.\n3\tNo.\n')
    assert texts_of(path)[0] == ['5" pipe and 6" pipe']
    assert len(texts_of(path)) == 3


def test_backslashes_before_quotation_marks_are_read(tmp_path: Path):
    path = write(tmp_path / "rows.csv", 'id,text\n1,"He said \\"no\\", twice."\n2,"Yes."\n')
    assert texts_of(path) == [['He said "no", twice.'], ["Yes."]]


@pytest.mark.parametrize("name", ["rows.txt", "rows"])
def test_a_table_is_never_prose_even_without_its_suffix(tmp_path: Path, name: str):
    path = write(
        tmp_path / name,
        "".join(f"{a}\t{b}\t{c}\n" for a, b, c in [("id", "text", "label"), *[(1, PARAGRAPHS[0], 0)] * 5]),
    )
    assert texts_of(path) == [[PARAGRAPHS[0]]] * 5


def test_a_few_lines_with_commas_are_a_table_only_by_name(tmp_path: Path):
    lines = ["id,text", *(f"{number},A line." for number in range(5))]
    assert texts_of(write(tmp_path / "many.txt", "\n".join(lines))) == [["A line."]] * 5
    assert texts_of(write(tmp_path / "few.csv", "\n".join(lines[:3]))) == [["A line."]] * 2
    assert "id,text" in texts_of(write(tmp_path / "few.txt", "\n".join(lines[:3])))[0][0]


@pytest.mark.parametrize(
    "content",
    [
        "RIFF is a format.\nIt has chunks.\n",
        "BM stands for bitmap. GIF8 does not.\n",
        "Dear Sir, yes.\nI write, today.\nYou answer, perhaps.\nThey laugh, both.\n",
        "Apples, pears\nPlums, cherries\nNuts, almonds\n",
        "Apples,pears\nPlums, cherries\nNuts, almonds\n",
        "\n\n".join(PARAGRAPHS),
    ],
)
def test_prose_with_commas_is_no_table(tmp_path: Path, content: str):
    report = ReadReport()
    read(write(tmp_path / "a.txt", content), report=report)
    assert set(report.formats.values()) <= {"prose", "sentences"}


MARKDOWN = "| id | text |\n|----|:-----|\n" + "".join(f"| {n} | {PARAGRAPHS[0]} |\n" for n in range(9))
SENTENCE = [("The", "DT", "O"), ("old", "JJ", "O"), ("city", "NN", "O"), ("of", "IN", "O"), ("Oslo", "NNP", "B-LOC")]
SENTENCE += [("sleeps", "VBZ", "O"), (".", ".", "O")]


def tagged(form: str) -> str:
    """Return sentences with a word per line; in `form`, {0} is the word, {1} its part of speech, {2} its entity."""
    return ("\n".join(form.format(*word) for word in SENTENCE) + "\n\n") * 6


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (
            "".join(f"LJ001-{n:04d}|{text}\n" for n, text in enumerate(PARAGRAPHS * 2)),
            "table of 2 columns .*text_column=N",
        ),
        ("".join(f"{n} | {text} | good\n" for n, text in enumerate(PARAGRAPHS * 2)), "table of 3 columns .*format=csv"),
        (MARKDOWN, "a table with bars as borders"),
        ("# Rows of the corpus\n\n" + MARKDOWN, "a table with bars as borders"),
        (
            "+----+-------+\n| id | text  |\n+----+-------+\n| 1 | Some text. |\n+----+-------+\n",
            "a table with bars as borders",
        ),
        (tagged("{0} {1} {2}"), "tagged words"),
        ("-DOCSTART- -X- O\n\n" + tagged("{0}  {2}"), "tagged words"),
        (tagged("{0}\t{2}"), "tagged words"),
        (tagged("{2} {0}"), "tagged words"),
        (tagged("{0} {1}"), "tagged words"),
        ("# text = a\n" + tagged("1\t{0}\t{0}\t{1}\t_"), "tagged words"),
    ],
)
def test_rows_without_a_header_are_no_prose_unless_the_user_says_so(tmp_path: Path, content: str, named: str):
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(
        UserError, match=rf"no text in input .*a\.txt: .*{named}.*type --config\.data\.format=prose"
    ) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert read(path, layout=TextLayout(format="prose"))


def test_the_advice_for_rows_between_bars_reads_their_text(tmp_path: Path):
    path = write(tmp_path / "a.txt", "".join(f"LJ001-{n:04d}|{text}\n" for n, text in enumerate(PARAGRAPHS)))
    assert texts_of(path, format="csv", text_column="2") == [[text] for text in PARAGRAPHS]
    path = write(
        tmp_path / "b.txt", "id | text | label\n" + "".join(f"{n}|{text}|good\n" for n, text in enumerate(PARAGRAPHS))
    )
    assert texts_of(path) == [[text] for text in PARAGRAPHS]


@pytest.mark.parametrize(
    "content",
    [
        "".join(f"The wind is in the east | and no bird sings {n} times,\n" for n in "abcdefgh"),
        "".join(
            f"{word} | a thing of which one says {word}\n"
            for word in ["apple", "boat", "cat", "dog", "egg", "fox", "goat"]
        ),
        "".join(f"cat file{n} | sort | uniq -c > out{n}\n" for n in range(9)),
        "".join(f"{word} n. a thing that is like a {word}\n" for word in ["apple", "boat", "cat", "dog", "egg", "fox"]),
        PARAGRAPHS[0] + "\n\n" + MARKDOWN + "\n" + "\n\n".join(PARAGRAPHS),
        PARAGRAPHS[-1] + "\n\n" + MARKDOWN,
        "STOP AT\nONCE AND\nCOME HOME\nSEND NO\nMORE MEN\nTHE WAR\nIS LOST\nALL IS\nIN VAIN\nI GO\nTO SEA\n" * 2,
        "class A: ...\nclass B: ...\n" * 20,
        "O my\nO your\nO their\n" * 8,
    ],
)
def test_prose_with_bars_verse_and_code_is_no_table(tmp_path: Path, content: str):
    report = ReadReport()
    read(write(tmp_path / "a.txt", content), report=report)
    assert set(report.formats.values()) <= {"prose", "sentences"}
    assert not report.left_out


def test_a_table_without_the_column_names_those_it_has(tmp_path: Path):
    path = write(tmp_path / "rows.csv", "id,body\n1,Some text.\n2,More text.\n")
    advice = r"type --config\.data\.text_column=NAME \(columns: id, body"
    with pytest.raises(UserError, match=rf"rows\.csv is a table without a column 'text': {advice}"):
        read(path)
    assert texts_of(path, text_column="body") == [["Some text."], ["More text."]]


VALUES = ["12", "-3.5", "1,234.50", "5 %", "$7", "1e-05", "2021-03-04", "2021-03-04T10:20:30Z", "10:20", "true", "NaN"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_column_of_values_is_not_learned_as_words(tmp_path: Path, kind: str):
    values = [*VALUES, None, *["4"] * 200, "unknown"]
    if kind in RECORDS:
        content = RECORDS[kind](pa.table({"id": pa.array(range(len(values))), "text": pa.array(values)}))
    else:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        content = quoted([["id", "text"], *([str(n), value or ""] for n, value in enumerate(values))], mark)
    path = write(tmp_path / f"a.{kind}", content)
    with pytest.raises(
        UserError, match=rf"a\.{kind}: column 'text' holds values such as 12, not text: type --.*text_column="
    ):
        read(path)
    report = ReadReport()
    write(tmp_path / "good.txt", "\n\n".join(PARAGRAPHS * 99))
    assert len(read(tmp_path, report=report)) == report.documents == 1
    assert (report.left_out, report.empty_rows, report.skipped_rows) == (1, 0, {})


def test_a_few_numbers_among_texts_are_texts(tmp_path: Path):
    rows = ["1984", "Some text.", "2001", "More text of 3 words.", "7th"]
    path = write(tmp_path / "a.csv", "text,id\n" + "".join(f"{row},1\n" for row in rows))
    assert texts_of(path) == [[row] for row in rows]


def test_a_table_without_a_header_is_read_by_number(tmp_path: Path):
    path = write(tmp_path / "rows.csv", "1,Some text.\n2,More text.\n")
    assert texts_of(path, text_column="2") == [["Some text."], ["More text."]]
    with pytest.raises(UserError, match="without a column '3'"):
        read(path, layout=TextLayout(text_column="3"))


def test_rows_of_another_width_are_counted_and_most_of_them_refused(tmp_path: Path):
    path = write(tmp_path / "rows.csv", "id,text\n1,One.\n2,Two, or more.\n3,Three.\n\n4\n5,Five.\n")
    report = ReadReport()
    assert [d.sentences for d in read(path, report=report)] == [["One."], ["Three."], ["Five."]]
    assert report.broken_rows == 2
    assert "row 3 has 3 cells instead of 2" in report.problems[0]
    path = write(tmp_path / "rows.csv", "id,text\n" + "1,One, two.\n" * 9)
    with pytest.raises(UserError, match=r"most rows have another number of cells .*row 2 has 3 cells"):
        read(path)


@pytest.mark.parametrize("last", ["text", "label"])
def test_a_quotation_mark_that_is_not_closed_is_named_not_swallowed(tmp_path: Path, last: str):
    rows = [
        "id,label,text" if last == "text" else "id,text,label",
        *['1,"a, b","c, d"'] * 9000,
        '2,"a,b',
        *["3,a,b"] * 9,
    ]
    with pytest.raises(UserError, match=r"rows\.csv: a quotation mark that opens in row \d+ or before is not closed"):
        read(write(tmp_path / "rows.csv", "\n".join(rows) + "\n"))


# Parquet and arrow


def table(**columns) -> Any:
    return pa.table({"id": list(range(len(TEXTS))), **(columns or {"text": TEXTS})})


def parquet(content: Any, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(content, buffer, **options)
    return buffer.getvalue()


def arrow(content: Any, *, stream: bool) -> bytes:
    buffer = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(buffer, content.schema) as writer:
        writer.write_table(content, max_chunksize=2)
    return buffer.getvalue()


RECORDS = {
    "parquet": parquet,
    "arrow stream": lambda content: arrow(content, stream=True),
    "arrow file": lambda content: arrow(content, stream=False),
}


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: pa.array(TEXTS),
        lambda: pa.array(TEXTS, pa.large_string()),
        lambda: pa.array([text.encode() for text in TEXTS]),
        lambda: pa.array(TEXTS).dictionary_encode(),
        lambda: pa.array([text.split("\n\n") for text in TEXTS]),
    ],
    ids=["string", "large_string", "binary", "dictionary", "list"],
)
def test_every_type_of_text_in_parquet_and_arrow_is_read(tmp_path: Path, kind: str, make):
    path = write(tmp_path / "data", RECORDS[kind](table(text=make())))
    assert texts_of(path) == EXPECTED


def test_nulls_and_empty_texts_are_no_documents(tmp_path: Path):
    content = parquet(pa.table({"text": [None, "One.", "", "  ", "Two."]}))
    path = write(tmp_path / "a.parquet", content)
    assert texts_of(path) == [["One."], ["Two."]]
    report = ReadReport()
    read(path, report=report)
    assert report.warnings() == [
        "3 rows skipped: the text is empty or null",
        f"{path}: 3 skipped: row 1 has no text; row 3 has no text; row 4 has no text",
    ]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_column_without_any_text_is_named(tmp_path: Path, kind: str):
    content = parquet(pa.table({"text": pa.array([None] * 5, pa.string()), "body": ["A."] * 5}))
    path = write(tmp_path / f"a.{kind}", content if kind == "parquet" else "text,body\n" + ",A.\n" * 5)
    with pytest.raises(UserError, match=r"column 'text' has no text in any of its 5 rows: type --.*text_column=.*body"):
        read(path)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_dotted_column_leads_into_nested_ones(tmp_path: Path, kind: str):
    path = write(tmp_path / "data", RECORDS[kind](table(meta=[{"body": text, "lang": "en"} for text in TEXTS])))
    assert texts_of(path, text_column="meta.body") == EXPECTED
    for column in ("text", "meta", "meta.title", "id"):
        with pytest.raises(UserError, match=r"type --config\.data\.text_column=NAME \(columns: id"):
            read(path, layout=TextLayout(text_column=column))


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_damaged_parquet_and_arrow_are_one_clear_line(tmp_path: Path, kind: str, part: float):
    content = RECORDS[kind](table())
    with pytest.raises(UserError, match="data is damaged or cut short"):
        read(write(tmp_path / "data", content[: int(len(content) * part)]))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"need pyarrow: pip install 'bert_jax\[arrow\]'"):
        read(write(tmp_path / "a.parquet", parquet(table())))


def test_a_saved_datasets_folder_is_read_and_its_metadata_left_out(tmp_path: Path):
    write(tmp_path / "train" / "data-00000-of-00001.arrow", arrow(table(), stream=True))
    write(
        tmp_path / "train" / "state.json",
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}, indent=2),
    )
    write(tmp_path / "train" / "dataset_info.json", json.dumps({"features": {"text": {"dtype": "string"}}}))
    write(tmp_path / "dataset_dict.json", '{"splits": ["train"]}')
    write(tmp_path / "train" / "cache-0123456789abcdef.arrow", arrow(table(), stream=True))
    report = ReadReport()
    assert len(read(tmp_path, report=report)) == len(TEXTS)
    assert (report.left_out, report.left_out_bytes) == (3, 0)


# Archives and mixed folders


def test_members_of_a_zip_are_read_each_in_its_format(tmp_path: Path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/prose.txt", "\n\n".join(PARAGRAPHS))
        archive.writestr("a/rows.csv.gz", gzip.compress(b"id,text\n1,One.\n"))
        archive.writestr("data.parquet", parquet(table()))
        archive.writestr("__MACOSX/a/._prose.txt", "what another system keeps")
        archive.writestr("a/picture.png", b"\x89PNG\r\n\x1a\n" + bytes(99))
        archive.writestr("inner.tar", tar_of({"x.txt": PARAGRAPHS[0].encode()}))
    report = ReadReport()
    found = read(write(tmp_path / "a.zip", buffer.getvalue()), report=report, split_sentences=False)
    keys = [document.key for document in found]
    assert keys[:2] == ["a.zip/a/prose.txt#0", "a.zip/a/rows.csv.gz#0"]
    assert keys[-1] == "a.zip/inner.tar/x.txt#0"
    assert len(found) == 1 + 1 + len(TEXTS) + 1
    assert report.left_out == 1


def test_a_damaged_or_encrypted_zip_is_one_clear_line(tmp_path: Path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "\n\n".join(PARAGRAPHS))
    content = bytearray(buffer.getvalue())
    content[60] ^= 0xFF
    for damaged in (bytes(content), buffer.getvalue()[:-30]):
        with pytest.raises(UserError, match=r"a\.(zip|txt) is damaged or cut short"):
            read(write(tmp_path / "a.zip", damaged))
    encrypted = bytearray(buffer.getvalue())
    for start in (encrypted.index(b"PK\x03\x04") + 6, encrypted.index(b"PK\x01\x02") + 8):
        encrypted[start] |= 1
    with pytest.raises(UserError, match="password"):
        read(write(tmp_path / "a.zip", bytes(encrypted)))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("page.html", "<!DOCTYPE html><html><body><p>Text.</p></body></html>", "HTML"),
        ("page.txt", "\n <html lang='en'><head></head><body>Text</body></html>", "HTML"),
        ("part.txt", "<div><p>Some text.</p></div>\n" * 20, "HTML"),
        ("dump.xml", '<?xml version="1.0"?><mediawiki><page>Text</page></mediawiki>', "XML"),
        ("a.pdf", "%PDF-1.4\n" + "text " * 99, "PDF"),
        ("a.docx", "PK\x03\x04" + "\0" * 99, "Office"),
        ("meta.json", '{"name": "corpus", "license": "x"}', "meta.json"),
        ("meta2.json", '{\n "name": "corpus",\n "license": "x"\n}', "meta2.json"),
    ],
)
def test_what_is_no_text_is_left_out_with_a_reason(tmp_path: Path, name: str, content: str, named: str):
    write(tmp_path / name, content)
    with pytest.raises(UserError, match=rf"no text in input .*{named}"):
        read(tmp_path)
    write(tmp_path / "good.txt", "\n\n".join(PARAGRAPHS * 2))
    report = ReadReport()
    assert {document.key for document in read(tmp_path, report=report)} == {"good.txt#0"}
    assert report.left_out == 1
    assert named in report.problems[0]


def test_a_corpus_of_which_most_would_be_left_out_is_refused(tmp_path: Path):
    write(tmp_path / "a.txt", PARAGRAPHS[0])
    write(tmp_path / "b.jsonl", "".join(json.dumps({"content": text}) + "\n" for text in PARAGRAPHS))
    with pytest.raises(
        UserError, match=r"most of the text .* would be left out .*type --config\.data\.text_key=content"
    ):
        read(tmp_path)


def test_memory_does_not_grow_with_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "BLOCK", 1 << 15)
    monkeypatch.setattr(lines, "_BATCH", 1 << 14)
    peaks = []
    for copies in (500, 2000):
        path = write(tmp_path / "rows.csv", quoted([["id", "text"], *[["1", PARAGRAPHS[5]]] * copies], ","))
        tracemalloc.start()
        assert sum(1 for _ in documents.read_documents(str(path), split_sentences=False)) == copies
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2
