"""Records of custom data: JSON Lines, a JSON array, CSV, TSV or parquet. `config.own` names the columns.

Lists of words or tags are space-separated strings; in JSON they may also be lists.
"""

import ast
import contextlib
import dataclasses
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config.task_options import HOLD_OUT, DataOptions, OwnOptions, SquadOptions
from bert_jax.data.arrow_files import read_arrow_rows
from bert_jax.errors import UserError
from bert_jax.json_forms import shown
from bert_jax.tasks.files import numbered_lines, read_json, read_json_lines, read_start
from bert_jax.tasks.interface import Task, find_file, split_file
from bert_jax.tasks.tables import SUFFIXES, read_table

_NUMPY = re.compile(r"""(["'])[ \n]+["']""")
_ARRAY = re.compile(r"\s*\[\s*\{")
_OBJECT = re.compile(r'\s*\{(?:[^\n]{0,1000}?"data"\s*:\s*\[\s*\{|\s*\n)')
PARQUET, TEXT = ".parquet", ".txt"
_METADATA = ("config.json", "dataset_info.json", "dataset_infos.json", "state.json")
_STEMS = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}


class OwnTask(Task):
    """A task on custom data: its options, and a test set if the config names one."""

    name = "own"
    own: OwnOptions

    def __init__(self, *, data: DataOptions, own: OwnOptions, squad: SquadOptions):
        """Set the task up with its options; only the span task uses those of SQuAD."""
        del squad
        self.data, self.own = data, own

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set if the config names one."""
        return ("test",) if self.data.test_file else ()

    def is_unlabeled(self, record: "Record", *, split: str) -> bool:
        """Return whether a record has no label. Only records of the test set may lack one."""
        return split == "test" and record.fields.get(self.own.label) in (None, *([""] if record.of_table else ()))


@dataclasses.dataclass(frozen=True)
class Record:
    """A record of a data file.

    `option` in the methods is the field of `config.GROUP` (by default `own`) that names the column, for messages.
    """

    fields: Mapping[str, Any]  # by column name
    location: str  # "FILE line N", for messages
    of_table: bool = False  # a row of a table, whose fields are strings

    def field(self, name: str, *, option: str, group: str = "own") -> Any:
        """Return a field.

        Raises:
          UserError: if the record has no such column; the message names the option that chose it.
        """
        self.require((option, name), group=group)
        return self.fields[name]

    def require(self, *columns: tuple[str, str], group: str = "own") -> None:
        """Check that the record has `columns`, each given as the option that chooses it and its name.

        Raises:
          UserError: which names all that are missing at once, and the options to type.
        """
        missing = [(option, name) for option, name in columns if name not in self.fields]
        if not missing:
            return
        *first, last = [repr(name) for _, name in missing]
        what = f"there are no columns {', '.join(first)} and {last}" if first else f"there is no column {last}"
        options = " ".join(dict.fromkeys(f"--config.{group}.{option}=NAME" for option, _ in missing))
        raise UserError(f"{self.location}: {what}; the columns are {', '.join(self.fields)}: type {options}")

    def text(self, name: str, *, option: str, group: str = "own") -> str:
        """Return a field as text; a number is converted.

        Raises:
          UserError: if the column is missing, or its value is null, a list, or an object.
        """
        return self.as_text(self.field(name, option=option, group=group), name=name)

    def words(self, name: str, *, option: str) -> tuple[str, ...]:
        """Return a field as words: a list of them, or a space-separated string.

        Raises:
          UserError: if the column is missing or its value is something else.
        """
        value = self.field(name, option=option)
        if isinstance(value, str) and self.of_table:
            value = self.listed(value, name=name) or value
        if isinstance(value, str):
            return tuple(value.split())
        if not isinstance(value, list):
            raise UserError(
                f"{self.location}: column {name!r} is {shown(value)}: write a list of words, or words separated by "
                "spaces"
            )
        return tuple(self.as_text(item, name=name) for item in value)

    def listed(self, text: str, *, name: str) -> list[Any] | None:
        """Return the list in a field of a table, as pandas and JSON write it: `['a', 'b']`; None for another text.

        Raises:
          UserError: if it looks like a list and is none.
        """
        text = text.strip()
        if not (text.startswith("[") and text.endswith("]")):
            return None
        try:
            # Of ['a' 'b'], the form of a NumPy array, Python would make one text.
            items = None if _NUMPY.search(text) else ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            items = None
        if not isinstance(items, list):
            raise UserError(f"{self.location}: column {name!r} is {text[:60]}: write a list as ['a', 'b']")
        return items

    def as_text(self, value: Any, *, name: str) -> str:
        """Return a value of column `name` as text.

        Raises:
          UserError: if it is null, a truth value, NaN (which pandas writes for a missing value), a list, or an object.
        """
        if isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return str(value)
        value_text = json.dumps(value, default=repr)[:60]
        raise UserError(f"{self.location}: column {name!r} holds {value_text}, expected a text: fix the record")

    def label_id(self, label: str, *, labels: Sequence[str]) -> int:
        """Return the id of a label: its index in `labels`.

        Raises:
          UserError: if it is not one of `labels`.
        """
        if label not in labels:
            raise UserError(f"{self.location}: unknown label {label!r}: the labels are {', '.join(labels)}")
        return labels.index(label)


def read_records(data: DataOptions, *, split: str, texts: str = "") -> Iterator[Record]:
    """Yield the records of a split. Dev may also be called validation, valid or val.

    The suffix of the file is .jsonl or .json (objects, one per line or in an array, also under "data"),
    .csv or .tsv, or .parquet. With `texts` it may also be .txt: each line that is not blank is a record with this
    column.
    """
    suffixes = (".jsonl", ".json", *SUFFIXES, PARQUET, *([TEXT] if texts else []))
    stems = _STEMS[split]
    names = [f"{stem}{suffix}" for stem in stems for suffix in suffixes]
    stem, *others = stems
    also = f"or {', '.join(others)}; " if others else ""
    expected = f"{stem}.jsonl ({also}or {', '.join(suffixes[1:])})"
    directory = data.directory or "."
    path = find_file(
        directory,
        file=split_file(data, split),
        names=names,
        split=split,
        shown=expected,
        advice=_only_file(data, suffixes=suffixes, is_scored=not texts) if split == "train" else "",
    )
    yield from records_of(path, texts=texts)


def _only_file(data: DataOptions, *, suffixes: Sequence[str], is_scored: bool) -> str:
    """Return what to type to train on the only data file of a folder; "" if it has none, several, or one for dev.

    Without a dev file a part of train must be held out, which is in the same advice: it would be the next error.
    """
    folder = Path(data.directory or ".")
    files = [path for path in folder.iterdir() if set(suffixes) & set(path.suffixes)] if folder.is_dir() else []
    files = [path for path in files if path.name not in _METADATA]
    if len(files) != 1 or files[0].name.partition(".")[0] in (*_STEMS["dev"], *_STEMS["test"]):
        return ""
    needs_dev = is_scored and data.dev_split == "dev" and not (data.dev_file or data.dev_fraction)
    return f"type --data_dir={shlex.quote(str(files[0]))}" + (f" {HOLD_OUT}" if needs_dev else "")


def records_of(path: Path, *, texts: str = "") -> Iterator[Record]:
    """Yield the records of a file, whose suffix says what it is; as `read_records`."""
    if set(SUFFIXES) & set(path.suffixes):
        for row in read_table(path):
            yield Record(row.fields, row.location, of_table=True)
    elif PARQUET in path.suffixes:
        for number, fields in enumerate(read_arrow_rows(str(path))):
            yield Record(fields, f"{path} row {number}")
    elif texts and TEXT in path.suffixes:
        for number, line in numbered_lines(path):
            if line.strip():
                yield Record({texts: line.strip()}, f"{path} line {number}", of_table=True)
    elif (objects := _one_value(path)) is not None:
        for number, fields in enumerate(objects):
            if not isinstance(fields, dict):
                raise UserError(f"{path}: item {number} of the array is not a JSON object: write objects, {{...}}")
            yield Record(fields, f"{path} item {number}")
    else:
        for location, fields in read_json_lines(path):
            yield Record(fields, location)


def _one_value(path: Path) -> list[Any] | None:
    """Return the elements of a file that is one array, or an object with an array under "data"; None for JSON lines."""
    text = read_start(path)
    if _ARRAY.match(text) or (".json" in path.suffixes and text.lstrip()[:1] == "["):
        return read_json(path)
    if not _OBJECT.match(text):
        return None
    with contextlib.suppress(UserError):  # of lines, each of which is an object
        rows = read_json(path).get("data")
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            return rows
    return None
