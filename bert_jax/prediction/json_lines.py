"""Prediction from JSON Lines or texts to JSON Lines: an answer per row, in order. Failures are reported and counted."""

import contextlib
import dataclasses
import itertools
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from bert_jax import streams
from bert_jax.errors import UserError
from bert_jax.files import replacing, writing
from bert_jax.json_files import parse_object
from bert_jax.locations import local_path
from bert_jax.prediction.model import Model
from bert_jax.prediction.plain_rows import is_plain, prompt, rows_of
from bert_jax.progress import ByteProgress

_EXAMPLES = 5  # number of failed lines that are reported in full
# Rows per call of the model. Few, so that a pipe shows results early; hidden states of every token are large.
_ROWS = {"embed": 4096, "features": 64}
_DEFAULT_ROWS = 1024
_MAX_LINE = 32 << 20  # bytes
_LONGEST_LINE = 1 << 30  # bytes; the rest of a line over `_MAX_LINE` is skipped

_Numbered = Iterator[tuple[int, Mapping[str, Any] | None, str]]  # line, row (None if it is wrong), what is wrong


@dataclasses.dataclass(frozen=True)
class Counts:
    """Rows that were read, and those that failed."""

    total: int
    failed: int

    @property
    def all_failed(self) -> bool:
        """Return whether there were rows and none of them could be answered."""
        return 0 < self.total == self.failed


