"""How a command is used: the text of `--help` with flags and config fields, and messages in terms of its flags."""

import dataclasses
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from typing import Any

from absl import flags

from bert_jax import invocation

WIDTH = 80
_REPEATED = r";\s*repeat this option to specify a list of values"


def text(config: Callable[[], type], *, file: str = "", values: Mapping[str, Any] | None = None) -> str:
    """Return the help of the command that runs; `config` returns the class of its config, if it has one.

    Fields have the `values` of the config `file`, `FILE[:argument]`, else the library's defaults.
    """
    parts = [_introduction((sys.modules["__main__"].__doc__ or "").strip()), _flags()]
    if "config" in flags.FLAGS:
        parts.append(_fields(config(), file=file, values=values or {}))
    return "\n\n".join(parts)


def version() -> str:
    """Return the version of the installed package."""
    try:
        return metadata.version("bert_jax")
    except metadata.PackageNotFoundError:
        return "(not installed: pip install -e .)"


def _introduction(text: str) -> str:
    """Return a docstring at the width of a terminal, its commands as the running one was typed."""
    start = invocation.command("")
    paragraphs = re.split(r"\n\n", text.replace("bert-jax ", start) if start != "bert-jax " else text)
    return "\n\n".join(
        "\n".join(map(cut_command, part.splitlines()))
        if part.startswith("    ")
        else textwrap.fill(" ".join(part.split()), WIDTH)
        for part in paragraphs
    )


def cut_command(line: str) -> str:
    """Return a command on as many lines as the width needs, to be typed as they are."""
    lines: list[str] = []
    for flag in re.split(r" (?=--)", line):
        if lines and len(lines[-1]) + len(flag) + 3 <= WIDTH:
            lines[-1] += f" {flag}"
        else:
            lines.append(f"        {flag}" if lines else flag)
    return " \\\n".join(lines)


def _flags() -> str:
    lines = ["flags:"]
    own = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    for name in sorted(own):
        flag = own[name]
        default = f" [{flag.default_as_str}]" if flag.default not in (None, "", []) else ""
        # absl's own sentence about flags that may be repeated is replaced by the flag's.
        lines += _entry(f"--{name}", f"{re.sub(_REPEATED, '', flag.help)}{default}")
    return "\n".join(lines)


def _fields(config: type, *, file: str, values: Mapping[str, Any]) -> str:
    from bert_jax.config import builder  # needs ml_collections, which no other help does
    from bert_jax.config.fields import info

    head = f"with the values of {file}:" if file else "with the library's defaults; a config file may differ:"
    lines = textwrap.wrap(f"config fields, as in --config.train.batch_size=64, {head}", WIDTH)
    for name, item in builder.leaf_fields(config).items():
        default = _in_every_phase(values, name) if file else item.default
        if default is dataclasses.MISSING:
            continue
        known = info(item)
        choices = f" One of {', '.join(choice or repr(choice) for choice in known.choices)}." if known.choices else ""
        lines += _entry(f"{name} [{default}]", known.doc + choices)
    return "\n".join(lines)


def _in_every_phase(config: Any, name: str) -> Any:
    """Return the value of a field; of one of a list of groups, `A, then B` where the groups differ."""
    group, is_listed, leaf = name.partition("[0]")
    if not is_listed:
        return _value(config, name)
    items = _value(config, group)
    if not isinstance(items, (tuple, list)):
        return dataclasses.MISSING
    values = [_value(config, f"{group}[{index}]{leaf}") for index in range(len(items))]
    shown = [str(value) for value in values if value is not dataclasses.MISSING]
    if not shown:
        return dataclasses.MISSING
    return ", then ".join(shown) if len(set(shown)) > 1 else shown[0]


def _value(config: Any, name: str) -> Any:
    """Return the value of a field, `dataclasses.MISSING` where the config lacks its group."""
    for part in re.findall(r"\w+", name):
        try:
            config = config[int(part) if part.isdecimal() else part]
        except (LookupError, TypeError):
            return dataclasses.MISSING
    return config


def _entry(head: str, body: str) -> list[str]:
    return [f"  {head}", *textwrap.wrap(body, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def as_flags(message: str, *, names: Collection[str]) -> str:
    """Return a message about config fields with the flags `names` instead of the fields of these names."""

    def flag(match: re.Match[str]) -> str:
        return f"--{match[1]}" if match[1] in names else match[0]

    message = re.sub(r" \(prepare --[^)]*\)", "", message)
    message = re.sub(r"(?:--)?\bconfig\.(?:data|model)\.(\w+)", flag, message)
    return re.sub(r"(?<![\w./])data\.(\w+)(?=[=:' ])", flag, message)
