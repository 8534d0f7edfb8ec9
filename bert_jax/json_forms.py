"""Forms of JSON values: compare a parsed value with an annotation, and say which part is something else.

A form is an annotation: `str`, `int`, `float`, `bool`, `None`, `Any`, a union, `Mapping[str, X]`, `Mapping[int, X]` for
names that are numbers, `list[X]`, `tuple[X, ...]`, a dataclass or a `TypedDict`. `Annotated` adds a check, as in
`Count`.
"""

import dataclasses
import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from typing import (
    Annotated,
    Any,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

_SHOWN = 60  # characters of a value in a message
_MAX_COUNT = 1 << 53  # exact as a float, and thousands of them can be added
_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}
_SURROGATE = re.compile("[\ud800-\udfff]")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Between:
    """A number from `low` to `high`; NaN is not one."""

    low: float
    high: float
    words: str

    def accepts(self, value: Any) -> bool:
        """Return whether the number is in the range."""
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class Encodable:
    """A text without lone surrogates, which UTF-8 cannot hold."""

    words: str = "a text without lone surrogates"

    def accepts(self, value: Any) -> bool:
        """Return whether the text can be written as UTF-8."""
        return is_encodable(value)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of some texts."""

    choices: Sequence[str]

    @property
    def words(self) -> str:
        """Return what was expected."""
        return f"one of {', '.join(self.choices)}"

    def accepts(self, value: Any) -> bool:
        """Return whether the text is one of them."""
        return value in self.choices


Count = Annotated[int, Between(0, _MAX_COUNT, "a whole number from 0")]
Finite = Annotated[float, Between(-1.7e308, 1.7e308, "a finite number")]
Seconds = Annotated[float, Between(0, 1e12, "a number of seconds")]
Text = Annotated[str, Encodable()]


def fit(value: Any, form: Any, *, at: str = "") -> Any:
    """Return a JSON value as `form` describes it: objects as dataclasses, arrays as tuples where the form says so.

    Raises:
      ValueError: with the path of the first wrong part, what it is, and what was expected.
    """
    origin, arguments = get_origin(form), get_args(form)
    if form is Any:
        return value
    if origin in (Required, NotRequired):
        return fit(value, arguments[0], at=at)
    if origin is Annotated:
        value = fit(value, arguments[0], at=at)
        for check in arguments[1:]:
            if not check.accepts(value):
                raise _wrong(value, check.words, at=at)
        return value
    if origin in (Union, types.UnionType):
        return _fit_union(value, arguments, at=at)
    if is_typeddict(form) or dataclasses.is_dataclass(form):
        return _fit_fields(value, form, at=at)
    container = origin or form
    if isinstance(container, type) and issubclass(container, Mapping):
        return _fit_mapping(value, arguments or (str, Any), at=at)
    if isinstance(container, type) and issubclass(container, Sequence) and container is not str:
        return _fit_list(value, container, arguments[0] if arguments else Any, at=at)
    return _fit_leaf(value, form, at=at)


def _fit_leaf(value: Any, kind: type, *, at: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise _wrong(value, "a number of usual size", at=at) from None
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise _wrong(value, _NAMES.get(kind, kind.__name__), at=at)
    return value


def _fit_union(value: Any, forms: Sequence[Any], *, at: str) -> Any:
    if value is None and type(None) in forms:
        return None
    reasons = []
    for form in forms:
        if form is not type(None):
            try:
                return fit(value, form, at=at)
            except ValueError as error:
                reasons.append(error)
    if len(reasons) == 1:
        raise reasons[0]
    raise _wrong(value, " or ".join(_NAMES.get(get_origin(form) or form, "another value") for form in forms), at=at)


def _fit_mapping(value: Any, forms: Sequence[Any], *, at: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise _wrong(value, "an object {...}", at=at)
    name_form, form = forms
    names = {name: _number(name, at=at) if name_form is int else fit(name, name_form, at=at) for name in value}
    return {names[name]: fit(item, form, at=_join(at, name)) for name, item in value.items()}


def _number(name: str, *, at: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", name):
        raise ValueError(f"{_place(at)} has the name {kind_of(name)}, expected a whole number as the name")
    return int(name)


def _fit_list(value: Any, container: Any, form: Any, *, at: str) -> Any:
    if not isinstance(value, list):
        raise _wrong(value, "a list [...]", at=at)
    items = [fit(item, form, at=f"{at}[{index}]") for index, item in enumerate(value)]
    return items if container is list else tuple(items)


def _fit_fields(value: Any, form: Any, *, at: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(value, "an object {...}", at=at)
    hints = get_type_hints(form, include_extras=True)
    if is_typeddict(form):  # fields that it does not name are kept as they are
        required, present = form.__required_keys__, [name for name in value if name in hints]
    else:
        fields = [item for item in dataclasses.fields(form) if item.init]
        defaults = {item.name: (item.default, item.default_factory) for item in fields}
        required = {name for name, default in defaults.items() if default == (dataclasses.MISSING, dataclasses.MISSING)}
        present = list(value)
        unknown = next((name for name in value if name not in defaults), None)
        if unknown is not None:
            raise ValueError(f"{_place(_join(at, unknown))} is not a field of this file")
    missing = sorted(name for name in required if name not in value)
    if missing:
        raise ValueError(f"{_place(_join(at, missing[0]))} is missing")
    fitted = {name: fit(value[name], hints[name], at=_join(at, name)) for name in present}
    return {**value, **fitted} if is_typeddict(form) else form(**fitted)


def is_encodable(text: str) -> bool:
    """Return whether UTF-8 can hold the text: it has no lone surrogate, which JSON can write as an escape."""
    return text.isascii() or _SURROGATE.search(text) is None


def kind_of(value: Any) -> str:
    """Return a value as a message shows it: short, and for a container only what it is."""
    if isinstance(value, dict):
        return "an object {...}"
    if isinstance(value, list):
        return "a list [...]"
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "infinity", -math.inf: "-infinity"}.get(value, "NaN")
    if isinstance(value, int) and abs(value) > 10**_SHOWN:
        return "a number of more than 60 digits"
    if isinstance(value, str):
        return f"the text {json.dumps(value[:_SHOWN])}" + ("..." if len(value) > _SHOWN else "")
    return json.dumps(value)


def shown(value: Any) -> str:
    """Return a value of any kind as Python writes it, null and truth values as JSON does, shortened for a message."""
    if value is None or isinstance(value, bool):
        return kind_of(value)
    if isinstance(value, int) and abs(value) > 10**_SHOWN:  # its digits may be more than Python writes
        return kind_of(value)
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _wrong(value: Any, expected: str, *, at: str) -> ValueError:
    return ValueError(f"{_place(at)} is {kind_of(value)}, expected {expected}")


def _place(at: str) -> str:
    return at or "it"


def _join(at: str, name: str) -> str:
    name = name if len(name) <= _SHOWN else name[:_SHOWN] + "..."
    return f"{at}.{name}" if at else name
