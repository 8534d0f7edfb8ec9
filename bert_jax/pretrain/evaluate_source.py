"""Evaluate any model SOURCE on held-out rows, with the figures and the masks of the training loop."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bert_jax.config import Config, PhaseConfig, from_config_dict
from bert_jax.convert.source import Source, load_source
from bert_jax.data.dataset_info import DatasetInfo, finished_lengths, load_dataset_info
from bert_jax.errors import UserError
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.dataset import open_tokenizer
from bert_jax.pretrain.evaluation import Evaluator
from bert_jax.pretrain.program import Program

_BATCH_SIZE = 64  # for a source that has no training config of its own


def evaluate_source(
    path: str | Path,
    *,
    data: str = "",
    max_seq_length: int = 0,
    max_examples: int = 0,
    batch_size: int = 0,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return `eval/...` figures of the model on the held-out rows of a data set, with what they were measured on.

    Empty or 0 takes what the model was trained with: its data set, the length and batch size of the phase that its step
    ended, its seed and masking; so a checkpoint gets the figures that the loop wrote for it (masks depend on the
    batch size). Another length takes the last phase of that length.

    Raises:
      UserError: if there is no model or data set, or vocabulary or casing differ; the line names both sides.
    """
    for flag, value in (("max_seq_length", max_seq_length), ("max_examples", max_examples), ("batch_size", batch_size)):
        if value < 0:
            raise UserError(f"--{flag}={value}: must not be negative; 0 is what the model was trained with")
    source = load_source(path, report=report)
    config = _config(source)
    directory = _directory(source, config, data)
    lengths = finished_lengths(directory)
    phase = _phase(config, step=source.record.get("step"))
    length = max_seq_length or phase.max_seq_length
    if not max_seq_length and length not in lengths:
        fitting = [item for item in lengths if item <= source.model.max_position_embeddings]
        if not fitting:
            raise UserError(
                f"{directory} holds rows of {', '.join(map(str, lengths)) or 'no length'}, none of which fits the "
                f"{source.model.max_position_embeddings} positions of {path}: prepare the text with a --max_seq_length"
            )
        length = max(fitting)
    if length != phase.max_seq_length:
        same = [item for item in config.train.phases if item.max_seq_length == length]
        phase = same[-1] if same else PhaseConfig(max_seq_length=length)
    info = load_dataset_info(directory, max_seq_length=length)
    _check_vocabulary(source, info)
    next_sentence = info.objective != "mlm" and "next_sentence" in source.params and "pooler" in source.params
    rows = batch_size or phase.batch_size or config.train.batch_size
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            objective=info.objective if next_sentence else "mlm",
            pack=info.instances_per_row > 1,
            max_instances_per_row=info.instances_per_row if info.instances_per_row > 1 else 0,
            max_instance_length=0,
        ),
        train=dataclasses.replace(
            config.train,
            num_steps=1,
            batch_size=rows,
            gradient_accumulation_steps=1,
            phases=(dataclasses.replace(phase, fraction=1.0, batch_size=0, learning_rate=0.0, warmup_steps=0),),
        ),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=0),
        mesh=dataclasses.replace(config.mesh, data=-1, fsdp=1, tensor=1),
    )
    program = Program(config, mesh=meshes.make_mesh(config.mesh))
    evaluator = Evaluator(
        program,
        phase=program.phases[0],
        special=open_tokenizer(info).special_ids,
        info=info,
        max_examples=max_examples or config.eval.max_examples,
    )
    params = jax.device_put(_with_all_parts(source, program), program.state_shardings.params)
    return {
        **evaluator(params),
        "model": str(path),
        "step": source.record.get("step"),
        "data": str(directory),
        "max_seq_length": length,
        "examples": evaluator.num_examples,
    }


def _config(source: Source) -> Config:
    if "config" in source.record and "train" in source.record["config"]:
        return from_config_dict(source.record["config"])
    phase = PhaseConfig(max_seq_length=min(128, source.model.max_position_embeddings))
    config = Config(model=source.model)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=_BATCH_SIZE, phases=(phase,)))


def _phase(config: Config, *, step: int | None) -> PhaseConfig:
    """Return the phase that made the state of `step`, as the loop has it; the last one where no step is known."""
    share = 0.0
    for phase in config.train.phases:
        share += phase.fraction
        if step is not None and step <= round(share * config.train.num_steps):
            return phase
    return config.train.phases[-1]


def _directory(source: Source, config: Config, data: str) -> Path:
    if data:
        return Path(data)
    workdir = source.path if (source.path / "checkpoints").is_dir() else source.path.parent.parent
    directory = Path(config.data.directory) if config.data.directory else workdir / "data"
    if source.kind != "workdir" or not directory.exists():
        raise UserError(f"--data is missing: name the data set to evaluate {source.path} on, as made by prepare")
    return directory


def _check_vocabulary(source: Source, info: DatasetInfo) -> None:
    mine = source.require_tokenizer()
    if mine.fingerprint != info.vocabulary_fingerprint:
        raise UserError(
            f"the vocabulary of {source.path} ({mine.vocab_size} pieces, do_lower_case={mine.do_lower_case}, "
            f"fingerprint "
            f"{mine.fingerprint[:12]}) is not that of {info.directory} ({info.vocab_size} pieces, do_lower_case="
            f"{info.do_lower_case}, {info.vocabulary_fingerprint[:12]}): prepare the text with --vocab of the model"
        )


def _with_all_parts(source: Source, program: Program) -> Any:
    """Return the parameters, with zeros for a next-sentence head or pooler that the source lacks and nothing reads."""
    if "masked_lm" not in source.params:
        raise UserError(
            f"{source.path} ({source.architecture}) has no masked-LM head to evaluate: name a model that was "
            f"pre-trained"
        )
    shapes = program.state_shapes.params
    absent = {part: jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape), shapes[part]) for part in shapes}
    return {part: source.params.get(part, absent[part]) for part in shapes}