def predict_lines(
    model: Model,
    *,
    task: str,
    input: str = "-",
    output: str = "-",
    options: Mapping[str, Any] | None = None,
    texts: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Counts:
    """Write the answer to each line of the file `input`, or to the rows made of `texts`, to `output`; count the rows.

    "-" means standard input (a prompt, if that is a terminal) or output. A field `id` is copied to the answer. Blank
    lines are skipped. A file is written whole or not at all.

    Raises:
      UserError: if a file cannot be opened, there is no line, or the model cannot do the task.
    """
    check_output(output)
    if input != "-":
        local_path(input, name="--input", example="a file")
    task_options = dict(options or {})
    model.task(task, **task_options)  # raises before anything is read
    if texts and input != "-":
        raise UserError("--text and --input both give rows: leave one out")
    rows_at_once = _ROWS.get(task, _DEFAULT_ROWS)
    if texts or (input == "-" and sys.stdin is not None and sys.stdin.isatty()):
        rows = rows_of(task, texts) if texts else prompt(task)
        rows_at_once = rows_at_once if texts else 1  # a person waits for the answer
        with _written(output) as target:
            numbered = ((number, row, "") for number, row in enumerate(rows, start=1))
            return _answer(model, numbered, target, task=task, options=task_options, size=rows_at_once, report=report)
    files = [Path(name) for name in (input, output) if name != "-" and Path(name).exists()]
    if len(files) == 2 and files[0].samefile(files[1]):
        raise UserError(f"--output={output}: this is the input file: name another file")
    with _opened(input, report=report) as source, _written(output) as target:
        size = 0 if input == "-" else Path(input).stat().st_size
        progress = ByteProgress(task, total=size, report=report) if size else None
        lines = _numbered(source, task=task, progress=progress)
        counts = _answer(model, lines, target, task=task, options=task_options, size=rows_at_once, report=report)
        if progress is not None:
            progress.finish()
        if not counts.total:
            raise UserError(f"--input={input}: no line in this file: write one JSON object per line")
    return counts


def _answer(
    model: Model,
    lines: _Numbered,
    target: IO[bytes],
    *,
    task: str,
    options: Mapping[str, Any],
    size: int,
    report: Callable[[str], None],
) -> Counts:
    """Answer `size` rows at a time, and write them."""
    predictor, cut_before = model.task(task, **options), model.num_cut
    failed = total = 0
    while batch := list(itertools.islice(lines, size)):
        answers = model.predict(task, [row for _, row, _ in batch if row is not None], **options)
        for number, row, problem in batch:
            answer = {"error": problem} if row is None else next(answers)
            total += 1
            if "error" in answer:
                failed += 1
                if failed <= _EXAMPLES:
                    report(f"line {number}: {answer['error']}")
            head = {"id": row["id"]} if row is not None and "id" in row else {}
            text = json.dumps({**head, **answer}, ensure_ascii=False)
            # A lone surrogate cannot be encoded as UTF-8; escaped as \ud800 it is valid JSON.
            target.write(text.encode("utf-8", "backslashreplace") + b"\n")
        target.flush()
    if cut := model.num_cut - cut_before:
        limit = getattr(predictor, "max_length", model.source.model.max_position_embeddings)
        report(
            f"{cut} of {total} rows ({100 * cut / total:.1f} %) are longer than {limit} tokens: a part of each was not "
            "read"
        )
    if failed:
        report(f'{failed} of {total} rows failed; their answers are {{"error": ...}}')
    return Counts(total, failed)


def check_output(output: str) -> None:
    """Check, before a model is loaded, that answers can be written to `output`.

    Raises:
      UserError: if it is a folder, its folder does not exist or is read-only, or standard output is closed.
    """
    if output == "-":
        streams.require_output(remedy="redirect it to a file, or name one with --output=FILE")
        return
    file = local_path(output, name="--output", example="a file")
    if file.is_dir():
        raise UserError(f"--output={output}: this is a folder: name a file in it")
    if file.exists() and not file.is_file():  # a pipe or a device is written as it is
        return
    if not file.absolute().parent.is_dir():
        raise UserError(f"--output={output}: cannot be written (there is no folder {file.parent}): make it first")
    if not os.access(file.absolute().parent, os.W_OK):
        raise UserError(f"--output={output}: cannot be written ({file.parent} is read-only): name another file")


def _numbered(source: IO[bytes], *, task: str, progress: ByteProgress | None) -> _Numbered:
    """Yield each line's number, its row (None if it is not a JSON object), and what is wrong with it.

    The first line says what the others are: JSON objects, or texts.
    """
    plain = None
    for number, line in enumerate(_lines(source), start=1):
        if progress is not None:
            progress.advance(len(line))
        if not line.strip():
            continue
        if plain is None:
            plain = is_plain(task, line)
        if plain:
            yield number, {"text": line.decode("utf-8", "replace").rstrip("\r\n")}, ""
            continue
        try:
            row = parse_object(line, allow_nan=False)
        except ValueError as error:
            yield number, None, f'is {error}; write an object, as in {{"text": "..."}}'
        else:
            yield number, row, ""


def _lines(source: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file; of a line longer than `_MAX_LINE` only its beginning, which is not JSON.

    Raises:
      UserError: for a line that does not seem to end, as in /dev/zero.
    """
    while line := source.readline(_MAX_LINE):
        yield line
        size = len(line)
        while len(line) == _MAX_LINE and not line.endswith(b"\n"):
            line = source.readline(_MAX_LINE)
            size += len(line)
            if size > _LONGEST_LINE:
                raise UserError(f"a line of more than {_LONGEST_LINE >> 30} GiB: this input is not text")


@contextlib.contextmanager
def _opened(name: str, *, report: Callable[[str], None]) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        if stat.S_ISFIFO(Path(name).stat().st_mode):  # opening one waits for its other end
            report(f"--input={name}: is a pipe: waiting for what is written to it")
        stream = Path(name).open("rb")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        raise UserError(
            f"--input={name}: cannot open the file ({getattr(error, 'strerror', None) or error}): name another file"
        ) from None
    with stream:
        yield stream


@contextlib.contextmanager
def _written(name: str) -> Iterator[IO[bytes]]:
    """Open a temporary file next to `name` for the answers, and rename it when it is complete."""
    if name == "-":
        yield sys.stdout.buffer
        return
    file = Path(name)
    remedy = "free disk space, or name another file"
    with writing(f"--output={name}:", remedy=remedy):
        if file.exists() and not file.is_file():  # pipes and devices cannot be replaced
            with file.open("wb") as stream:
                yield stream
            return
        with replacing(file) as partial, partial.open("wb") as stream:
            yield stream
