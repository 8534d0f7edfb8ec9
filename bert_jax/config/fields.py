"""Declare config fields: a default, with meaning and allowed values as metadata."""

import dataclasses
import math
from typing import Any

from bert_jax.errors import choose_one

MAX_SEED = (1 << 63) - 1  # what NumPy and jax take
_KEY = "bert_jax"


@dataclasses.dataclass(frozen=True)
class Range:
    """The allowed values of a number; `also` is one extra value outside the range, with its meaning."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    also: tuple[float, str] | None = None

    def __contains__(self, value: float) -> bool:
        """Return whether `value` is in the range or equals the extra value."""
        if self.also is not None and value == self.also[0]:
            return True
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        """Return the constraint as an error message states it."""
        extra = "" if self.also is None else f", or {self.also[0]:g} for {self.also[1]}"
        return self._bounds() + extra

    def _bounds(self) -> str:
        if self.at_least == 0 and self.at_most == MAX_SEED:
            return f"must not be negative, nor larger than {MAX_SEED}"
        if self.at_least is not None and self.at_most is not None:
            return f"must be between {self.at_least:g} and {self.at_most:g}"
        if self.at_least is not None and self.below is not None:
            return f"must be at least {self.at_least:g} and below {self.below:g}"
        if self.at_least == 0 and self.also is None:
            return "must not be negative"
        bounds = {"larger than": self.above, "at least": self.at_least, "below": self.below, "at most": self.at_most}
        return "must be " + " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """The meaning of a field and its allowed values.

    Attributes:
      doc: the meaning in one line.
      unit: what a number counts, if it counts something.
      choices: the allowed values of a string.
      range: the values of a number, or of each number in a list.
      only_for: for an optional group, the configs that have it.
      architecture: the architecture whose field of the model's shape it is; in others it keeps its default.
      in_bucket: whether a path may be a folder in a bucket.
    """

    doc: str = ""
    unit: str = ""
    choices: tuple[str, ...] = ()
    range: Range = Range()
    only_for: str = ""
    architecture: str = ""
    in_bucket: bool = False

    def refusal(self, value: Any) -> str | None:
        """Return why a value of the right type is not allowed, or None if it is."""
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        if self.choices and value not in self.choices:
            return choose_one(str(value), self.choices)
        if isinstance(value, int | float) and value not in self.range:
            return str(self.range)
        return None


def field(
    default: Any,
    *,
    doc: str,
    unit: str = "",
    choices: tuple[str, ...] = (),
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    also: tuple[float, str] | None = None,
    architecture: str = "",
    in_bucket: bool = False,
) -> Any:
    """Return a dataclass field with its meaning and allowed values (see `FieldInfo`, `Range`)."""
    bounds = Range(above, at_least, below, at_most, also)
    declared = FieldInfo(doc, unit, choices, bounds, architecture=architecture, in_bucket=in_bucket)
    return dataclasses.field(default=default, metadata={_KEY: declared})


def group(cls: type, *, doc: str, **changes: Any) -> Any:
    """Return a field that is a group of fields: a `cls` with its defaults, except for `changes`."""
    factory = (lambda: cls(**changes)) if changes else cls
    return dataclasses.field(default_factory=factory, metadata={_KEY: FieldInfo(doc)})


def optional_group(*, doc: str, only_for: str) -> Any:
    """Return a field that is a group in the configs that `only_for` names, and None in the others."""
    return dataclasses.field(default=None, metadata={_KEY: FieldInfo(doc, only_for=only_for)})


def info(item: dataclasses.Field) -> FieldInfo:
    """Return the `FieldInfo` of a dataclass field; an empty one if it was declared without this module."""
    return item.metadata.get(_KEY, FieldInfo())
