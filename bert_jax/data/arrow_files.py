"""The texts of parquet and arrow files, read by pyarrow in batches: a row is a document."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

from bert_jax.data.json_text import find_text
from bert_jax.data.lines import decode
from bert_jax.data.opening import ByteStream
from bert_jax.data.prose import read_document
from bert_jax.data.source import NoTextError, ReadReport, alternatives
from bert_jax.data.tables import find_column, texts_or_refusal
from bert_jax.errors import UserError
from bert_jax.files import open_regular

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff"
_ROWS = 256  # converted at a time
_BUFFER = 1 << 20  # bytes of a column that are read at a time


def read_arrow(stream: ByteStream, *, column: str, report: ReadReport) -> Iterator[str | None]:
    """Yield the paragraphs of the text of each row of a parquet or arrow file, and None after each row.

    `column` may lead into nested columns with dots. A list of strings is read as paragraphs.

    Raises:
      NoTextError: if the column does not exist or contains no text; names the columns.
      UserError: if pyarrow is not installed, or the file is damaged.
    """
    pa = _library(stream.name)
    head = stream.peek(8)
    with _reported(pa, stream.name), _seekable(stream) as file:
        schema, batches = _open(pa, file, head)
        name, rest = _split(schema.names, column, stream.name)
        _check_type(pa, schema, name, rest, stream.name)
        texts = _column_texts(batches(name), name, rest, report)
        for text in texts_or_refusal(
            texts, file=stream.name, column=column, advice=lambda: _advice(schema), report=report
        ):
            report.bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
            yield from read_document(text, report=report)


def _column_texts(batches: Iterable[Any], name: str, rest: str, report: ReadReport) -> Iterator[tuple[int, str | None]]:
    """Yield the number of each row from 1 and its text, None if it has none."""
    number = 0
    for batch in batches:
        values = batch.column(batch.schema.get_field_index(name))
        for start in range(0, len(values), _ROWS):
            for value in values.slice(start, _ROWS).to_pylist():
                number += 1
                yield number, find_text(decode(value, report) if isinstance(value, bytes) else value, rest)


def read_arrow_rows(path: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet or arrow file: Python values by column name.

    Raises:
      UserError: if pyarrow is not installed, or the file is damaged.
    """
    pa = _library(path)
    with _reported(pa, path), open_regular(path) as file:
        head = file.read(8)
        file.seek(0)
        for batch in _open(pa, file, head)[1](None):
            for start in range(0, batch.num_rows, _ROWS):
                yield from batch.slice(start, _ROWS).to_pylist()


def _library(name: str) -> Any:
    try:
        import pyarrow as pa  # optional, and imported late because it is large
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{name}: parquet and arrow files need pyarrow: pip install 'bert_jax[arrow]'") from None
    return pa


@contextlib.contextmanager
def _reported(pa: Any, name: str) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into a `UserError`."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} is damaged or cut short ({reason}): download or create it again, or leave it out of the input"
        ) from error


@contextlib.contextmanager
def _seekable(stream: ByteStream) -> Iterator[BinaryIO]:
    """Yield the stream as a file that can be read in any order: a member of an archive is copied to disk first."""
    if stream.path:
        with open(stream.path, "rb") as file:  # noqa: PTH123
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(cast(BinaryIO, stream), copy, 1 << 20)
        copy.seek(0)
        yield copy


def _open(pa: Any, file: BinaryIO, head: bytes) -> tuple[Any, Any]:
    """Return the schema of a file, and a function from a column's name (None: all) to its record batches."""
    if head.startswith(PARQUET):
        parquet = pa.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)
        return parquet.schema_arrow, lambda name: parquet.iter_batches(batch_size=_ROWS, columns=name and [name])
    if head.startswith(ARROW_FILE):
        reader = pa.ipc.open_file(file)
        return reader.schema, lambda name: (reader.get_batch(number) for number in range(reader.num_record_batches))
    reader = pa.ipc.open_stream(file)
    return reader.schema, lambda name: reader


def _split(names: list[str], column: str, file: str) -> tuple[str, str]:
    """Return the top-level column and the path within its values."""
    for choice in alternatives(column):
        parts = choice.split(".")
        for count in range(len(parts), 0, -1):
            name = ".".join(parts[:count])
            if name in names:
                return name, ".".join(parts[count:])
    return names[find_column(names, column, name=file)[0]], ""


def _check_type(pa: Any, schema: Any, name: str, rest: str, file: str) -> None:
    kind = schema.field(name).type
    for part in rest.split(".") if rest else ():
        while pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        index = kind.get_field_index(part) if pa.types.is_struct(kind) else -1
        if index < 0:
            raise NoTextError(f"{file}: column '{name}' has no field '{rest}' (its type is {kind}): {_advice(schema)}")
        kind = kind.field(index).type
    leaf = kind.value_type if hasattr(kind, "value_type") and not pa.types.is_string(kind) else kind
    tests = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_null")
    if not any(getattr(pa.types, test)(leaf) for test in tests if hasattr(pa.types, test)):
        raise NoTextError(f"{file}: column '{name}' is {kind}, not text: {_advice(schema)}")


def _advice(schema: Any) -> str:
    fields = ", ".join(f"{field.name}: {field.type}" for field in list(schema)[:12])
    return f"type --config.data.text_column=NAME (columns: {fields:.300})"
