"""How an answer is written as JSON: on one line for programs, on several for a person at a terminal."""

import json
from typing import Any


def one_line(value: Any) -> str:
    """Return a value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)


def readable(value: Any, *, indent: str = "") -> str:
    """Return a value as JSON with each innermost object or list on a line of its own, indented by nesting."""
    items = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list) else []
    if not any(isinstance(item, dict | list) for item in items):
        return one_line(value)
    names = [f"{one_line(name)}: " for name in value] if isinstance(value, dict) else [""] * len(items)
    inner = indent + "  "
    lines = [f"{inner}{name}{readable(item, indent=inner)}" for name, item in zip(names, items, strict=True)]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([opening, ",\n".join(lines), indent + closing])
