"""The pages of the reference that are made from the code: commands, config fields, config files.

Needs neither jax nor mkdocs: tests call the same functions.
"""

import ast
import dataclasses
import inspect
import re
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from absl import flags

from bert_jax import __main__ as entry
from bert_jax.config import Config, model_preset, presets
from bert_jax.config.builder import optional_groups
from bert_jax.config.fields import FieldInfo, Range, info
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.reproduction import ScaleConfig, ScaledTask

ROOT = Path(__file__).resolve().parents[1]
WIDE = "---\nhide: [toc]\n---\n\n"  # front matter of pages with wide tables


@dataclasses.dataclass(frozen=True)
class Row:
    """A config field as the reference shows it; `name` is what is typed after `--config.`."""

    name: str
    type: str
    default: Any
    info: FieldInfo


@dataclasses.dataclass(frozen=True)
class Section:
    """A group of fields: its name ("" for the config itself), what it holds, which configs have it, its fields."""

    name: str
    doc: str
    only_for: str
    rows: tuple[Row, ...]


def sections(cls: type) -> Iterator[Section]:
    """Yield the groups of a config's fields in their order, its own fields first."""
    config = cls()
    yield Section("", inspect.getdoc(cls) or "", "", tuple(_rows(config)))
    for item in dataclasses.fields(cls):
        group = getattr(config, item.name)
        if item.name in optional_groups(cls):
            group = _dataclass_of(get_type_hints(cls)[item.name])()
        if dataclasses.is_dataclass(group):
            doc = inspect.getdoc(type(group)) or ""
            yield Section(item.name, doc, info(item).only_for, tuple(_rows(group, prefix=f"{item.name}.")))
            yield from _lists(group, prefix=item.name)


def _rows(group: Any, *, prefix: str = "") -> Iterator[Row]:
    hints = get_type_hints(type(group))
    for item in dataclasses.fields(group):
        if _dataclass_of(hints[item.name]) is None:
            yield Row(prefix + item.name, type_name(hints[item.name]), getattr(group, item.name), info(item))


def _lists(group: Any, *, prefix: str) -> Iterator[Section]:
    """Yield the groups that a list of groups holds; the fields are those of its first."""
    hints = get_type_hints(type(group))
    for item in dataclasses.fields(group):
        element = _dataclass_of(hints[item.name])
        if element is not None and get_origin(hints[item.name]) is tuple:
            name = f"{prefix}.{item.name}[0]"
            doc = f"{inspect.getdoc(element)} {info(item).doc}"
            yield Section(name, doc, "", tuple(_rows(element(), prefix=f"{name}.")))


def _dataclass_of(hint: Any) -> Any:
    """Return the dataclass in `Group`, `Group | None` or `tuple[Group, ...]`, None where there is none."""
    return next((kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)), None)


def type_name(hint: Any) -> str:
    """Return a type as the reference calls it."""
    if get_origin(hint) is tuple:
        return f"list of {get_args(hint)[0].__name__}"
    return hint.__name__


def values_of(field: FieldInfo) -> str:
    """Return the values that a field takes, in Markdown; "" where its type says all."""
    if field.choices:
        return ", ".join(f"`{choice}`" if choice else "empty" for choice in field.choices)
    return bounds(field.range)


def bounds(allowed: Range) -> str:
    """Return a range in mathematical notation."""
    low = f"{allowed.at_least:g} ≤ " if allowed.at_least is not None else ""
    low = f"{allowed.above:g} < " if allowed.above is not None else low
    high = f" ≤ {allowed.at_most:g}" if allowed.at_most is not None else ""
    high = f" < {allowed.below:g}" if allowed.below is not None else high
    if low and not high:
        low, high = "", f" {'>' if allowed.above is not None else '≥'} {low.split()[0]}"
    text = f"{low}x{high}" if low or high else ""
    also = "" if allowed.also is None else f", or `{allowed.also[0]:g}`: {allowed.also[1]}"
    return text + also


