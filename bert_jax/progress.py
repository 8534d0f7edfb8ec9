"""The progress of a long job: a bar on a terminal, log lines elsewhere, and the format of times and sizes."""

import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from tqdm import tqdm

INTERVAL_SECONDS = 10.0
CLOCK_SECONDS = {True: 1.0, False: 60.0}  # on a terminal, elsewhere
# At 80 columns: the position, the time left, the rate and a short note, and a bar of what remains.
_STEPS = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [ETA {remaining}, {rate_fmt}{postfix}]"


class ProgressBar:
    """A progress bar if standard error is a terminal, and the time left at the speed so far."""

    def __init__(self, *, total: int, done: int = 0, unit: str, enabled: bool = True, label: str = ""):
        """Show a bar from `done` to `total`; `unit` is "step" or "B" (bytes)."""
        self._total, self._done = total, done
        self._since: tuple[float, int] | None = None
        self._bar = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(
                desc=label or None,
                total=total,
                initial=done,
                unit=unit,
                unit_scale=unit == "B",
                dynamic_ncols=True,
                smoothing=0.05,
                leave=unit != "B",
                bar_format=_STEPS if unit != "B" else None,
            )

    @property
    def is_shown(self) -> bool:
        """Return whether the bar is on a terminal."""
        return self._bar is not None

    def begin(self) -> None:
        """Start measuring the speed: what was done before is not typical."""
        self._since = time.monotonic(), self._done

    def reach(self, done: int) -> None:
        """Move the bar to `done`."""
        self._done = done
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def note(self, text: str) -> None:
        """Show a text after the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def write(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def speed(self) -> float:
        """Return the units per second, or 0 if not known yet."""
        if self._since is None:
            return 0.0
        seconds = time.monotonic() - self._since[0]
        return (self._done - self._since[1]) / seconds if seconds > 0 else 0.0

    def time_left(self) -> str:
        """Return the time left in words, or an empty string if not known yet."""
        speed = self.speed()
        return duration(max(self._total - self._done, 0) / speed) if speed > 0 else ""

    def close(self) -> None:
        """Close the bar: a bar of bytes disappears, a bar of steps stays."""
        if self._bar is not None:
            self._bar.close()


class ByteProgress:
    """Progress in bytes of a total that may be an estimate: a bar on a terminal, else a log line at intervals.

    A thread writes the line when nothing advances for long, as in an archive of a million empty files.
    """

    def __init__(self, label: str, *, total: int, report: Callable[[str], None]):
        self._label, self._total, self._report = label, max(total, 1), report
        self._done = 0
        self._last = time.monotonic()
        self._bar = ProgressBar(total=self._total, unit="B", label=label)
        self._bar.begin()
        self._lock, self._finished = threading.Lock(), threading.Event()
        # The thread ends with the progress, even where an error skips `finish`.
        arguments = (weakref.ref(self, lambda _, event=self._finished: event.set()), self._finished)
        threading.Thread(target=_watch, args=arguments, daemon=True).start()

    def advance(self, amount: int) -> None:
        """Count `amount` more bytes."""
        with self._lock:
            self._done += amount
            self._bar.reach(self._done)
            now = time.monotonic()
            if self._bar.is_shown or now - self._last < INTERVAL_SECONDS:
                return
            self._last = now
        fraction = min(self._done / self._total, 0.99)
        left = self._bar.time_left()
        self._report(
            f"{self._label}: {fraction:.0%} of {format_bytes(self._total)}, {self._bar.speed() / 1e6:.1f} MB/s"
            + (f", {left} left" if left else "")
        )

    def aside(self, report: Callable[[str], None]) -> Callable[[str], None]:
        """Return `report` for lines that do not break the bar."""

        def write(line: str) -> None:
            with tqdm.external_write_mode(file=sys.stderr):
                report(line)

        return write

    def finish(self) -> None:
        """Remove the bar."""
        self._finished.set()
        self._bar.close()


def _watch(progress: Callable[[], ByteProgress | None], finished: threading.Event) -> None:
    while not finished.wait(INTERVAL_SECONDS):
        if (shown := progress()) is not None:
            shown.advance(0)
        del shown


@contextlib.contextmanager
def clock(label: str, *, report: Callable[[str], None], bar: ProgressBar | None = None) -> Iterator[None]:
    """Show for how long a job has run that has no measure of its progress: on a terminal a clock, else a line at times.

    Where there is a `bar`, it shows the clock.

    The first line comes after `INTERVAL_SECONDS`, so that no job is silent for long. The block must let other threads
    run, as a compilation does.
    """
    is_terminal, start, finished = sys.stderr.isatty(), time.monotonic(), threading.Event()

    def watch() -> None:
        wait = min(INTERVAL_SECONDS, CLOCK_SECONDS[is_terminal])
        while not finished.wait(wait):
            wait = CLOCK_SECONDS[is_terminal]
            passed = f"{label}: {duration(time.monotonic() - start)}"
            if bar is not None and bar.is_shown:
                bar.note(passed)
            elif is_terminal:
                print(f"\r{passed}", end="", file=sys.stderr, flush=True)
            else:
                report(f"{passed} so far")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        if bar is not None and bar.is_shown:
            bar.note("")
        elif is_terminal:
            print(f"\r{' ' * (len(label) + 20)}\r", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return seconds in words: `45 s`, `3 min 20 s`, `5 h 10 min`, `2 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_bytes(amount: float) -> str:
    """Return `amount` bytes in decimal units: "12.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
