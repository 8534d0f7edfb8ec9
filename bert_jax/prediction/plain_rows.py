"""Rows from plain text: `--text` on the command line, a line of a file that is not JSON, a prompt on a terminal."""

import re
import sys
from collections.abc import Iterator, Sequence

from bert_jax.config.task_options import TYPED_FIELDS
from bert_jax.data.tokenizer import MASK
from bert_jax.errors import UserError


def rows_of(task: str, texts: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows that `--text`, given once per field, describes.

    Raises:
      UserError: if the task takes other rows, or the texts do not fill them.
    """
    fields = TYPED_FIELDS.get(task)
    if fields is None:
        raise UserError(f"--text does not fit --task={task}: write JSON lines to a file and give it as --input=FILE")
    if len(texts) % len(fields):
        flags = " ".join(f"--text={field.upper()}" for field in fields)
        raise UserError(f"--task={task} takes {len(fields)} texts per row: type {flags}")
    rows = range(0, len(texts), len(fields))
    return [dict(zip(fields, texts[start : start + len(fields)], strict=True)) for start in rows]


def is_plain(task: str, line: bytes) -> bool:
    """Return whether a line is the text of a row itself: the task takes one text, and the line begins no JSON value.

    `[MASK] is a city.` is a text, `["Paris is a city."]` is not.
    """
    return len(TYPED_FIELDS.get(task, ())) == 1 and not re.match(rb"\s*(\{|\[\s*[\[{\"])", line)


def prompt(task: str) -> Iterator[dict[str, str]]:
    """Ask on the terminal for one row after the other, until the end of input.

    Raises:
      UserError: if the task's rows cannot be typed.
    """
    fields = TYPED_FIELDS.get(task)
    if fields is None:
        raise UserError(f"--input is missing: --task={task} takes JSON lines; give a file as --input=FILE")
    what = f"write {MASK} where a word is missing; " if task == "fill_mask" else ""
    print(f"{what}Ctrl-D ends", file=sys.stderr)
    while True:
        row: dict[str, str] = {}
        for field in fields:
            try:
                # On standard error: standard output, perhaps a file, is for the answers.
                print(f"{field}> ", end="", file=sys.stderr, flush=True)
                row[field] = input()
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:  # after the ^C that the terminal shows
                print(file=sys.stderr)
                raise
        if all(value.strip() for value in row.values()):
            yield row
