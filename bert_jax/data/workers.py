"""Run work in worker processes or as an Apache Beam map, with the same result.

The standard pools do not work here: `multiprocessing.Pool` waits forever for a worker that the kernel killed, and both
it and `ProcessPoolExecutor` import the caller's `__main__` in every worker, so a training script would import jax.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, process, resource_tracker
from typing import Any, Protocol, runtime_checkable

from bert_jax.errors import UserError

Advance = Callable[[int], None]


def default_num_workers() -> int:
    """Return the number of workers that keeps every core busy."""
    return os.cpu_count() or 1


@runtime_checkable  # Beam checks types
class WorkFunction(Protocol):
    """A function that processes one picklable item and calls `advance` with the bytes done since the last call."""

    def __call__(self, item: Any, *, advance: Advance) -> None:
        """Process `item`."""
        ...


def run_local(task: WorkFunction, items: Sequence[Any], *, num_workers: int, advance: Advance) -> None:
    """Run `task` for every item in `num_workers` processes, or in this process if one is enough.

    Raises:
      UserError, OSError: as raised by a worker; UserError also if a worker was killed.
      RuntimeError: for any other failure in a worker, with its traceback.
    """
    if min(num_workers, len(items)) <= 1:
        for item in items:
            task(item, advance=advance)
        return
    workers: dict[connection.Connection, process.BaseProcess] = {}
    try:
        workers.update(_start(task, min(num_workers, len(items))))
        _distribute(items, workers, advance)
    except BaseException:
        for worker in workers.values():
            worker.terminate()
        raise
    finally:
        for end, worker in workers.items():
            end.close()  # an idle worker sees the end of its pipe and stops
            worker.join()


def run_beam(task: WorkFunction, items: Sequence[Any], *, arguments: Sequence[str]) -> None:
    """Run `task` for every item as an Apache Beam map; `arguments` select and configure Beam's runner.

    Raises:
      UserError: if Apache Beam is not installed.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("--runner=beam needs Apache Beam: pip install 'bert_jax[beam]'") from error
    with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
        _ = pipeline | beam.Create(list(items)) | beam.Reshuffle() | beam.Map(_run_silently, task)


def _run_silently(item: Any, task: WorkFunction) -> None:
    task(item, advance=lambda _: None)


def _start(task: WorkFunction, count: int) -> Iterator[tuple[connection.Connection, process.BaseProcess]]:
    context = multiprocessing.get_context("spawn")
    with _without_main_module():
        for _ in range(count):
            parent_end, worker_end = context.Pipe()
            worker = context.Process(target=_serve, args=(worker_end, task), daemon=True)
            with _blocked_interrupts():
                worker.start()
            worker_end.close()  # the pipe then closes when the worker dies
            yield parent_end, worker


@contextlib.contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Block SIGINT while a process starts and inherits the mask: Ctrl-C would print a traceback until then."""
    # The first process that starts would start the tracker too, and that unblocks SIGINT before the process is forked.
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide `__main__` while processes start, to keep them from importing it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _distribute(
    items: Sequence[Any], workers: dict[connection.Connection, process.BaseProcess], advance: Advance
) -> None:
    waiting = iter(items)
    busy = list(workers)
    for end in busy:
        end.send(next(waiting))  # there are at most as many workers as items
    while busy:
        for end in connection.wait(busy):
            assert isinstance(end, connection.Connection)
            try:
                kind, value = end.recv()
            except (EOFError, ConnectionResetError):
                workers[end].join()
                raise UserError(
                    f"a worker process was killed (exit status {workers[end].exitcode}), possibly because memory ran "
                    "out: run again with fewer workers (num_workers); finished work is kept"
                ) from None
            if kind == "advance":
                advance(value)
            elif kind == "user error":
                raise value
            elif kind == "failure":
                raise RuntimeError(f"in a worker process: {value}")
            else:
                item = next(waiting, None)
                if item is None:
                    busy.remove(end)
                else:
                    end.send(item)


def _serve(end: connection.Connection, task: WorkFunction) -> None:
    """Process items from the pipe until it is closed; the parent handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            item = end.recv()
        except EOFError:
            return
        try:
            task(item, advance=lambda amount: end.send(("advance", amount)))
        except (UserError, OSError) as error:
            end.send(("user error", error))
        except Exception:
            end.send(("failure", traceback.format_exc()))
        else:
            end.send(("done", None))
