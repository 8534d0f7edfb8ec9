"""The output of `--dry_run`: mesh, parameters, schedule, weight decay, tokens per step."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from bert_jax.config import Config
from bert_jax.convert.loading import PretrainedModel
from bert_jax.data.dataset_info import DatasetInfo
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.axes import describe
from bert_jax.pretrain.method import SAME_RUN, Method
from bert_jax.pretrain.open_values import EPOCHS_NEED_DATA, as_begun, is_settled, preliminary
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.pretrain.proportions import describe_epochs, estimated_epochs, warnings
from bert_jax.pretrain.run import adopted, continued
from bert_jax.runs.bucket_workdir import local_copy
from bert_jax.training.optimizers import decay_policy
from bert_jax.training.policy import apply_policy, parameter_names


def config_of_start(
    config: Config,
    *,
    workdir: str | Path,
    source: PretrainedModel | None = None,
    continue_from: str = "",
    method: Method | None = None,
    report: Callable[[str], None] = print,
) -> Config:
    """Return the config that a start in `workdir` trains with; `report` says what is not known before the data set is.

    A run that has begun keeps what it settled then. `source` is the model of --init.

    Raises:
      UserError: as the start does.
    """
    workdir = local_copy(workdir)
    has_begun = SAME_RUN.has_begun(workdir)
    config, _ = continued(config, workdir=workdir, path=continue_from, has_begun=has_begun, report=report)
    config = adopted(config, workdir=workdir, source=source, method=method or Method(), report=report)
    if has_begun:
        return as_begun(config, workdir=workdir)
    if not is_settled(config):
        report(EPOCHS_NEED_DATA.format(config.train.num_steps))
    return preliminary(config)


def describe_run(program: PretrainingProgram, *, infos: Mapping[int, DatasetInfo]) -> str:
    """Return the output of `--dry_run`: what a user decides on comes last, where a terminal shows it.

    `infos` are the data sets of each length; without them, epochs are estimated. Nothing is compiled.
    """
    if infos:
        epochs = describe_epochs(program.phases, infos=infos)
        epochs += warnings(program.config, phases=program.phases, infos=infos)
    else:
        epochs = estimated_epochs(program.config, phases=program.phases)
    parts = [_parameters(program), _mesh(program), _schedule(program), "\n".join(epochs)]
    return "\n\n".join(filter(None, parts))


def _mesh(program: PretrainingProgram) -> str:
    mesh, shape = program.mesh, describe(program.mesh.shape)
    params, hosts = bytes_line(program, "params"), jax.process_count()
    return (
        f"mesh: {shape} ({mesh.size} x {mesh.devices.flat[0].device_kind}, {hosts} host{'s' * (hosts > 1)})\n"
        f"parameters: {sum(leaf.size for leaf in jax.tree.leaves(program.state_shapes.params)):,}; {params}\n"
        f"optimizer: {program.rule.name}, {bytes_line(program, 'opt_state')}"
    )


def bytes_line(program: PretrainingProgram, part: str) -> str:
    """Return the size of a part of the state: in total and per device."""
    shapes, shardings = getattr(program.state_shapes, part), getattr(program.state_shardings, part)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    return (
        f"{whole / 2**20:,.1f} MiB, {meshes.bytes_per_device(shapes, shardings=shardings) / 2**20:,.1f} MiB per device"
    )


def _schedule(program: PretrainingProgram) -> str:
    lines, rates = ["phase  steps               length  predictions  batch  tokens/step"], []

    def rate(step: int) -> float:
        return float(program.schedule(step))

    for index, phase in enumerate(program.phases):
        if phase.end == phase.start:
            continue
        # The peak is at the last step of a warm-up or the step after it.
        ends = [segment.start + segment.warmup_steps - side for segment in program.segments for side in (0, 1)]
        peak = max((min(max(step, phase.start), phase.end - 1) for step in ends), key=rate)
        first, most, last = (f"{rate(step):.3e}" for step in (phase.start, peak, phase.end - 1))
        rates.append(f"learning rate of phase {index}: first {first}, peak {most}, last {last}")
        steps = f"{phase.start}-{phase.end - 1}"
        lines.append(
            f"{index:<5}  {steps:<18}  {phase.max_seq_length:<6}  {program.max_predictions(phase):<11}  "
            f"{phase.batch_size:<5}  {phase.batch_size * phase.max_seq_length:,}"
        )
    total = sum((p.end - p.start) * p.batch_size * p.max_seq_length for p in program.phases)
    lines.append(f"total tokens (including padding): {total:,}")
    return "\n".join([*lines, *rates])


def _parameters(program: PretrainingProgram) -> str:
    shapes = program.state_shapes.params
    names = parameter_names(shapes)
    width = max(map(len, names))
    decays = jax.tree.leaves(apply_policy(decay_policy(untrained=program.untrained_parts), params=shapes))
    shardings = jax.tree.leaves(program.state_shardings.params)
    is_sharded = program.mesh.size > 1
    size_name, specs = ("bytes/device", "    sharding") if is_sharded else ("bytes", "")
    lines = [f"{'parameter':<{width}}  {'shape':<11}  decay  {size_name}{specs}"]
    for name, leaf, decay, sharding in zip(names, jax.tree.leaves(shapes), decays, shardings, strict=True):
        size = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        shape = "x".join(map(str, leaf.shape))
        spec = f"({', '.join(str(axis or '-') for axis in sharding.spec)})" if is_sharded else ""
        lines.append(f"{name:<{width}}  {shape:<11}  {'yes' if decay else 'no':<5}  {size:<14,}  {spec}".rstrip())
    return "\n".join(lines)
