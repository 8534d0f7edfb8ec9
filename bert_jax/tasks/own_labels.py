"""The labels of custom data: their order, their weights, and how they are shown."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from bert_jax.config.task_options import OwnOptions
from bert_jax.errors import UserError
from bert_jax.tasks.files import written
from bert_jax.tasks.own_records import Record

_INTEGER = re.compile(r"[+-]?[0-9]+")
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
    """Return distinct labels in the order of their ids: as numbers if all are integers, else as text."""
    distinct = set(labels)
    if all(_INTEGER.fullmatch(label) for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


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
    raise UserError(f"{record.location}: column {name!r} is {written(value)}: write 0 or 1")
