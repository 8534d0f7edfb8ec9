"""Output of a run: metric writers, progress and log lines, and wall-time accounting."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from bert_jax.runs.goodput import Goodput
from bert_jax.runs.progress import Progress
from bert_jax.runs.writers import Writer


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Writers (none on hosts other than the first), progress and goodput of one run."""

    writers: Sequence[Writer]
    progress: Progress
    goodput: Goodput

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Write metrics with slash-grouped names."""
        for writer in self.writers:
            writer.write(step, metrics=metrics)

    def say(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        self.progress.say(text)

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the time of the body as spent on one of `goodput.KINDS`."""
        with self.goodput.spending(kind):
            yield

    def close(self) -> None:
        """Close the bar and the writers."""
        self.progress.close()
        for writer in self.writers:
            writer.close()
