"""A teacher: its outputs on the train set, computed once, since nothing about them is random."""

import numpy as np

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.loading import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.finetuning import initial
from bert_jax.finetuning.packing import RowShape
from bert_jax.finetuning.prediction import predict_outputs
from bert_jax.finetuning.program import TaskProgram
from bert_jax.kinds.base import OutputKind
from bert_jax.tasks.interface import Instances, Task


def check_teacher(teacher: PretrainedModel, *, task: Task, student: PretrainedModel) -> None:
    """Check that a teacher has the outputs that the student is to have, for the same tokens.

    Raises:
      UserError: if it does not.
    """
    flag = f"--teacher={teacher.path}"
    if not task.kind.can_imitate:
        raise UserError(f"{flag}: {task.name} ({task.kind.name}) does not learn from a teacher: omit it")
    if teacher.require_tokenizer().fingerprint != student.require_tokenizer().fingerprint:
        raise UserError(
            f"{flag} has another vocabulary than --init={student.path}, so it would read other tokens: give a student "
            "with the teacher's vocabulary"
        )
    kind = teacher.output_kind
    labels = list(task.labels) if task.kind.has_label_names else []
    if (
        task.kind.head not in teacher.parts
        or kind is None
        or not initial.is_same_head(kind, task.kind)
        or teacher.num_labels != (len(labels) or 1)
        or (labels and "id2label" in teacher.label_fields and teacher.labels != labels)
    ):
        raise UserError(
            f"{flag} is a {teacher.architecture} with {_outputs(teacher, kind)}: give a model that was fine-tuned on "
            f"{task.name} with {', '.join(labels) or 'one number'}"
        )


def _outputs(teacher: PretrainedModel, kind: type[OutputKind] | None) -> str:
    return ", ".join(teacher.labels) if kind is not None and teacher.num_labels else "no head"


def teacher_outputs(
    teacher: PretrainedModel, *, config: FinetuneConfig, task: Task, shape: RowShape, features: Instances
) -> np.ndarray:
    """Return the teacher's output for each example, [examples, ...]."""
    model = initial.task_model(teacher, config=config)
    program = TaskProgram(config, model=model, task=task, shape=shape)
    params = {part: teacher.params[part] for part in program.state_shapes.params}
    return np.stack(predict_outputs(program, program.place_params(params), features=features))


def of_slots(outputs: np.ndarray, *, order: np.ndarray) -> np.ndarray:
    """Return the outputs of the examples in `order` [B, E], zeros for an empty slot (-1)."""
    rows = np.zeros((*order.shape, *outputs.shape[1:]), np.float32)
    rows[order >= 0] = outputs[order[order >= 0]]
    return rows
