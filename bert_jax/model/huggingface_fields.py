"""Readers and checks of config.json fields, shared by all architectures; each error names the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError

_LARGEST = 1 << 24  # limit of every size, so that a corrupt config.json fails before anything is allocated
# HuggingFace's "gelu" is the erf form, the two others are the tanh form of the original.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "relu": "relu",
}


def read_size(fields: Mapping[str, Any], name: str, *, file: Path, default: int | None = None) -> int:
    """Return the size in field `name`.

    Raises:
      UserError: if it is missing without a `default`, or not a whole number within bounds.
    """
    value = fields.get(name, default)
    if type(value) is not int or not 0 < value <= _LARGEST:
        raise UserError(f"{file}: {name} is {value!r}: write a whole number from 1 to {_LARGEST}")
    return value


def read_flag(fields: Mapping[str, Any], name: str, *, file: Path) -> bool:
    """Return the flag in field `name`, False if it is missing.

    Raises:
      UserError: if it is anything else.
    """
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"{file}: {name} is {str(value)[:40]!r}: write true or false")
    return value


def read_fraction(fields: Mapping[str, Any], name: str, *, file: Path, default: float) -> float:
    """Return the number from 0 to 1 in field `name`.

    Raises:
      UserError: if it is anything else.
    """
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"{file}: {name} is {value!r}: write a number from 0 to 1")
    return float(value)


def read_number(fields: Mapping[str, Any], name: str, *, file: Path, default: float) -> float:
    """Return the positive number in field `name`.

    Raises:
      UserError: if it is anything else.
    """
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise UserError(f"{file}: {name} is {str(value)[:40]!r}: write a number above 0")
    return float(value)


def read_activation(fields: Mapping[str, Any], name: str, *, file: Path, known: Mapping[str, str] = ACTIVATIONS) -> str:
    """Return our name of the activation in field `name`.

    Raises:
      UserError: if it is not one of `known`.
    """
    value = fields.get(name, "gelu")
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{file}: {name} is {value!r}: the supported ones are {', '.join(known)}")
    return known[value]


def check_heads(fields: Mapping[str, Any], *, file: Path) -> None:
    """Check that the heads divide the hidden size.

    Raises:
      UserError: if they do not.
    """
    heads, size = fields["num_attention_heads"], fields["hidden_size"]
    if size % heads:
        raise UserError(
            f"{file}: num_attention_heads={heads} does not divide hidden_size={size}: restore the original file"
        )


def check_fixed(fields: Mapping[str, Any], fixed: Mapping[str, Any], *, file: Path) -> None:
    """Check fields that must have one value (their default) because others change the arithmetic.

    Raises:
      UserError: if a field has another value.
    """
    for name, value in fixed.items():
        if fields.get(name, value) != value:
            raise UserError(
                f"{file}: {name} is {str(fields[name])[:40]!r}: only {value!r} is supported; name another model"
            )
