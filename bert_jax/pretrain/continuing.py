"""Continued pre-training: from a model (`--init`: shape, vocabulary, parameters), or from the state of another run."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import Config, DataConfig, flatten, from_saved, model_at, validate, validate_new
from bert_jax.convert.loading import PretrainedModel, is_workdir, model_of, shaped_like
from bert_jax.convert.pretrained import CHECKPOINTS
from bert_jax.data.accents import with_accents
from bert_jax.data.tokenization import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.files import SUFFIX, new_folder, write_json, writing
from bert_jax.json_files import read_log
from bert_jax.locations import is_bucket
from bert_jax.runs.checkpoint import Checkpointer
from bert_jax.runs.workdir import read_config

VOCABULARY = "source_vocab"  # in the workdir
ORIGIN = "origin.json"  # in the workdir of a run that continues another


@dataclasses.dataclass(frozen=True)
class EarlierRun:
    """The checkpoint of another run that a new run starts from."""

    checkpoint: Path
    step: int
    changes: Mapping[str, Sequence[Any]]  # the fields of the config that differ: before and now
    fingerprints: Mapping[str, str]  # of vocabulary and data

    def check_data(self, fingerprints: Mapping[str, str]) -> None:
        """Check that the new run has the data of the earlier one, whose batches the state has seen.

        Raises:
          UserError: if it differs.
        """
        for name, current in fingerprints.items():
            if self.fingerprints.get(name, current) != current:
                raise UserError(
                    f"--continue_from: {self.checkpoint} was trained with another {name}: leave out config.data to use "
                    f"that run's data set, or start from its parameters alone with --init={self.checkpoint}"
                )


def adopt_run(config: Config, *, path: str | Path, report: Callable[[str], None] = print) -> tuple[Config, EarlierRun]:
    """Return `config` with the model's shape and the data set of the run at `path`, and its newest checkpoint.

    The new run resumes at the checkpoint's step with all other values of `config`: batch k is the k-th of the new
    batch size, and the learning rate that of the new schedule.

    Raises:
      UserError: if `path` is not a workdir or checkpoint, or the config ends before its step.
    """
    absolute = Path(path).expanduser().absolute()
    if not is_workdir(absolute):
        raise UserError(
            f"--continue_from={path}: neither a workdir nor one of its checkpoints (WORKDIR/checkpoints/STEP): to "
            "start from the parameters of another model, type --init"
        )
    workdir = absolute if (absolute / CHECKPOINTS).is_dir() else absolute.parent.parent
    checkpointer = Checkpointer(workdir / CHECKPOINTS, report=report)
    try:
        step = checkpointer.steps()[-1] if absolute == workdir else int(absolute.name)
        record = checkpointer.metadata(step)
        saved = from_saved(record["config"])
    except (OSError, IndexError, KeyError, ValueError, UserError):
        raise UserError(
            f"--continue_from={path}: has no complete checkpoint of pre-training: give another run"
        ) from None
    finally:
        checkpointer.close()
    earlier = model_at(saved.model, phases=saved.train.phases, num_steps=saved.train.num_steps, step=step)
    # A causal phase is over with that run: the phases of `config` say how the model reads on.
    earlier = dataclasses.replace(earlier, attention_direction=saved.model.attention_direction)
    model, data = shaped_like(earlier, model=config.model), _data_of(saved, config=config, workdir=workdir)
    if config.train.num_steps <= step and not config.train.num_epochs:
        raise UserError(
            f"config.train.num_steps={config.train.num_steps}, but --continue_from={path} is at step {step}: set "
            "--config.train.num_steps to the total number of steps"
        )
    config = validate(dataclasses.replace(config, model=model, data=data))
    before, now = flatten(saved), flatten(config)
    changes = {
        name: (before[name], now[name]) for name in sorted(before.keys() & now.keys()) if before[name] != now[name]
    }
    shown = ", ".join(
        f"{name} {old!r} -> {new!r}" for name, (old, new) in changes.items() if not name.startswith("data.")
    )
    report(
        f"continuing {workdir} at step {step} as a new run on the data set in {data.directory}; changed: "
        f"{shown or 'nothing'}"
    )
    return config, EarlierRun(workdir / CHECKPOINTS / str(step), step, changes, record["fingerprints"])


def _data_of(saved: Config, *, config: Config, workdir: Path) -> DataConfig:
    """Return the data of `config` with the data set of the earlier run in `workdir`, unless it names one itself."""
    data, inputs = config.data, (saved.data.input, config.data.input)
    if data.directory:
        return data
    if all(inputs) and inputs[0] != inputs[1]:
        raise UserError(
            f"config.data.input={inputs[1]}, but --continue_from is a run on {inputs[0]}: "
            f"leave config.data out, or train on another text from its parameters alone with --init={workdir}"
        )
    if is_bucket(saved.data.directory):
        return dataclasses.replace(data, directory=saved.data.directory, vocab="")
    directory = Path(saved.data.directory or workdir / "data").absolute()
    if not directory.is_dir():
        raise UserError(
            f"--continue_from={workdir}: its data set {directory} is not there: set --config.data.directory"
        )
    return dataclasses.replace(data, directory=str(directory), vocab="")


def as_resumed(config: Config, *, workdir: Path, with_shape: bool) -> Config:
    """Return `config` for a run that has begun, with its data set and, `with_shape`, its model's shape.

    What the run took from another model or run is in its own workdir by then; the source may be gone.
    """
    try:
        saved: Config = read_config(workdir, read=from_saved)
    except UserError:  # not a pre-training run: opening the workdir says so
        return config
    model = shaped_like(saved.model, model=config.model) if with_shape else config.model
    data = config.data
    if saved.data.directory and not data.directory:
        data = dataclasses.replace(data, directory=saved.data.directory, vocab=data.vocab or saved.data.vocab)
    return validate(dataclasses.replace(config, model=model, data=data))


def copy_state(earlier: EarlierRun, *, workdir: Path) -> None:
    """Copy the checkpoint to a workdir that has none yet, and write where it came from."""
    target = workdir / CHECKPOINTS / str(earlier.step)
    if any(target.parent.glob("[0-9]*")):
        return
    origin = {"continued_from": str(earlier.checkpoint), "step": earlier.step, "changes": earlier.changes}
    write_json(workdir / ORIGIN, origin)
    target.parent.mkdir(exist_ok=True)
    for leftover in target.parent.glob(f".*{SUFFIX}"):  # of a copy that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    remedy = "free disk space, or choose another --workdir"
    with writing(target, remedy=remedy), new_folder(target) as folder:
        shutil.copytree(earlier.checkpoint, folder, dirs_exist_ok=True)


def adopt_source(
    config: Config, *, source: PretrainedModel, workdir: str | Path, report: Callable[[str], None]
) -> Config:
    """Return `config` with the shape of the `--init` model and, unless the config names one, the model's vocabulary.

    The config still decides how to compute (dtype, scan_layers, dropout). `save_vocabulary_of` writes the vocabulary
    that the returned config names, WORKDIR/source_vocab.

    Raises:
      UserError: if the config does not fit the shape (sequences longer than the position table), or names another
        vocabulary.
    """
    model = model_of(source, model=config.model)
    data = config.data
    tokenizer = source.require_tokenizer()
    if data.vocab:
        _check_vocabulary(config, source=source)
    else:
        data = dataclasses.replace(
            data, vocab=str(Path(workdir).absolute() / VOCABULARY), do_lower_case=tokenizer.do_lower_case
        )
    changed = [
        f"{field.name}={getattr(model, field.name)}"
        for field in dataclasses.fields(model)
        if getattr(model, field.name) != getattr(config.model, field.name)
    ]
    parts = ", ".join(source.parts)
    overrides = f"; config.model takes its shape: {' '.join(changed)}" if changed else ""
    report(f"starting from {source.path} ({source.architecture}: {parts}){overrides}")
    return validate_new(dataclasses.replace(config, model=model, data=data))


def save_vocabulary_of(source: PretrainedModel, *, workdir: Path) -> None:
    """Write the vocabulary of the `--init` model to WORKDIR/source_vocab."""
    source.require_tokenizer().save(workdir / VOCABULARY)


def _check_vocabulary(config: Config, *, source: PretrainedModel) -> None:
    loaded = load_tokenizer(config.data.vocab, do_lower_case=config.data.do_lower_case)
    requested = with_accents(loaded, config.data.strip_accents)
    trained = source.require_tokenizer()
    if requested.fingerprint != trained.fingerprint:
        raise UserError(
            f"config.data.vocab={config.data.vocab} (fingerprint {requested.fingerprint[:12]}) is not the vocabulary "
            f"of --init={source.path} ({trained.fingerprint[:12]}): leave config.data.vocab empty, or add words to the "
            f"model's vocabulary with `bert-jax export --checkpoint={source.path} --extend_vocab=WORDS "
            "--out=DIR` and set --init=DIR"
        )


def perplexity_before_and_after(metrics: str | Path) -> str:
    """Return a line with the held-out perplexity, and the bits per byte, at a run's first and last evaluation.

    Raises:
      UserError: if there are fewer than two evaluations.
    """
    lines = read_log(metrics)
    kinds = {
        name: [line for line in lines if "step" in line and isinstance(line.get(name), float | int)]
        for name in ("eval/mlm_loss", "eval/clm_loss")
    }
    # A run with causal phases is compared where it predicted masks: the two do not compare.
    name = max(kinds, key=lambda name: (len(kinds[name]) > 1, name == "eval/mlm_loss"))
    evaluations = [(line["step"], line[name]) for line in kinds[name]]
    bits = [line["eval/bits_per_byte"] for line in kinds[name] if "eval/bits_per_byte" in line]
    if len(evaluations) == 1 and all(kinds.values()):
        step, loss = evaluations[0]
        return f"held-out perplexity after (step {step}) {math.exp(min(loss, 700)):,.1f}"
    if len(evaluations) < 2:
        raise UserError(f"{metrics}: has {len(evaluations)} evaluations, but two are needed: set --config.eval.every")
    (first, before), (last, after) = evaluations[0], evaluations[-1]
    return (
        f"held-out perplexity before (step {first}) {math.exp(min(before, 700)):,.1f}, after (step {last}) "
        f"{math.exp(min(after, 700)):,.1f}" + (f"; bits per byte {bits[0]:.3f}, {bits[-1]:.3f}" if bits else "")
    )