def default_of(row: Row) -> str:
    """Return a default as it is typed."""
    if isinstance(row.default, str):
        return f"`{row.default}`" if row.default else "empty"
    if isinstance(row.default, tuple):
        return f"`({', '.join(item if isinstance(item, str) else f'{item:g}' for item in row.default)})`"
    return f"`{row.default:g}`" if isinstance(row.default, float) else f"`{row.default}`"


def config_page(shown: Iterable[Section], *, title: str, intro: str) -> str:
    """Return the page of a config: a table per group."""
    parts = [f"{WIDE}# {title}\n\n{intro}\n"]
    for section in shown:
        parts.append(f"## {f'`{section.name}`' if section.name else 'The config itself'}\n\n{section.doc}\n")
        if section.only_for:
            parts.append(f"Only for: {section.only_for}.\n")
        table = ["| field | type | default | values | meaning |", "|---|---|---|---|---|"]
        for row in section.rows:
            unit = f", {row.info.unit}" if row.info.unit else ""
            cells = (
                breakable(row.name),
                row.type + unit,
                default_of(row),
                values_of(row.info),
                row.info.doc,
            )
            table.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(table) + "\n")
    return "\n".join(parts)


def breakable(name: str) -> str:
    """Return a name as code that a narrow table may break after a dot or an underscore."""
    return "<code>" + re.sub(r"([._])", r"\1<wbr>", name) + "</code>"


def pretraining_page() -> str:
    """Return the reference of the pre-training config."""
    return config_page(
        sections(Config),
        title="Pre-training config",
        intro="Every field of a config for `bert-jax train`, `distill` and `plan`. Type `--config.NAME=VALUE` to "
        "change one on the command line, or assign it in a config file. Defaults are the paper's; a config file may "
        "set others ([config files](config_files.md)). x is the value; a value outside its range is refused before "
        "anything runs.",
    )


def finetuning_page() -> str:
    """Return the reference of the fine-tuning config."""
    optional = sorted(optional_groups(FinetuneConfig))
    return config_page(
        sections(FinetuneConfig),
        title="Fine-tuning config",
        intro="Every field of a config for `bert-jax finetune`. Type `--config.NAME=VALUE` to change one on the "
        f"command line. A config has the groups {', '.join(f'`{name}`' for name in optional)} only where its task "
        "reads them. x is the value.",
    )


def scale_sections() -> Iterator[Section]:
    """Yield the fields of a scale and of one of its tasks; those of the configs that it holds have their own pages."""
    yield Section("", inspect.getdoc(ScaleConfig) or "", "", tuple(_rows(ScaleConfig())))
    yield Section("tasks[0]", inspect.getdoc(ScaledTask) or "", "", tuple(_rows(ScaledTask(), prefix="tasks[0].")))


def scale_page() -> str:
    """Return the reference of a scale's config."""
    return config_page(
        scale_sections(),
        title="Scale config",
        intro="Every field of a scale of `bert-jax reproduce`, a file `configs/reproduce_NAME.py`. Its `pretraining` "
        "is a [pre-training config](pretraining_config.md), the `config` of each of its tasks a [fine-tuning "
        "config](finetuning_config.md). x is the value.",
    )


def command_flags(command: str) -> dict[str, flags.Flag]:
    """Return the flags that a command defines, by name, leaving the process's own flags as they were."""
    known = flags.FLAGS
    names = set(_defined_flags(command))
    hidden = {name: known[name] for name in names if name in known}
    for name in hidden:
        delattr(known, name)
    try:
        runpy.run_module(f"bert_jax.{command}", run_name=f"documented_{command}")
        return {name: known[name] for name in sorted(names)}
    finally:
        for name in names & set(known):
            delattr(known, name)
        for name, flag in hidden.items():
            known[name] = flag


