"""Run tasks in worker processes, or as an Apache Beam map, so that the result does not depend on which.

The pool is the project's own because the standard ones fall short here: `multiprocessing.Pool` waits for ever for a
worker that the kernel killed, and both it and `ProcessPoolExecutor` import the caller's `__main__` again in every
worker, which for a training script means importing jax.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, process
from typing import Any, Protocol, runtime_checkable

from bert_jax.errors import UserError

Advance = Callable[[int], None]


def default_num_workers() -> int:
    """Return the number of workers that keeps every core busy."""
    return os.cpu_count() or 1


@runtime_checkable  # Beam compares types
class WorkFunction(Protocol):
    """Do one picklable piece of work, calling `advance` with the bytes done since the last call."""

    def __call__(self, piece: Any, *, advance: Advance) -> None:
        """Do `piece`."""
        ...


def run_local(task: WorkFunction, pieces: Sequence[Any], *, num_workers: int, advance: Advance) -> None:
    """Do `task` for every piece, in `num_workers` processes, or in this one if that is enough.

    Raises:
      UserError, OSError: what a worker raised; a UserError, too, when a worker was killed.
      RuntimeError: another failure in a worker, with its traceback.
    """
    if min(num_workers, len(pieces)) <= 1:
        for piece in pieces:
            task(piece, advance=advance)
        return
    workers: dict[connection.Connection, process.BaseProcess] = {}
    try:
        workers.update(_start(task, min(num_workers, len(pieces))))
        _distribute(pieces, workers, advance)
    except BaseException:
        for worker in workers.values():
            worker.terminate()
        raise
    finally:
        for end, worker in workers.items():
            end.close()  # a waiting worker reads the end of its pipe and stops
            worker.join()


def run_beam(task: WorkFunction, pieces: Sequence[Any], *, arguments: Sequence[str]) -> None:
    """Do `task` for every piece as an Apache Beam map; `arguments` choose and configure Beam's runner.

    Raises:
      UserError: if Apache Beam is not installed.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("--runner=beam needs Apache Beam: pip install 'bert_jax[beam]'") from error
    with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
        _ = pipeline | beam.Create(list(pieces)) | beam.Reshuffle() | beam.Map(_do_silently, task)


def _do_silently(piece: Any, task: WorkFunction) -> None:
    task(piece, advance=lambda _: None)


def _start(task: WorkFunction, count: int) -> Iterator[tuple[connection.Connection, process.BaseProcess]]:
    context = multiprocessing.get_context("spawn")
    with _without_main_module():
        for _ in range(count):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs, task), daemon=True)
            with _interrupts_held():
                worker.start()
            theirs.close()  # so that the worker's death closes the pipe
            yield ours, worker


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C wait while a process starts, which inherits that: it would print a traceback until it has begun."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide `__main__` while processes start, so that they do not import it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _distribute(
    pieces: Sequence[Any], workers: dict[connection.Connection, process.BaseProcess], advance: Advance
) -> None:
    waiting = iter(pieces)
    busy = list(workers)
    for end in busy:
        end.send(next(waiting))  # there are at most as many workers as pieces
    while busy:
        for end in connection.wait(busy):
            assert isinstance(end, connection.Connection)
            try:
                kind, value = end.recv()
            except (EOFError, ConnectionResetError):
                workers[end].join()
                raise UserError(
                    f"a worker process was killed (exit status {workers[end].exitcode}), perhaps for want of memory: "
                    "run again with fewer workers (num_workers), what is finished is kept"
                ) from None
            if kind == "advance":
                advance(value)
            elif kind == "mendable":
                raise value
            elif kind == "failure":
                raise RuntimeError(f"in a worker process: {value}")
            else:
                piece = next(waiting, None)
                if piece is None:
                    busy.remove(end)
                else:
                    end.send(piece)


def _serve(end: connection.Connection, task: WorkFunction) -> None:
    """Do the pieces that arrive until the pipe is closed; Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            piece = end.recv()
        except EOFError:
            return
        try:
            task(piece, advance=lambda amount: end.send(("advance", amount)))
        except (UserError, OSError) as error:
            end.send(("mendable", error))
        except Exception:
            end.send(("failure", traceback.format_exc()))
        else:
            end.send(("done", None))
