"""Show how far a long job is: a bar on a terminal, a line an interval elsewhere."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

INTERVAL_SECONDS = 10.0


class Progress:
    """Count bytes towards a total that may be an estimate; `finish` when done."""

    def __init__(self, label: str, *, total: int, report: Callable[[str], None]):
        self._label, self._total, self._report = label, max(total, 1), report
        self._done = 0
        self._start = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(desc=label, total=self._total, unit="B", unit_scale=True, leave=False)

    def advance(self, amount: int) -> None:
        """Count `amount` more bytes."""
        self._done += amount
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(amount)
        elif now - self._last >= INTERVAL_SECONDS:
            self._last = now
            rate = self._done / (now - self._start)
            share = min(self._done / self._total, 0.99)
            left = max(self._total - self._done, 0) / max(rate, 1)
            speed = f"{rate / 1e6:.1f} MB/s"
            self._report(
                f"{self._label}: {share:.0%} of {format_bytes(self._total)}, {speed}, {format_time(left)} left"
            )

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def format_bytes(amount: float) -> str:
    """Return `amount` bytes in decimal units: "12.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def format_time(seconds: float) -> str:
    """Return `seconds` as "0:42" or "3:05:00"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
