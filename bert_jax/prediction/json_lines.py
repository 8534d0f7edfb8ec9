"""Prediction from JSON Lines or texts to JSON Lines: an answer per row, in order. Failures are reported and counted."""

import contextlib
import dataclasses
import itertools
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from bert_jax import streams
from bert_jax.errors import UserError
from bert_jax.files import replacing, writing
from bert_jax.locations import local_path, output_file
from bert_jax.prediction.layout import one_line, readable
from bert_jax.prediction.lines import Numbered, numbered_rows
from bert_jax.prediction.model import Model
from bert_jax.prediction.plain_rows import prompt, rows_of
from bert_jax.progress import ByteProgress

_EXAMPLES = 5  # number of failed lines that are reported in full
# Rows per call of the model. Few, so that a pipe shows results early; hidden states of every token are large.
_ROWS = {"embed": 4096, "features": 64}
_DEFAULT_ROWS = 1024


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
    lines are skipped. A name in .csv or .tsv is a table. A file is written whole or not at all. An answer is one line,
    on a terminal several where it is nested.

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
        with _written(output, report=report) as target:
            numbered = ((number, row, "") for number, row in enumerate(rows, start=1))
            return _answer(
                model,
                numbered,
                target,
                task=task,
                options=task_options,
                size=rows_at_once,
                report=report,
                names_failures=not _is_terminal(output),  # where the answer is seen
            )
    files = [Path(name) for name in (input, output) if name != "-" and Path(name).exists()]
    if len(files) == 2 and files[0].samefile(files[1]):
        raise UserError(f"--output={output}: this is the input file: name another file")
    with _opened(input, report=report) as source, _written(output, report=report) as target:
        size = 0 if input == "-" else Path(input).stat().st_size
        # Answers on a terminal show the progress themselves.
        progress = None if not size or _is_terminal(output) else ByteProgress(task, total=size, report=report)
        report = report if progress is None else progress.aside(report)
        columns = model.columns(task)
        lines = numbered_rows(source, name=input, task=task, columns=columns, progress=progress)
        counts = _answer(model, lines, target, task=task, options=task_options, size=rows_at_once, report=report)
        if progress is not None:
            progress.finish()
        if not counts.total:
            raise UserError(f"--input={input}: no line in this file: write one JSON object per line")
    return counts


def _is_terminal(output: str) -> bool:
    return output == "-" and sys.stdout.isatty()


def _answer(
    model: Model,
    lines: Numbered,
    target: IO[bytes],
    *,
    task: str,
    options: Mapping[str, Any],
    size: int,
    report: Callable[[str], None],
    names_failures: bool = True,
) -> Counts:
    """Answer `size` rows at a time, and write them; failures are in the answers, and reported if `names_failures`."""
    predictor, cut_before = model.task(task, **options), model.num_cut
    layout = readable if target.isatty() else one_line
    failed = total = 0
    while batch := list(itertools.islice(lines, size)):
        answers = model.predict(task, [row for _, row, _ in batch if row is not None], **options)
        for number, row, problem in batch:
            answer = {"error": problem} if row is None else next(answers)
            total += 1
            if "error" in answer:
                failed += 1
                if failed <= _EXAMPLES and names_failures:
                    report(f"line {number}: {answer['error']}")
            head = {"id": row["id"]} if row is not None and "id" in row else {}
            text = layout({**head, **answer})
            # A lone surrogate cannot be encoded as UTF-8; escaped as \ud800 it is valid JSON.
            target.write(text.encode("utf-8", "backslashreplace") + b"\n")
        target.flush()
    if cut := model.num_cut - cut_before:
        limit = getattr(predictor, "max_length", model.source.model.max_position_embeddings)
        report(
            f"{cut} of {total} rows ({100 * cut / total:.1f} %) are longer than {limit} tokens: a part of each was not "
            "read"
        )
    if failed and names_failures:
        answers = "their answers are" if failed > 1 else "its answer is"
        report(f'{failed} of {total} row{"s" * (total > 1)} failed; {answers} {{"error": ...}}')
    return Counts(total, failed)


def check_output(output: str) -> None:
    """Check, before a model is loaded, that answers can be written to `output`.

    Raises:
      UserError: if it is a folder, its folder does not exist or is read-only, or standard output is closed.
    """
    if output == "-":
        streams.require_output(remedy="redirect it to a file, or name one with --output=FILE")
        return
    output_file(output, name="--output", pipes=True)  # a pipe or a device is written as it is


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
def _written(name: str, *, report: Callable[[str], None]) -> Iterator[IO[bytes]]:
    """Open a temporary file next to `name` for the answers, and rename it when it is complete."""
    if name == "-":
        yield sys.stdout.buffer
        return
    file = Path(name)
    remedy = "free disk space, or name another file"
    with writing(f"--output={name}:", remedy=remedy):
        if file.exists() and not file.is_file():  # pipes and devices cannot be replaced
            if file.is_fifo():  # opening one waits for its other end
                report(f"--output={name}: is a pipe: waiting for what reads it")
            with file.open("wb") as stream:
                yield stream
            return
        with replacing(file) as partial, partial.open("wb") as stream:
            yield stream
