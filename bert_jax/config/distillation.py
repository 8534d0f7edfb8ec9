"""The options of distillation in pre-training: MiniLMv2 (Wang et al. 2021)."""

import dataclasses

from bert_jax.config.fields import field
from bert_jax.config.groups import ModelConfig
from bert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """What the last layer of the model, the student, learns from a layer of `--teacher` (Wang et al. 2021)."""

    teacher_layer: int = field(
        0,
        at_least=0,
        unit="layers",
        doc="Layer of the teacher, from 1; 0: the last of up to 12 layers, else that at 7/8 of them (21 of 24).",
    )
    relation_heads: int = field(
        48,
        above=0,
        unit="heads",
        doc="Parts of queries, keys and values with relations of their own; divides the width of both models.",
    )
    pretraining_weight: float = field(
        0.0,
        at_least=0,
        doc="Weight of the pre-training loss, which is added to that of the relations; 0: the relations alone.",
    )


def check_distillation(distill: DistillationConfig | None, *, model: ModelConfig) -> None:
    """Check that the student has relations, and that its width divides into relation heads.

    Raises:
      UserError: if not.
    """
    if distill is None:
        return
    if model.attention_direction != "bidirectional":
        raise UserError(
            f"config.model.attention_direction={model.attention_direction}: config.distill compares attention in both "
            "directions: set it to bidirectional"
        )
    check_relation_heads(distill.relation_heads, width=model.hidden_size, name="config.model.hidden_size")


def check_relation_heads(heads: int, *, width: int, name: str) -> None:
    """Check that `heads` divides the width of a model, the `name` of an error.

    Raises:
      UserError: if not.
    """
    if width % heads:
        nearest = max(number for number in range(1, heads) if width % number == 0)
        raise UserError(
            f"config.distill.relation_heads={heads} does not divide {name}={width}: set it to {nearest}, or another "
            "number that divides the widths of student and teacher"
        )
