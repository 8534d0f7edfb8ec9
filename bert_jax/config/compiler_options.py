"""`config.mesh.compiler_options`: a text that names compiler options, read into their values."""

import re
from collections.abc import Mapping

from bert_jax.errors import UserError

CompilerOption = bool | int | str
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FIELD = "config.mesh.compiler_options"
_FORM = "write auto, none, or NAME=VALUE,NAME=VALUE (auto,NAME=VALUE adds to the chip's own)"


def parse_compiler_options(text: str, *, table: Mapping[str, CompilerOption]) -> dict[str, CompilerOption]:
    """Return the options that `text` names; `auto` stands for those of `table`, and a later value replaces an earlier.

    Raises:
      UserError: if it is not a list of that form.
    """
    options: dict[str, CompilerOption] = {}
    if text == "none":
        return options
    for item in text.split(","):
        if item == "auto":
            options |= table
            continue
        name, separator, value = item.partition("=")
        if not separator or not value or not _NAME.fullmatch(name):
            raise UserError(f"{_FIELD}={text!r}: {item!r} is not an option: {_FORM}")
        options[name] = _value(value)
    return options


def _value(text: str) -> CompilerOption:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text
