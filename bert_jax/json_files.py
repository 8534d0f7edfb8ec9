"""Read JSON, which may be damaged or hostile: with limits, and errors of one line that say where and what.

Everything that reads JSON reads it here. A value has at most `MAX_DEPTH` levels and no name twice; a file has a size
limit and must be a regular file, because opening a pipe would wait for its other end.
"""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.files import open_regular, read_limited
from bert_jax.json_forms import Count, Finite, fit, kind_of

MAX_JSON_BYTES = 64 << 20  # holds a tokenizer of a million tokens; a larger file is not one of ours
MAX_VALUES = 8_000_000  # 1.5 GB of memory at worst (objects of one field); a tokenizer of a million tokens has half
MAX_DEPTH = 100  # levels of objects and lists; a tokenizer.json has ten
_REASON = 100  # characters of a parser's message that fit into a line
_LOG_LINE = dict[str, Finite | str | None]


class _Wrong(ValueError):
    """What is wrong with a JSON text, in a few words."""


def parse_json(content: str | bytes, *, allow_nan: bool = True, max_values: int = MAX_VALUES) -> Any:
    """Return the value of a JSON text, which may start with a byte order mark, of at most about `max_values` values.

    Raises:
      ValueError: with a one-line reason; without `allow_nan` also for NaN and infinities.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff")
        _check_number(text, max_values)
        strict = {} if allow_nan else {"parse_constant": _refuse, "parse_float": _finite}
        value = json.loads(text, object_pairs_hook=_object, **strict)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except _Wrong:
        raise
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())[:_REASON]) from None
    _check_depth(value, text, 0, len(text))
    return value


def parse_prefix(text: str, start: int) -> tuple[Any, int]:
    """Return the JSON value that begins at `start` of a text, and where it ends.

    Raises:
      json.JSONDecodeError: if it is invalid, or continues beyond the text.
      ValueError: if it is whole and refused.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(value, text, start, end)
    return value, end


def parse_object(content: str | bytes, *, allow_nan: bool = True) -> dict[str, Any]:
    """Return the object in a JSON text, for example a line of a JSON-lines file.

    Raises:
      ValueError: "not JSON (why)" or "not a JSON object".
    """
    try:
        value = parse_json(content, allow_nan=allow_nan)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def load_json(
    file: str | os.PathLike, *, form: Any = Any, max_bytes: int = MAX_JSON_BYTES, max_values: int = MAX_VALUES
) -> Any:
    """Return the value of a JSON file as `form` describes it, for callers that write their own error messages.

    `max_bytes` and `max_values` are raised for files of our own that grow with the input.

    Raises:
      OSError: if it cannot be read, is not a regular file, or is too large.
      ValueError: with a one-line reason.
    """
    return fit(parse_json(read_limited(file, max_bytes=max_bytes), max_values=max_values), form)


def read_json(
    file: str | os.PathLike,
    *,
    form: Any = dict[str, Any],
    remedy: str = "restore the file",
    missing: str = "put it there, or name another folder",
) -> Any:
    """Return the value of a JSON file as `form` describes it; by default an object.

    Raises:
      UserError: naming the file and what is wrong, followed by `missing` if it does not exist, else by `remedy`.
    """
    try:
        value = parse_json(read_limited(file, max_bytes=MAX_JSON_BYTES))
    except FileNotFoundError:
        raise UserError(f"{file}: does not exist: {missing}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}): {remedy}") from None
    return fitted(value, form, file=file, remedy=remedy)


def fitted(value: Any, form: Any, *, file: str | os.PathLike, remedy: str) -> Any:
    """Return the value of a JSON file as `form` describes it.

    Raises:
      UserError: naming the file and the part that is something else, followed by `remedy`.
    """
    if form == dict[str, Any] and not isinstance(value, dict):
        raise UserError(f"{file}: must hold a JSON object, holds {kind_of(value)}: {remedy}")
    try:
        return fit(value, form)
    except ValueError as error:
        raise UserError(f"{file}: {error}: {remedy}") from None


def parse_log_line(line: bytes) -> dict[str, Any]:
    """Return a line of metrics: numbers, texts and nulls by name, and `step`, if it is there, as a whole number.

    Raises:
      ValueError: if it is something else, such as the cut-off last line of a killed run.
    """
    record = parse_object(line)
    fit(record, _LOG_LINE)
    fit(record.get("step", 0), Count, at="step")
    return record


def read_log(file: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file that a run appends to, in order; none if the file does not exist.

    Truncated lines, such as the last line of a killed run, are skipped.

    Raises:
      UserError: if the file exists but cannot be read.
    """
    records: list[dict[str, Any]] = []
    if not Path(file).is_file():
        return records
    try:
        with open_regular(file) as stream:
            while line := stream.readline(MAX_JSON_BYTES):
                with contextlib.suppress(ValueError):
                    records.append(parse_log_line(line))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}: fix its permissions, or move it") from None
    return records


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Wrong(f"it has the name {json.dumps(twice[:60])} twice in one object")
    return fields


def _check_number(text: str, max_values: int) -> None:
    # The parsed value may take 100 bytes of memory for each byte of text. A comma or bracket follows or begins a value;
    # those inside texts count as well: prose has one in 80 characters.
    if len(text) > max_values and sum(map(text.count, ",[{")) > max_values:
        raise _Wrong(f"it has more than {max_values:,} values, the most that is read")


def _check_depth(value: Any, text: str, start: int, end: int) -> None:
    # Python 3.12 parses what later recursions cannot process. Counting brackets is cheap, measuring the depth is not.
    if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and _is_deep(value):
        raise ValueError("it is nested too deeply")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        items = [item for parent in level for item in (parent.values() if isinstance(parent, dict) else parent)]
        level = [item for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Wrong(f"the number {text[:20]} is too large")
    return value


def _refuse(constant: str) -> None:
    raise _Wrong(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