def _defined_flags(command: str) -> Iterator[str]:
    """Yield the names that a command's file gives to its flags."""
    tree = ast.parse((ROOT / "bert_jax" / f"{command}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_"):
            yield ast.literal_eval(node.args[0])


def commands_page() -> str:
    """Return the reference of the commands: what each does, and its flags."""
    parts = [
        f"{WIDE}# Commands\n\n`bert-jax COMMAND --flag=value` and `python -m bert_jax.COMMAND --flag=value` are the "
        "same. `bert-jax COMMAND --help` lists the flags, `bert-jax --version` prints the version. A wrong flag or "
        "value is one line that says what to type, and exit status 2.\n"
    ]
    for command in entry.COMMANDS:
        text = (ROOT / "bert_jax" / f"{command}.py").read_text(encoding="utf-8")
        parts.append(f"## {command}\n\n{ast.get_docstring(ast.parse(text))}\n")
        table = ["| flag | default | values | meaning |", "|---|---|---|---|"]
        for name, flag in command_flags(command).items():
            default = flag.default_as_str or ""
            shown = f"`{default.strip(chr(39))}`" if default not in ("", "''") and flag.default is not None else ""
            values = ", ".join(f"`{value}`" for value in getattr(flag.parser, "enum_values", None) or ())
            kind = {"string": "", "config object": "`FILE[:argument]`"}.get(flag.flag_type(), flag.flag_type())
            shown_name = breakable(("--[no]" if flag.boolean else "--") + name)
            cells = (shown_name, shown, values or kind, re.sub(r"^<[^>]*>: ", "", flag.help or ""))
            table.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
        if any(flag.flag_type() == "config object" for flag in command_flags(command).values()):
            page = "finetuning_config.md" if command == "finetune" else "pretraining_config.md"
            table += ["", f"`--config.NAME=VALUE` changes a field of the config: [every field]({page})."]
        parts.append("\n".join(table) + "\n")
    return "\n".join(parts)


def config_files() -> dict[str, Callable[..., Any]]:
    """Return the `get_config` of every file in configs/."""
    return {path.name: runpy.run_path(str(path))["get_config"] for path in sorted((ROOT / "configs").glob("[a-z]*.py"))}


def config_files_page() -> str:
    """Return the reference of the config files and the presets."""
    parts = [
        "# Config files and presets\n\n`--config=FILE` or `--config=FILE:ARGUMENT`. A config file is a Python file "
        "with a function `get_config` that returns a ConfigDict; copy one to make your own.\n"
    ]
    for name, get_config in config_files().items():
        text = (ROOT / "configs" / name).read_text(encoding="utf-8")
        argument = next(iter(inspect.signature(get_config).parameters.values()), None)
        parts.append(f"## configs/{name}\n\n{ast.get_docstring(ast.parse(text))}\n")
        if argument is not None:
            parts.append(f"Argument: `{argument.name}`, by default `{argument.default or '(empty)'}`.\n")
    parts.append(
        "## Presets of shapes\n\n"
        "`default_config(model=NAME)` in a config file takes a released shape by name, or by a text such as "
        "`L-6_H-768_A-12`: any of the released small models and the rows of the paper's Table 6.\n\n"
        "| name | architecture | layers | hidden size | heads | feed-forward |\n|---|---|---|---|---|---|\n"
        + "\n".join(_preset_row(name) for name in presets.NAMES)
        + "\n"
    )
    return "\n".join(parts)


def _preset_row(name: str) -> str:
    shape = model_preset(name)
    return (
        f"| `{name}` | {shape.architecture} | {shape.num_hidden_layers} | {shape.hidden_size} "
        f"| {shape.num_attention_heads} | {shape.intermediate_size} |"
    )


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/commands.md": commands_page,
    "reference/pretraining_config.md": pretraining_page,
    "reference/finetuning_config.md": finetuning_page,
    "reference/scale_config.md": scale_page,
    "reference/config_files.md": config_files_page,
}
# Pages that are files of the repository.
COPIES: Mapping[str, str] = {
    "reference/results.md": "benchmarks/RESULTS.md",
    "reference/runs.md": "RUNS.md",
    "reference/changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
