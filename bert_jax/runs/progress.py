"""Show how far a run is: a bar with ETA on a terminal, one line an interval elsewhere."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm


class Progress:
    """Show the steps of a run; silent where `enabled` is False (every host but the first)."""

    def __init__(self, *, start: int, end: int, enabled: bool = True):
        """Begin at step `start` of `end`."""
        self._start, self._end = start, end
        self._enabled = enabled
        self._begun: float | None = None
        self._begun_at = start
        self._bar = (
            tqdm(total=end, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05) if self._on_tty else None
        )

    @property
    def _on_tty(self) -> bool:
        return self._enabled and sys.stderr.isatty()

    def advance(self, step: int) -> None:
        """Note that `step` steps are done."""
        if self._begun is None:
            self._begun, self._begun_at = time.monotonic(), step  # the first step's time is the compiler's
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def line(self, step: int, *, figures: Mapping[str, float | None]) -> None:
        """Show the figures of an interval."""
        text = summary(figures)
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self.say(f"step {step}/{self._end}  {text}  {self._eta(step)}")

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _eta(self, step: int) -> str:
        if self._begun is None or step <= self._begun_at:
            return ""
        seconds = (time.monotonic() - self._begun) / (step - self._begun_at) * (self._end - step)
        return f"ETA {duration(seconds)}"


def summary(figures: Mapping[str, float | None]) -> str:
    """Return the figures that fit on a line."""
    shown = (
        ("train/loss", "loss {:.3f}"),
        ("train/mlm_loss", "mlm {:.3f}"),
        ("train/mlm_accuracy", "acc {:.3f}"),
        ("train/nsp_accuracy", "nsp {:.3f}"),
        ("train/learning_rate", "lr {:.2e}"),
        ("perf/sequences_per_second", "{:.1f} seq/s"),
        ("perf/mfu", "mfu {:.1%}"),
    )
    return "  ".join(form.format(value) for name, form in shown if (value := figures.get(name)) is not None)


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
