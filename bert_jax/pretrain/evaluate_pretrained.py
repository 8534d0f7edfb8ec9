"""Held-out evaluation of any model, with the metrics and the masks of the training loop."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from bert_jax.config import (
    DataConfig,
    EvalConfig,
    MaskingConfig,
    MeshConfig,
    ModelConfig,
    PhaseConfig,
    from_saved,
    model_at,
)
from bert_jax.convert.loading import PretrainedModel, load_pretrained
from bert_jax.data.dataset_info import DatasetInfo, finished_lengths, load_dataset_info, require_shards
from bert_jax.errors import UserError
from bert_jax.locations import is_bucket
from bert_jax.model.kernel_notices import kernel_notices
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.validation import check_batches
from bert_jax.pretrain.causal import objective_class
from bert_jax.pretrain.dataset import open_tokenizer
from bert_jax.pretrain.evaluation import Evaluator, without_bytes
from bert_jax.pretrain.evaluation_program import EvaluationProgram, evaluation_program
from bert_jax.pretrain.objective import PretrainingObjective, make_objective
from bert_jax.progress import ProgressBar

_BATCH_SIZE = 64  # for a model without a training config


@dataclasses.dataclass(frozen=True)
class _Training:
    """The training settings that an evaluation repeats; the defaults are for models without a training config."""

    model: ModelConfig
    phases: tuple[PhaseConfig, ...]
    num_steps: int = 0
    batch_size: int = _BATCH_SIZE
    seed: int = 0
    max_examples: int = EvalConfig.max_examples
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    objective: str = "auto"

    def phase(self, *, step: int | None) -> PhaseConfig:
        """Return the phase that the loop was in at the end of `step`, or the last phase if `step` is None."""
        fraction = 0.0
        for phase in self.phases:
            fraction += phase.fraction
            if step is not None and step <= round(fraction * self.num_steps):
                return phase
        return self.phases[-1]

    def phase_of_length(self, length: int, *, step: int | None) -> PhaseConfig:
        """Return the phase of `step` if it has this length, else the last phase of this length."""
        phase = self.phase(step=step)
        if length == phase.max_seq_length:
            return phase
        same = [item for item in self.phases if item.max_seq_length == length]
        return same[-1] if same else PhaseConfig(max_seq_length=length)


def evaluate_pretrained(
    path: str | Path,
    *,
    data: str = "",
    max_seq_length: int = 0,
    max_examples: int = 0,
    batch_size: int = 0,
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return the `eval/...` metrics of a model on the held-out sequences of a data set, and what they were measured on.

    An empty string or 0 means the value of the training run: its data set, and the length and batch size of the
    checkpoint's phase. Seed and masking are those of the training run. So a checkpoint gets the metrics that the loop
    wrote for it; the masks depend on the batch size. For another length, the settings of the last phase of that length
    are used. `init_missing` and `drop` are those of `load_pretrained`.

    Raises:
      UserError: if there is no model or data set, or vocabulary or casing differ; the message names both sides.
    """
    for flag, value in (("max_seq_length", max_seq_length), ("max_examples", max_examples), ("batch_size", batch_size)):
        if value < 0:
            raise UserError(f"--{flag}={value}: must not be negative; 0 means the value of the training run")
    source = load_pretrained(path, init_missing=init_missing, drop=drop, exact=False, report=report)
    trained, step = _training(source), source.record.get("step")
    for line in kernel_notices(dtype=trained.model.dtype, implementation=trained.model.attention_implementation):
        report(line)
    directory = _directory(source, trained, data)
    info = _open(directory, max_seq_length=max_seq_length or _length(source, trained, directory), report=report)
    length = info.max_seq_length
    _check_vocabulary(source, info)
    if note := without_bytes(info):
        report(note)
    phase = trained.phase_of_length(length, step=step)
    mesh = meshes.make_mesh(MeshConfig())
    rows = batch_size or phase.batch_size or trained.batch_size
    check_batches({"--batch_size": rows}, mesh=mesh, parts=1)
    program = evaluation_program(trained.model, mesh=mesh, seed=trained.seed)
    evaluator = Evaluator(
        program,
        objective=_objective(source, trained, info=info, phase=phase),
        info=info,
        batch_size=rows,
        max_examples=max_examples or trained.max_examples,
    )
    params = jax.device_put(_with_all_parts(source, program), program.param_shardings)
    bar = ProgressBar(total=evaluator.num_batches, unit="batch", label="evaluating")
    bar.begin()
    metrics = evaluator(params, advance=bar.reach)
    bar.close()
    return {
        **metrics,
        "model": str(path),
        "step": step,
        "data": str(directory),
        "max_seq_length": length,
        "examples": evaluator.num_examples,
        **({"randomly_initialized": list(source.random)} if source.random else {}),
    }


