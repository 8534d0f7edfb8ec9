"""The texts of JSON: an object per line, or one array or object per file, read in constant memory."""

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bert_jax.data.lines import BLOCK, MAX_WHOLE_LINE, OVERLONG
from bert_jax.data.opening import ByteStream
from bert_jax.data.prose import read_document
from bert_jax.data.source import NoTextError, ReadReport, alternatives, others_and
from bert_jax.errors import UserError
from bert_jax.json_files import parse_object, parse_prefix

_WHITE = " \t\n\r"
_MAX_DEPTH = 4  # of a suggested key
_ENOUGH = 10_000  # invalid lines at the start of a file: its other lines are not read


def find_text(value: Any, key: str) -> str | None:
    """Return the text at a dotted key, None if there is none; a list of strings is joined as paragraphs.

    A name that contains dots is preferred to a nested one. In a list of objects, the key is looked up in each of them.
    """
    if not key:
        return _as_text(value)
    if isinstance(value, list):
        parts = [text for item in value if (text := find_text(item, key)) is not None]
        return "\n\n".join(parts) if parts else None
    if not isinstance(value, dict):
        return None
    if key in value:
        return _as_text(value[key])
    first, _, rest = key.partition(".")
    return find_text(value[first], rest) if rest and first in value else None


def _first_text(value: Any, keys: Sequence[str]) -> str | None:
    return next((text for key in keys if (text := find_text(value, key)) is not None), None)


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "\n\n".join(value)
    return None


def suggest_key(value: Any) -> str:
    """Return the dotted key of the longest text in an object, "" if there is none."""
    candidates: list[tuple[int, str]] = []  # length and key

    def visit(value: Any, path: str, depth: int) -> None:
        text = _as_text(value)
        if text is not None and path:
            candidates.append((len(text), path))
        elif isinstance(value, dict) and depth < _MAX_DEPTH:
            for name, item in value.items():
                visit(item, f"{path}.{name}" if path else str(name), depth + 1)
        elif isinstance(value, list) and value:
            visit(value[0], path, depth + 1)

    visit(value, "", 0)
    return max(candidates, key=lambda item: item[0])[1] if candidates else ""


def read_json_lines(batches: Iterable[list[str]], *, name: str, key: str, report: ReadReport) -> Iterator[str | None]:
    """Yield the paragraphs of the text of each line, and None after each line; invalid lines are counted.

    Raises:
      NoTextError: if no line has a text; names the key to type.
    """
    number, num_valid, first_reason, suggestion, before = 0, 0, "", "", report.broken_lines
    keys = alternatives(key)
    for batch in batches:
        for line in batch:
            number += 1
            if line.isspace() or not line:
                continue
            record = _parse(line)
            text = None if isinstance(record, str) else _first_text(record, keys)
            if isinstance(record, str) or text is None:
                reason = record if isinstance(record, str) else describe_missing(record, key)
                suggestion = suggestion or ("" if isinstance(record, str) else suggest_key(record))
                report.broken_lines += 1
                report.skip_row(name, f"{number}: {reason}")
                first_reason = first_reason or f"line {number}: {reason}"
                if not num_valid and report.broken_lines - before >= _ENOUGH:
                    break
                continue
            num_valid += 1
            if not text.strip():
                report.empty_rows += 1
                report.skip_row(name, f"{number}: the text is empty")
                continue
            yield from read_document(text, report=report, title=record.get("title"))
        if not num_valid and report.broken_lines - before >= _ENOUGH:
            break
    if first_reason and not num_valid:
        reason = f"{name}: no line is a JSON object with a '{key}' ({first_reason})"
        if suggestion and report.broken_lines - before == 1:
            raise NoTextError(reason, is_metadata=True)
        advice = f'write one {{"{key}": ...}} per line, or set data.format to the file\'s format'
        raise NoTextError(
            f"{reason}: " + (f"type --config.data.text_key={others_and(key)}{suggestion}" if suggestion else advice)
        )


def _parse(line: str) -> dict[str, Any] | str:
    """Return the object of a JSON line, or the reason why it is invalid."""
    if line is OVERLONG:
        return "the line is longer than 32 MiB"
    try:
        return parse_object(line)
    except ValueError as error:
        return str(error)


def describe_missing(record: Any, key: str) -> str:
    """Return why a record has no text at a key."""
    names = ", ".join(map(str, list(record)[:8])) if isinstance(record, dict) else ""
    return f"no '{key}' that is a string (fields: {names or 'none'})"


def read_json(stream: ByteStream, *, key: str, report: ReadReport) -> Iterator[str | None]:
    """Yield the paragraphs of each text of one JSON value, and None after each text.

    The texts are the elements of an array, or of the arrays in an object (`{"data": [...]}`, where both "text" and
    "data.text" name the texts), or the object itself.

    Raises:
      NoTextError: if there is no text at the key; names the key to type.
      UserError: for invalid JSON.
    """
    num_valid, num_missing, missing, suggestion = 0, 0, "", ""
    keys = alternatives(key)
    arrays = _ArrayCounts(stream.name, report)
    for prefix, value in _Values(stream, report):
        inside = [one.removeprefix(f"{prefix}.") for one in keys] if prefix else keys
        text = value if isinstance(value, str) and (not prefix or prefix in keys) else _first_text(value, inside)
        arrays.count(prefix, text)
        if text is not None:
            num_valid += 1
            title = value.get("title") if isinstance(value, dict) else None
            yield from read_document(text, report=report, title=title if isinstance(title, str) else None)
        elif prefix or not num_valid:  # other members of an object with texts are its metadata
            num_missing += 1
            missing = missing or describe_missing(value, key)
            if isinstance(value, str):
                suggestion = suggestion or prefix
            elif not suggestion and (inner := suggest_key(value)):
                suggestion = f"{prefix}.{inner}" if prefix else inner
    if num_missing and not num_valid:
        raise NoTextError(
            f"{stream.name} has {missing}: "
            + (
                f"type --config.data.text_key={others_and(key)}{suggestion}"
                if suggestion
                else "leave it out of the input"
            ),
            is_metadata=num_missing == 1,
        )


