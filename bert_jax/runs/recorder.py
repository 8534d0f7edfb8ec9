"""The place where a run's metrics and lines go: metric writers, the progress bar, and the account of wall time."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from bert_jax.runs.goodput import Goodput
from bert_jax.runs.progress import Progress
from bert_jax.runs.writers import Writer


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Writers (none on a host that does not write), progress and goodput of one run."""

    writers: Sequence[Writer]
    progress: Progress
    goodput: Goodput

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Write metrics with slash-grouped names."""
        for writer in self.writers:
            writer.write(step, figures=metrics)

    def say(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        self.progress.say(text)

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the time of the body as spent on one of `goodput.KINDS`."""
        with self.goodput.spending(kind):
            yield

    def close(self) -> None:
        """Leave the bar as it is and close the writers."""
        self.progress.close()
        for writer in self.writers:
            writer.close()
