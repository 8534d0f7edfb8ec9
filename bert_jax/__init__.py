"""Pre-train BERT from raw text on TPU pods with JAX, fine-tune it, and export it to the HuggingFace ecosystem.

    import bert_jax

    bert_jax.train("configs/tiny_cpu.py", workdir="runs/tiny")
    model = bert_jax.load("runs/tiny")
    print(model.fill_mask("Paris is the [MASK] of France."))

Each function does what the command of its name does; data workers import the package without jax.
"""

import dataclasses
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_jax.prediction.model import Model

__all__ = ["finetune", "load", "train"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        return metadata.version("bert_jax")
    raise AttributeError(f"module 'bert_jax' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def load(source: str | Path, *, init_missing: Sequence[str] = (), drop: Sequence[str] = ()) -> "Model":
    """Load a model: a workdir, one of its checkpoints, a HuggingFace folder, or the prefix of a TF1 checkpoint.

    A model in a bucket (gs://) is downloaded once. `init_missing` names parts to initialize randomly if the model lacks
    them, `drop` parts to ignore.

    Raises:
      UserError: if there is no model, or it is damaged. The message says what to do.
    """
    from bert_jax.prediction import model

    return model.load(source, init_missing=init_missing, drop=drop)


def train(
    config: Any,
    *,
    workdir: str | Path,
    init: str = "",
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    init_layers: Sequence[str] = (),
    continue_from: str = "",
) -> int:
    """Pre-train, or resume in `workdir`; return 0 at the end of the schedule, 75 or 130 where it was stopped.

    Args:
      config: a ConfigDict as config files return it, a `bert_jax.config.Config`, or `FILE[:argument]`.
      workdir: directory for checkpoints and metrics, and for the data set if none is given.
      init: model to start from.
      init_missing: parts to initialize randomly if that model lacks them.
      drop: parts or tensors of that model to ignore.
      init_layers: numbers of its layers to keep; empty: all.
      continue_from: a run whose state a new run starts from.

    Raises:
      UserError: for anything that you can fix. The message says what to do.
    """
    from bert_jax.config import Config, files, from_config_dict
    from bert_jax.pretrain import run

    if not isinstance(config, Config):
        config = from_config_dict(files.load(config))
    return run.pretrain(
        config,
        workdir=workdir,
        init=init,
        init_missing=init_missing,
        drop=drop,
        init_layers=init_layers,
        continue_from=continue_from,
        command="bert_jax.train",
    )


def finetune(config: Any, *, init: str, workdir: str | Path, data_dir: str = "", **request: Any) -> int:
    """Fine-tune, or resume in `workdir`; return 0 at the end, 75 or 130 where it was stopped.

    Args:
      config: a ConfigDict as config files return it, a `FinetuneConfig`, or `FILE[:argument]`.
      init: model to start from.
      workdir: directory for results, predictions and the best checkpoint.
      data_dir: folder with the task's files; empty: the config's.
      request: further fields of `bert_jax.finetuning.finetune.Request`: `seeds`, `sweep`, `predict_test`, ...

    Raises:
      UserError: for anything that you can fix. The message says what to do.
    """
    from bert_jax.config import files
    from bert_jax.config.finetuning import FinetuneConfig, from_config_dict
    from bert_jax.finetuning import finetune as command

    if not isinstance(config, FinetuneConfig):
        config = from_config_dict(files.load(config))
    if data_dir:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, directory=data_dir))
    flags = command.Request(init=init, workdir=str(workdir), command="bert_jax.finetune", **request)
    return command.finetune(config, request=flags)
