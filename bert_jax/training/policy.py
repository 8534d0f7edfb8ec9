"""Policies: ordered (pattern, value) pairs over parameter names.

The first match wins, and every name must match.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax

Value = TypeVar("Value")
Policy = Sequence[tuple[str, Value]]


def parameter_names(params: Any) -> list[str]:
    """Return the slash-joined name of every leaf, in the order of `jax.tree.leaves`."""
    return ["/".join(_key(entry) for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def apply_policy(policy: Policy[Value], *, params: Any) -> Any:
    """Return a tree shaped like `params` with the policy's value for each parameter.

    Raises:
      ValueError: if no pattern matches a parameter, which is a bug in the policy.
    """
    return jax.tree.unflatten(jax.tree.structure(params), [_first(policy, name) for name in parameter_names(params)])


def _first(policy: Policy[Value], name: str) -> Value:
    for pattern, value in policy:
        if re.fullmatch(pattern, name):
            return value
    raise ValueError(f"no pattern of the policy matches parameter {name}")


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
