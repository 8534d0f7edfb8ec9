"""Write metrics: always to metrics.jsonl, optionally to TensorBoard and Weights & Biases."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bert_jax.config import LogConfig
from bert_jax.errors import UserError
from bert_jax.files import RESUME, write_text, writing
from bert_jax.json_files import parse_log_line
from bert_jax.runs.step_lines import append_line, keep_lines


@runtime_checkable
class Writer(Protocol):
    """A destination of metrics."""

    def write(self, step: int, *, metrics: Mapping[str, float | None]) -> None:
        """Write the metrics of one step, with slash-grouped names."""
        ...

    def close(self) -> None:
        """Finish writing."""
        ...


class JsonLinesWriter:
    """Writer of JSON lines, one object with `step` per line; NaN and infinity become null, as JSON has neither."""

    def __init__(self, path: str | Path, *, resume_step: int = 0):
        """Open for appending; remove lines of steps after `resume_step` and a partial last line.

        Those lines belong to work that was lost in a kill and will be repeated.

        Raises:
          UserError: here and when writing, if the file cannot be written.
        """
        self._path = Path(path)
        keep_lines(self._path, resume_step=resume_step, parse=parse_log_line)
        with writing(self._path, remedy=RESUME):
            # Unbuffered: closing the file must not retry a failed write.
            self._file = self._path.open("ab", buffering=0)

    def write(self, step: int, *, metrics: Mapping[str, float | None]) -> None:
        """Append one line."""
        finite = {name: _finite(value) for name, value in metrics.items()}
        append_line(self._file, {"step": step, **finite}, path=self._path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter:
    """Writer of event files to WORKDIR/tb, with tensorboardX (extra `tensorboard`)."""

    def __init__(self, directory: str | Path, *, resume_step: int = 0):
        """Open the directory; TensorBoard hides earlier metrics of steps after `resume_step`."""
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                "config.log.tensorboard: needs tensorboardX: pip install 'bert_jax[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(directory), purge_step=resume_step + 1)

    def write(self, step: int, *, metrics: Mapping[str, float | None]) -> None:
        """Add one scalar per metric."""
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandbWriter:
    """Writer to Weights & Biases (extra `wandb`); a resumed run continues in the same W&B run."""

    def __init__(self, workdir: str | Path, *, config: Mapping[str, Any]):
        """Start the run, or resume the one with the id in WORKDIR/wandb_id."""
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("config.log.wandb: needs wandb: pip install 'bert_jax[wandb]'") from error
        path = Path(workdir) / "wandb_id"
        identity = path.read_text().strip() if path.exists() else wandb.util.generate_id()
        write_text(path, identity)
        self._run = wandb.init(
            project="bert_jax",
            id=identity,
            resume="allow",
            config=dict(config),
            dir=str(workdir),
            name=Path(workdir).name,
        )

    def write(self, step: int, *, metrics: Mapping[str, float | None]) -> None:
        """Log the metrics."""
        self._run.log({name: value for name, value in metrics.items() if value is not None}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def make_writers(
    workdir: str | Path, *, config: LogConfig, run_config: Mapping[str, Any], resume_step: int
) -> list[Writer]:
    """Return the writers that the config enables."""
    workdir = Path(workdir)
    writers: list[Writer] = []
    if config.tensorboard:
        writers.append(TensorBoardWriter(workdir / "tb", resume_step=resume_step))
    if config.wandb:
        writers.append(WandbWriter(workdir, config=run_config))
    # Last: a missing extra must neither leave a file open nor remove lines.
    writers.append(JsonLinesWriter(workdir / "metrics.jsonl", resume_step=resume_step))
    return writers


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
