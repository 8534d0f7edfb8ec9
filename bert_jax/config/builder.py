"""Build a config: a ConfigDict or mapping in, a frozen dataclass out, a one-line error for the first mistake.

A config is a frozen dataclass whose fields are values, lists (tuples) of values, groups (dataclasses), lists of groups,
and groups that only some configs have (`Group | None`). Names and types come from the annotations; choices and ranges
are metadata of the fields (`fields.py`).
"""

import dataclasses
import json
import re
from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from bert_jax.config.fields import FieldInfo, info
from bert_jax.errors import UserError, closest
from bert_jax.locations import refuse_url

T = TypeVar("T")
_LARGEST = (1 << 63) - 1  # of a whole number: what arrays hold


def build(cls: type[T], raw: ConfigDict | Mapping[str, Any]) -> T:
    """Return the config that `raw` describes; fields missing from `raw` keep their defaults.

    Names and types are checked here, values by `check_fields`.

    Raises:
      UserError: for an unknown field or a wrong type; the message names the field.
    """
    return _group(cls, raw, path="", known=field_names(cls, groups=raw))


def check_fields(config: Any, *, path: str = "config") -> None:
    """Check every value of a config, or of its group `path`, against the field's choices and range.

    Raises:
      UserError: for the first value that its field does not accept.
    """
    for item in dataclasses.fields(config):
        _check_value(getattr(config, item.name), info(item), path=f"{path}.{item.name}")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested dictionaries, without its absent groups."""
    return dataclasses.asdict(config, dict_factory=lambda items: {k: v for k, v in items if v is not None})


def to_json(config: Any) -> str:
    """Return a config as indented JSON, for `WORKDIR/config.json`."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def flatten(config: Any) -> dict[str, Any]:
    """Return leaves by dotted name: `{"model.hidden_size": 768, ...}`, list items as `train.phases[0].fraction`."""
    leaves: dict[str, Any] = {}

    def visit(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for name, child in value.items():
                visit(child, _join(path, name))
        elif isinstance(value, (tuple, list)):
            for index, child in enumerate(value):
                visit(child, f"{path}[{index}]")
        else:
            leaves[path] = value

    visit(to_dict(config), "")
    return leaves


def leaf_fields(cls: type) -> dict[str, dataclasses.Field]:
    """Return the leaf fields of a config by dotted name; for a list of groups, those of its first item."""
    leaves: dict[str, dataclasses.Field] = {}
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint = _without_none(hints[item.name])
        inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
        name = item.name if inner is hint else f"{item.name}[0]"
        if dataclasses.is_dataclass(inner):
            leaves |= {f"{name}.{child}": leaf for child, leaf in leaf_fields(inner).items()}  # type: ignore[arg-type]
        else:
            leaves[item.name] = item
    return leaves


def field_names(cls: type, *, groups: Container[str] | None = None) -> list[str]:
    """Return the dotted names of `leaf_fields`; optional groups are included if they are in `groups` (default: all)."""
    left_out = () if groups is None else [name for name in optional_groups(cls) if name not in groups]
    return [name for name in leaf_fields(cls) if name.partition(".")[0] not in left_out]


def choices_of(cls: type) -> dict[str, tuple[str, ...]]:
    """Return the choices of every field that restricts its values, by dotted name."""
    return {name: info(item).choices for name, item in leaf_fields(cls).items() if info(item).choices}


def unknown_field_message(path: str, known: Sequence[str]) -> str:
    """Return the error for a field that does not exist, with the closest dotted names in `known`."""
    parent, _, leaf = path.rpartition(".")
    prefix = re.sub(r"\[\d+\]", "[0]", parent) + "." if parent else ""
    siblings = {re.split(r"[.\[]", name[len(prefix) :])[0]: None for name in known if name.startswith(prefix)}
    near = [_join(parent, name) for name in _similar(leaf, siblings)]
    near += [name for name in known if name.rpartition(".")[2] == leaf]
    if not siblings:  # the group does not exist
        near = closest(path, known) or near
    hint = f"did you mean {' or '.join(f'config.{name}' for name in near)}?"
    if not near:
        hint = f"available: {', '.join(_join(parent, name) for name in siblings) or ', '.join(known)}"
    return f"config.{path}: no such field; {hint}"


def _similar(name: str, others: Collection[str]) -> list[str]:
    """Return the names that `name` may stand for: its letters are their initials, one contains the other, or a slip."""
    initials = [other for other in others if name == "".join(word[0] for word in other.split("_"))]
    contained = [other for other in others if len(name) > 2 and (name in other or other in name)]
    return initials or contained or closest(name, others)


def optional_groups(cls: type) -> dict[str, str]:
    """Return the optional groups by name, each with the configs that have it."""
    return {item.name: info(item).only_for for item in dataclasses.fields(cls) if info(item).only_for}


def absent_group_message(cls: type, path: str, *, config: str = "this config") -> str:
    """Return the error for a field of an optional group that `config` does not have."""
    owner = optional_groups(cls)[path.partition(".")[0]]
    return f"config.{path}: no such field in {config}; it is an option of {owner}: leave it out"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _without_none(hint: Any) -> Any:
    """Return `Group` for `Group | None`; return any other annotation unchanged."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(hint) else hint


def _group(cls: Any, raw: Any, *, path: str, known: Sequence[str]) -> Any:
    if isinstance(raw, cls):
        return raw
    if isinstance(raw, ConfigDict):  # `to_dict` does not look inside tuples
        raw = raw.to_dict()
    if not isinstance(raw, Mapping):
        raise UserError(f"config{path and '.'}{path}: expected a group of fields, got {raw!r}")
    hints = get_type_hints(cls)
    for name in raw:
        if name not in hints:
            raise UserError(unknown_field_message(_join(path, name), known))
    return cls(**{n: _value(hints[n], value, path=_join(path, n), known=known) for n, value in raw.items()})


def _value(hint: Any, value: Any, *, path: str, known: Sequence[str]) -> Any:
    needed = _without_none(hint)
    if value is None and needed is not hint:
        return None
    if dataclasses.is_dataclass(needed):
        return _group(needed, value, path=path, known=known)
    if get_origin(needed) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"config.{path}: expected a list, got {value!r}")
        inner = get_args(needed)[0]
        return tuple(_value(inner, item, path=f"{path}[{i}]", known=known) for i, item in enumerate(value))
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise UserError(f"config.{path}: expected a number of usual size, got one of {value.bit_length()} bits")
    if needed is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, needed) or (needed is not bool and isinstance(value, bool)):
        raise UserError(f"config.{path}: expected {needed.__name__}, got {value!r} ({type(value).__name__})")
    return value


def _check_value(value: Any, declared: FieldInfo, *, path: str) -> None:
    if dataclasses.is_dataclass(value):
        check_fields(value, path=path)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            _check_value(item, declared, path=f"{path}[{index}]")
    elif isinstance(value, str):
        refuse_url(value, name=path, buckets=declared.in_bucket)
    if value is not None and not isinstance(value, tuple) and (refusal := declared.refusal(value)):
        raise UserError(f"{path}={value!r}: {refusal}")
