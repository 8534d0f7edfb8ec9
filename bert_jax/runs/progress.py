"""Show how far a run is: a bar with its metrics on a terminal, one line per interval elsewhere."""

from collections.abc import Mapping

from bert_jax.progress import ProgressBar


class Progress:
    """The steps of a run; silent where `enabled` is False (every host but the first)."""

    def __init__(self, *, start: int, end: int, enabled: bool = True):
        """Begin at step `start` of `end`."""
        self._end, self._enabled = end, enabled
        self._bar = ProgressBar(total=end, done=start, unit="step", enabled=enabled)
        self._is_timed = False

    def advance(self, step: int) -> None:
        """Note that `step` steps are done."""
        self._bar.reach(step)
        if not self._is_timed:  # the first step's time is the compiler's
            self._is_timed = True
            self._bar.begin()

    def line(self, step: int, *, figures: Mapping[str, float | None]) -> None:
        """Show the metrics of an interval that ends at `step`."""
        text = summary(figures)
        if self._bar.is_shown:
            self._bar.note(text)
        else:
            left = self._bar.time_left()
            self.say(f"step {step}/{self._end}  {text}  " + (f"ETA {left}" if left else ""))

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._enabled:
            self._bar.write(text)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def summary(figures: Mapping[str, float | None]) -> str:
    """Return the metrics that fit on a line."""
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
