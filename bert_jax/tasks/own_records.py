"""Records of own data: JSON lines, or a TSV file with a header line, whose columns the config names.

In a TSV file lists (words, tags) are parted by spaces; in JSON lines they are lists or strings parted by spaces.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bert_jax.config.task_options import DataOptions, OwnOptions, SquadOptions
from bert_jax.errors import UserError
from bert_jax.tasks.files import read_json_lines, read_tsv
from bert_jax.tasks.interface import Task, find_file


class OwnTask(Task):
    """What own data of every kind shares: the options, and a test set where one is named."""

    name = "own"
    own: OwnOptions

    def __init__(self, *, data: DataOptions, own: OwnOptions, squad: SquadOptions):
        """Take the options; only questions read those of SQuAD."""
        del squad
        self.data, self.own = data, own

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set if one was named."""
        return ("test",) if self.data.test_file else ()

    def is_unlabelled(self, record: "Record", *, split: str) -> bool:
        """Return whether a record of the test set comes without a label, which it alone may."""
        return split == "test" and record.fields.get(self.own.label) is None


@dataclasses.dataclass(frozen=True)
class Record:
    """A record: its fields by column name, where it is, and whether it is a row of a table, whose fields are strings.

    `option` in the methods is the field of `config.own` that names the column, for messages.
    """

    fields: Mapping[str, Any]
    place: str  # "FILE line N", for messages
    of_table: bool = False

    def field(self, name: str, *, option: str) -> Any:
        """Return a field.

        Raises:
          UserError: if the record has none; the line names the option that said so.
        """
        if name not in self.fields:
            columns = ", ".join(self.fields)
            raise UserError(
                f"{self.place}: there is no column {name!r} (config.own.{option}); the columns are {columns}"
            )
        return self.fields[name]

    def text(self, name: str, *, option: str) -> str:
        """Return a field as text; a number is written out.

        Raises:
          UserError: if the record has none, or null, a list or an object there.
        """
        return self.as_text(self.field(name, option=option), name=name)

    def words(self, name: str, *, option: str) -> tuple[str, ...]:
        """Return a field as words: a list of them, or a string parted by spaces.

        Raises:
          UserError: if the record has none, or something else there.
        """
        value = self.field(name, option=option)
        if isinstance(value, str):
            return tuple(value.split())
        if not isinstance(value, list):
            raise UserError(
                f"{self.place}: column {name!r} is {value!r}: write a list of words, or words parted by spaces"
            )
        return tuple(self.as_text(item, name=name) for item in value)

    def as_text(self, value: Any, *, name: str) -> str:
        """Return a value found in column `name` as text.

        Raises:
          UserError: if it is null, a list or an object.
        """
        if isinstance(value, str | int | float) and value == value:  # NaN is what pandas writes for nothing
            return str(value)
        shown = json.dumps(value)[:60]
        raise UserError(f"{self.place}: column {name!r} holds {shown} where a text belongs: mend the record")

    def label_number(self, label: str, *, labels: Sequence[str]) -> int:
        """Return the number of a label.

        Raises:
          UserError: if it is not one of `labels`.
        """
        if label not in labels:
            raise UserError(f"{self.place}: unknown label {label!r}: the labels are {', '.join(labels)}")
        return labels.index(label)


def read_records(data: DataOptions, *, split: str) -> Iterator[Record]:
    """Yield the records of a split; the file's name says whether it is TSV or JSON lines."""
    given = {"train": data.train_file, "dev": data.dev_file, "test": data.test_file}[split]
    path = find_file(data.directory or ".", given=given, names=(f"{split}.jsonl", f"{split}.tsv"))
    if ".tsv" in path.suffixes:
        for row in read_tsv(path):
            yield Record(row.fields, row.place, of_table=True)
    else:
        for place, fields in read_json_lines(path):
            yield Record(fields, place)


def given_labels(own: OwnOptions) -> tuple[str, ...]:
    """Return the labels of the config in the order of their numbers; none: those of train count."""
    return tuple(label.strip() for label in own.labels.split(",")) if own.labels else ()
