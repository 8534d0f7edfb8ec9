"""The units that make a pre-trained model: its data set, and the run."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import Config
from bert_jax.data.builder import build_dataset, load_given_vocabulary
from bert_jax.data.dataset_info import is_finished
from bert_jax.data.documents import find_sources
from bert_jax.data.manifest import make_manifest
from bert_jax.data.tfds_builders import NotPrepared
from bert_jax.errors import UserError
from bert_jax.json_files import read_log
from bert_jax.model.architectures import architecture_of
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain import method, run
from bert_jax.pretrain.open_values import preliminary
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.reproduction.records import goodput_seconds
from bert_jax.reproduction.work import Context, Interrupted, Work, determining

# The builder's manifest has a version of the layout: its code does not have to be compared.
_DATA_FIELDS = re.compile(r"data\..*")


class DataSetWork(Work):
    """A pre-training data set of the lengths that the phases of a config need."""

    kind, packages = "data set", ()

    def __init__(self, config: Config):
        """Take the data of `config`, whose input and vocabulary are absolute paths."""
        self._config = config
        self.title = f"data set from {config.data.input}"

    @property
    def needs(self) -> tuple[Work, ...]:
        """Return nothing: it is built from text."""
        return ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the sequence lengths."""
        return tuple(sorted({phase.max_seq_length for phase in self._config.train.phases}))

    @functools.cached_property
    def _manifest(self) -> dict[str, Any]:
        config = self._config
        tokenizer = (
            load_given_vocabulary(config.data, vocab_size=config.model.vocab_size) if config.data.vocab else None
        )
        try:
            sources = find_sources(config.data.input, download=False)
        except NotPrepared:  # a TFDS data set is identified by its name
            sources = []
        manifest = make_manifest(
            config.data, sources=sources, tokenizer=tokenizer, vocab_size=config.model.vocab_size, recipe=config.recipe
        )
        return manifest if sources else manifest | {"inputs": config.data.input}

    def content(self) -> Mapping[str, Any]:
        """Return what the data set is built from."""
        return {"manifest": self._manifest, "lengths": self.lengths}

    def flops(self) -> float:
        """Return 0: reading text takes minutes."""
        return 0.0

    def done_fraction(self, folder: Path) -> float:
        """Return the fraction of the lengths that are built."""
        return sum(is_finished(folder, max_seq_length=length) for length in self.lengths) / len(self.lengths)

    def run(self, folder: Path, *, context: Context) -> None:
        """Build what is missing, on host 0."""
        with context.hosts.main_first("data set of the tables"):
            if context.hosts.is_main:
                build_dataset(
                    self._config.data,
                    out=folder,
                    max_seq_lengths=self.lengths,
                    vocab_size=self._config.model.vocab_size,
                    recipe=self._config.recipe,
                    flag="--workdir",
                    report=context.report,
                )

    def result(self, folder: Path) -> dict[str, Any]:
        """Return nothing: the data set describes itself."""
        del folder
        return {}


class PretrainingWork(Work):
    """A pre-training run. `points` are the steps whose checkpoints are kept."""

    kind = "pre-training"
    packages = ("rows", "model", "training", "pretrain")

    def __init__(self, config: Config, *, title: str, points: Sequence[int] = ()):
        """Take a config whose input is an absolute path.

        Raises:
          UserError: if the text cannot be found.
        """
        self.data = DataSetWork(config)
        self.data.content()  # raises for missing text
        self.title = f"pre-train {title}"
        self.config = _with_points(config, points) if points else config
        self.num_steps = config.train.num_steps

    def describe(self) -> str:
        """Return the shape and the budget, as the paper writes them."""
        model, train = self.config.model, self.config.train
        lengths = ", ".join(map(str, self.data.lengths))
        kind = "" if model.architecture == "bert" else f"{model.architecture} "
        return (
            f"{kind}L={model.num_hidden_layers}, H={model.hidden_size}, A={model.num_attention_heads}; "
            f"{train.num_steps:,} steps of {train.batch_size} sequences of {lengths} tokens"
        )

    @property
    def group(self) -> str:
        """Return the kind and the architecture."""
        return f"{self.kind} {self.config.model.architecture}"

    @property
    def needs(self) -> tuple[Work, ...]:
        """Return the data set."""
        return (self.data,)

    def content(self) -> Mapping[str, Any]:
        """Return the config without the fields that do not determine the result, and without those of the data."""
        fields = determining(self.config, free=method.SAME_RUN.free)
        return {"config": {name: value for name, value in fields.items() if not _DATA_FIELDS.fullmatch(name)}}

    @functools.cached_property
    def _flops(self) -> float:
        config = preliminary(dataclasses.replace(self.config, data=dataclasses.replace(self.config.data, directory="")))
        program = PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh))
        return sum(
            (phase.end - phase.start)
            * phase.batch_size
            * architecture_of(config.model).train_flops_per_row(
                config.model, max_seq_length=phase.max_seq_length, max_predictions=program.max_predictions(phase)
            )
            for phase in program.phases
        )

    def flops(self) -> float:
        """Return the model FLOPs of all steps, 0 if the config does not fit this machine's devices."""
        try:
            return self._flops
        except UserError:
            return 0.0

    def done_fraction(self, folder: Path) -> float:
        """Return the fraction of the steps that the newest checkpoint has."""
        steps = [int(path.name) for path in folder.glob("checkpoints/[0-9]*") if path.name.isdecimal()]
        return max(steps, default=0) / self.num_steps

    def run(self, folder: Path, *, context: Context) -> None:
        """Train."""
        data = dataclasses.replace(self.config.data, directory=str(context.folder_of(self.data)), input="", vocab="")
        status = run.pretrain(
            dataclasses.replace(self.config, data=data), workdir=folder, command=context.command, hosts=context.hosts
        )
        if status:
            raise Interrupted(status)

    def checkpoint(self, step: int, *, context: Context) -> Path:
        """Return the path of the model after `step` steps."""
        folder = context.folder_of(self)
        return folder if step == self.num_steps else folder / "checkpoints" / str(step)

    def result(self, folder: Path) -> dict[str, Any]:
        """Return the metrics of the last evaluation."""
        metrics: dict[str, Any] = {}
        for record in read_log(folder / "metrics.jsonl"):
            if record.get("step") == self.num_steps:
                metrics |= {name: value for name, value in record.items() if name.startswith("eval/")}
        return {"metrics": metrics}

    def seconds(self, folder: Path) -> float:
        """Return the seconds of all starts."""
        return goodput_seconds(folder)


def _with_points(config: Config, points: Sequence[int]) -> Config:
    """Return `config` with checkpoints at all `points` kept; the fields do not change the result."""
    period = math.gcd(*points)
    every = max(step for step in range(1, config.checkpoint.every + 1) if period % step == 0)
    checkpoint = dataclasses.replace(config.checkpoint, every=every, keep_every=period)
    return dataclasses.replace(config, checkpoint=checkpoint)
