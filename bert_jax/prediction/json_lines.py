"""Predict from JSON lines to JSON lines: an answer for every line, in order; failures are reported and counted."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from bert_jax.data.progress import Progress
from bert_jax.errors import UserError
from bert_jax.prediction.model import Model

_EXAMPLES = 5  # failed lines told in full; the count goes on
_BATCH = 1024  # rows handed over at a time, so that results of a pipe appear as it goes


def predict_lines(
    model: Model,
    *,
    task: str,
    input: str,
    output: str = "-",
    options: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> int:
    """Answer each line of the file `input` in `output`, "-" being the standard streams; return the number that failed.

    A field `id` is handed through. Blank lines are passed over.

    Raises:
      UserError: if a file cannot be opened, there is no line, or the model cannot do the task.
    """
    made = dict(options or {})
    model.task(task, **made)  # complains before anything is read
    failed = total = 0
    with _opened(input, "rb") as source, _opened(output, "wb") as target:
        size = 0 if input == "-" else Path(input).stat().st_size
        progress = Progress(task, total=size, report=report) if size else None
        lines = _numbered(source, progress=progress)
        while batch := [line for _, line in zip(range(_BATCH), lines, strict=False)]:
            rows = [row for _, row, _ in batch if row is not None]
            answers = model.predict(task, rows, **made)
            for number, row, problem in batch:
                answer = {"error": problem} if row is None else next(answers)
                total += 1
                if "error" in answer:
                    failed += 1
                    if failed <= _EXAMPLES:
                        report(f"line {number}: {answer['error']}")
                head = {"id": row["id"]} if row is not None and "id" in row else {}
                text = json.dumps({**head, **answer}, ensure_ascii=False)
                # Half a surrogate pair is no UTF-8; written as \ud800 it is JSON all the same.
                target.write(text.encode("utf-8", "backslashreplace") + b"\n")
            target.flush()
        if progress is not None:
            progress.finish()
    if not total:
        raise UserError(f"--input={input}: has no line: give a JSON object a line")
    if failed:
        report(f'{failed} of {total} lines failed; their answers are {{"error": ...}}')
    return failed


def _numbered(source: IO[bytes], *, progress: Progress | None) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """Yield each line's number, its row (None where it is no JSON object), and what is wrong with it."""
    for number, line in enumerate(source, start=1):
        if progress is not None:
            progress.advance(len(line))
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, None, f"is not JSON ({str(error)[:100]})"
            continue
        if isinstance(row, dict):
            yield number, row, ""
        else:
            yield number, None, 'must be a JSON object, as in {"text": "..."}'


@contextlib.contextmanager
def _opened(name: str, mode: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer if mode == "rb" else sys.stdout.buffer
        return
    flag = "input" if mode == "rb" else "output"
    try:
        stream = Path(name).open(mode)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"--{flag}={name}: cannot be opened ({error.strerror}): name another file") from None
    with stream:
        yield stream