class _ArrayCounts:
    """The elements of arrays that have no text, which are reported once another element of the array has one."""

    def __init__(self, file: str, report: ReadReport):
        self._file, self._report = file, report
        self._number = Counter[str]()  # of elements so far, by the name of the array
        self._has_text = set[str]()
        self._first: dict[str, list[int]] = {}  # elements without a text, before one with a text

    def count(self, array: str, text: str | None) -> None:
        """Count the next element of an array."""
        self._number[array] += 1
        number = self._number[array]
        if text is not None:
            self._has_text.add(array)
            for earlier in self._first.pop(array, ()):
                self._skip(array, earlier)
        if array in self._has_text and not (text or "").strip():
            self._skip(array, number)
        elif text is None and len(self._first.setdefault(array, [])) < _ENOUGH:
            self._first[array].append(number)

    def _skip(self, array: str, number: int) -> None:
        self._report.empty_rows += 1
        name = f"{array} " if array else ""
        self._report.skip_row(self._file, f" {name}item {number}: no text")


class _Values:
    """The values of JSON text: the elements of each array at the top or one level below, with the name of the array.

    The other members of a top-level object come together, as an object under the name "".
    """

    def __init__(self, stream: ByteStream, report: ReadReport):
        self._stream = stream
        self._report = report
        self._decode = codecs.getincrementaldecoder("utf-8")("replace")
        self._text, self._position, self._passed, self._ended = "", 0, 0, False

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        is_first = True
        while char := self._next():
            if char == "[":
                yield from self._elements("")
            elif char == "{":
                yield from self._members(is_first=is_first)
            else:
                yield "", self._value()
            is_first = False

    def _elements(self, name: str) -> Iterator[tuple[str, Any]]:
        self._position += 1
        if self._next() == "]":
            self._position += 1
            return
        while True:
            yield name, self._value()
            if self._expect(",]") == "]":
                return

    def _members(self, *, is_first: bool) -> Iterator[tuple[str, Any]]:
        others: dict[str, Any] = {}
        strings: dict[str, list[str]] = {}  # documents if the object is the only one, else the paragraphs of a document
        self._position += 1
        if self._next() == "}":
            self._position += 1
            return
        while True:
            name = self._value()
            if not isinstance(name, str):
                raise self._invalid("expected a name in quotes")
            self._expect(":")
            if self._next() == "[":
                size, texts = 0, strings.setdefault(name, [])
                for _, value in self._elements(name):
                    if not isinstance(value, str) or size > MAX_WHOLE_LINE:
                        yield name, value
                    else:
                        texts.append(value)
                        size += len(value)
            else:
                others[name] = self._value()
            if self._expect(",}") == "}":
                break
        if is_first and not self._next():
            yield from ((name, text) for name, texts in strings.items() for text in texts)
        else:
            others.update((name, texts) for name, texts in strings.items() if texts)
        if others:
            yield "", others

    def _expect(self, chars: str) -> str:
        char = self._next()
        if not char or char not in chars:
            raise self._invalid(f"expected {' or '.join(chars)}" if char else "it is cut short")
        self._position += 1
        return char

    def _next(self) -> str:
        """Return the next character that is not white space, without consuming it; "" at the end."""
        while True:
            while self._position < len(self._text):
                char = self._text[self._position]
                if char not in _WHITE and char != "\ufeff":
                    return char
                self._position += 1
            if not self._read():
                return ""

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = parse_prefix(self._text, self._position)
            except json.JSONDecodeError as error:
                # The value may continue in what is still to be read.
                if len(self._text) - self._position > MAX_WHOLE_LINE:
                    raise self._invalid("a value is longer than 32 MiB, or " + error.msg) from None
                if not self._read():
                    raise self._invalid(error.msg) from None
                continue
            except ValueError as error:  # nested too deeply, or a number of too many digits
                raise self._invalid(" ".join(str(error).split())[:100]) from None
            if end == len(self._text) and self._read():  # a number may continue
                continue
            self._position = end
            return value

    def _read(self) -> bool:
        if self._ended:
            return False
        size = max(BLOCK, len(self._text) - self._position)  # doubles for a long value
        data = self._stream.read(size)
        self._ended = not data
        self._report.bytes += len(data)
        text = self._decode.decode(data, final=self._ended)
        self._report.invalid_utf8 += text.count("\ufffd") - data.count("\ufffd".encode())
        self._passed += self._position
        self._text, self._position = self._text[self._position :] + text, 0
        return bool(data)

    def _invalid(self, reason: str) -> UserError:
        return UserError(
            f"{self._stream.name} is not JSON ({reason}, near character {self._passed + self._position:,}): fix it, "
            "set data.format=prose if it is prose, or leave it out of the input"
        )
