"""Progress of a run: a bar with metrics on a terminal, otherwise one line per interval."""

import contextlib
import sys
from collections.abc import Iterator, Mapping

from bert_jax.progress import ProgressBar, clock, duration
from bert_jax.wrapping import line_width


class Progress:
    """Progress display of a run; silent if `enabled` is False (on all hosts except the first)."""

    def __init__(self, *, start: int, end: int, enabled: bool = True):
        """Start at step `start` of `end`."""
        self._end, self._enabled = end, enabled
        self._bar = ProgressBar(total=end, done=start, unit="step", enabled=enabled)
        self._is_timed = self._has_compiled = False

    def advance(self, step: int) -> None:
        """Record that `step` steps are done."""
        self._bar.reach(step)
        if not self._is_timed:  # the first step includes compilation
            self._is_timed = True
            self._bar.begin()

    def line(self, step: int, *, metrics: Mapping[str, float | None]) -> None:
        """Print the metrics of the interval that ends at `step`; a bar shows the loss and has the ETA."""
        text = f"step {step}/{self._end}  {summary(metrics)}"
        if self._bar.is_shown:
            loss = metrics.get("train/loss")
            self._bar.note("" if loss is None else f"loss {loss:.3f}")
            if len(text) > (line_width(sys.stdout) or len(text)):  # the bar has the number of steps and the rate
                text = f"step {step}  {summary(metrics, with_rate=False)}"
        elif remaining := self._bar.time_left():
            text += f"  ETA {remaining}"
        self.say(text)

    @contextlib.contextmanager
    def compiling(self, seconds: float | None) -> Iterator[None]:
        """Show for how long the body compiles a step; at an earlier start, if there was one, it took `seconds`.

        The first has a line. Fine-tuning compiles a step for each of a few shapes of packed batches.
        """
        if not self._has_compiled:
            self._has_compiled = True
            about = "" if seconds is None else f", about {duration(seconds)}"
            self.say(f"compiling{about}; the bar moves afterwards" if self._bar.is_shown else f"compiling{about}")
        with clock("compiling", report=self.say, bar=self._bar) if self._enabled else contextlib.nullcontext():
            yield

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._enabled:
            self._bar.write(text)

    def close(self) -> None:
        """Close the bar and leave it on the screen."""
        self._bar.close()


def summary(metrics: Mapping[str, float | None], *, with_rate: bool = True) -> str:
    """Return the most important metrics as one line."""
    shown = (
        ("train/loss", "loss {:.3f}"),
        ("train/relation_loss", "relations {:.4f}"),
        ("train/mlm_loss", "mlm {:.3f}"),
        ("train/mlm_accuracy", "acc {:.3f}"),
        ("train/clm_loss", "clm {:.3f}"),
        ("train/clm_accuracy", "acc {:.3f}"),
        ("train/nsp_accuracy", "nsp {:.3f}"),
        ("train/learning_rate", "lr {:.2e}"),
        ("perf/sequences_per_second" if with_rate else "", "{:.1f} seq/s"),
        ("perf/mfu", "mfu {:.1%}"),
    )
    return "  ".join(form.format(value) for name, form in shown if (value := metrics.get(name)) is not None)
