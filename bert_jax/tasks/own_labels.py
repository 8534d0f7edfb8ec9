"""The labels of custom data: their order, their weights, and how they are shown."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from bert_jax.config.task_options import OwnOptions
from bert_jax.errors import UserError
from bert_jax.json_forms import shown
from bert_jax.tasks.own_records import Record

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_TRUTHS = ("true", "false")
_SHOWN = 30  # labels in a note
_MANY = 0.5  # labels per example from which the column is probably not one of labels


def configured_labels(own: OwnOptions) -> tuple[str, ...]:
    """Return the labels in the config, in the order of their ids; empty if they are to be read from train.

    Raises:
      UserError: if a label appears twice.
    """
    labels = tuple(label.strip() for label in own.labels.split(",")) if own.labels else ()
    if len(set(labels)) < len(labels):
        raise UserError(f"config.own.labels={own.labels!r}: a label appears twice: give each label once")
    return labels


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return distinct labels in the order of their ids: as numbers if all are, else as text; their texts are kept."""
    distinct = set(labels)
    if all(is_number(label) for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (Decimal(label), label)))
    return tuple(sorted(distinct))


def is_number(text: str) -> bool:
    """Return whether a text is a number, in ASCII digits."""
    return _NUMBER.fullmatch(text.strip()) is not None


def check_label_types(located: Iterable[tuple[str, Any]], *, column: str) -> None:
    """Check that JSON's values in the column of the labels are of one kind. Texts may be numbers; 1 and "1" are one.

    Args:
      located: the location and the value of each record.
      column: the name of the column, for the message.

    Raises:
      UserError: if a truth value or a number is among labels of another kind.
    """
    values = sorted(located, key=lambda item: not isinstance(item[1], bool))
    odd = next(((at, value) for at, value in values if not isinstance(value, str)), None)
    if odd is None:
        return  # of a table, or quoted: a note names a stray label
    other = next((item for item in values if _type_of(item[1]) != _type_of(odd[1])), None)
    if other is None:
        return
    raise UserError(
        f"{odd[0]}: the label in column {column!r} is {json.dumps(odd[1])}, {_type_of(odd[1])}, but {other[0]} has "
        f"{json.dumps(other[1])[:60]}, {_type_of(other[1])}: write labels of one kind, or name them with "
        "--config.own.labels=A,B,..."
    )


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "a truth value"
    return "a number" if not isinstance(value, str) or is_number(value) else "a text"


def stray_notes(labels: Sequence[str]) -> list[str]:
    """Return lines about labels: one of another kind than the others, a number that is written in two ways."""
    kinds: dict[str, list[str]] = {}
    numbers: dict[Decimal, str] = {}
    notes: list[str] = []
    for label in labels:
        kind = "a truth value" if label.lower() in _TRUTHS else _type_of(label)
        kinds.setdefault(kind, []).append(label)
        if kind == "a number" and (same := numbers.setdefault(Decimal(label), label)) != label:
            notes.append(f"labels {same!r} and {label!r} are one number: write it in one way if they are one label")
    for kind, names in kinds.items():
        if len(names) == 1 < len(kinds) and kind != "a text":
            notes.append(f"label {names[0]!r} is {kind}, the others are not: fix its records if it is not meant")
    return notes


def listed(names: str) -> list[str]:
    """Return the names in an option that separates them by commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def weight_list(text: str) -> tuple[float, ...]:
    """Return the numbers in `config.own.class_weights`.

    Raises:
      UserError: if one is not a positive number.
    """
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = (math.nan,)
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(f"config.own.class_weights={text!r}: give positive numbers separated by commas, or balanced")
    return weights


def label_note(labels: Sequence[str], *, counts: Sequence[int]) -> str:
    """Return a line with the labels in the order of their ids and the number of examples of each."""
    shown = [f"{i} = {name!r} ({n})" for i, (name, n) in enumerate(zip(labels, counts, strict=True))][:_SHOWN]
    more = f", and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    line = f"labels by id, with their examples in train: {', '.join(shown)}{more}"
    if len(labels) > 2 and len(labels) > _MANY * sum(counts):
        line += f"; {len(labels)} labels in {sum(counts)} examples: is config.own.label the column of the labels?"
    return line


def is_truth(value: Any, *, record: Record, name: str) -> bool:
    """Return a field of a column of 0 and 1 as a truth value; an empty field is 0.

    Raises:
      UserError: if it is something else.
    """
    text = str(value).strip().lower()
    if text in ("1", "1.0", "true"):
        return True
    if text in ("0", "0.0", "false", ""):
        return False
    raise UserError(f"{record.location}: column {name!r} is {shown(value)}: write 0 or 1")