def _training(source: PretrainedModel) -> _Training:
    if "config" not in source.record or "train" not in source.record["config"]:
        phase = PhaseConfig(max_seq_length=min(128, source.model.max_position_embeddings))
        return _Training(model=source.model, phases=(phase,))
    config = from_saved(source.record["config"])
    step = source.record.get("step")
    phases, num_steps = config.train.phases, config.train.num_steps
    return _Training(
        # As the checkpoint's phase trained it.
        model=config.model if step is None else model_at(config.model, phases=phases, num_steps=num_steps, step=step),
        phases=config.train.phases,
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
        seed=config.seed,
        max_examples=config.eval.max_examples,
        masking=config.masking,
        data=config.data,
        objective=config.train.objective,
    )


def _length(source: PretrainedModel, trained: _Training, directory: Path | str) -> int:
    """Return the length of the checkpoint's phase or, if the data set lacks it, the longest length that fits."""
    length, lengths = trained.phase(step=source.record.get("step")).max_seq_length, finished_lengths(directory)
    if length in lengths:
        return length
    fitting = [item for item in lengths if item <= source.model.max_position_embeddings]
    if not fitting:
        raise UserError(
            f"{directory} has sequences of {', '.join(map(str, lengths)) or 'no'} tokens, which do not fit the "
            f"{source.model.max_position_embeddings} positions of {source.path}: prepare the text with "
            f"--max_seq_length={source.model.max_position_embeddings}"
        )
    return max(fitting)


def _objective(
    source: PretrainedModel, trained: _Training, *, info: DatasetInfo, phase: PhaseConfig
) -> PretrainingObjective:
    has_head = "next_sentence" in source.params and "pooler" in source.params
    return make_objective(
        trained.model,
        masking=trained.masking,
        special=open_tokenizer(info).special_ids,
        max_seq_length=info.max_seq_length,
        instances=info.instances_per_row,
        max_predictions_per_seq=0 if phase.masking_rate else phase.max_predictions_per_seq,  # as the training loop's
        next_sentence=trained.objective == "auto" and info.objective != "mlm" and has_head,
        cls=objective_class(causal=trained.objective == "causal" or source.predicts_next),
    )


def _open(directory: Path | str, *, max_seq_length: int, report: Callable[[str], None]) -> DatasetInfo:
    info = load_dataset_info(directory, max_seq_length=max_seq_length)
    require_shards(directory, info=info, report=report)
    return info


def _directory(source: PretrainedModel, trained: _Training, data: str) -> Path | str:
    for named in (data, trained.data.directory):
        if is_bucket(named):
            return named
        if named:
            break
    if data:
        return Path(data)
    workdir = source.path if (source.path / "checkpoints").is_dir() else source.path.parent.parent
    directory = Path(trained.data.directory) if trained.data.directory else workdir / "data"
    if source.kind != "workdir" or not directory.exists():
        raise UserError(
            f"--data is missing: set --data=DIR to the data set to evaluate {source.path} on, built by prepare"
        )
    return directory


def _check_vocabulary(source: PretrainedModel, info: DatasetInfo) -> None:
    tokenizer = source.require_tokenizer()
    if tokenizer.fingerprint != info.vocabulary_fingerprint:
        raise UserError(
            f"the vocabulary of {source.path} ({tokenizer.vocab_size} tokens, "
            f"do_lower_case={tokenizer.do_lower_case}, fingerprint {tokenizer.fingerprint[:12]}) is not that of "
            f"{info.directory} ({info.vocab_size} tokens, do_lower_case={info.do_lower_case}, fingerprint "
            f"{info.vocabulary_fingerprint[:12]}): prepare the text with the model's vocabulary (--vocab)"
        )


def _with_all_parts(source: PretrainedModel, program: EvaluationProgram) -> Any:
    """Return the parameters; a pooler or next-sentence head that the model lacks is zeros, which are not used."""
    if "masked_lm" not in source.params:
        raise UserError(
            f"{source.path} ({source.architecture}) has no masked-LM head to evaluate: name a pre-trained model, not a "
            "fine-tuned one"
        )
    shapes = program.param_shapes
    zeros = {part: jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape), shapes[part]) for part in shapes}
    return {part: source.params.get(part, zeros[part]) for part in shapes}
