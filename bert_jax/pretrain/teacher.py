"""The teacher of a distillation: a model cut after the layer that teaches, checked against the student's config."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_jax.config import Config, DistillationConfig, ModelConfig
from bert_jax.config.distillation import check_relation_heads
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.pruned_layers import up_to_layer
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.relation_vectors import check_has_relations
from bert_jax.runs.start_up import weights_digest

_ALL_LAYERS_BELOW = 13  # a teacher of up to 12 layers teaches with its last


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher in host memory.

    Attributes:
      path: as the user gave it.
      model: its config, cut after the layer that teaches.
      params: the parameters of its encoder, cut likewise.
      checksum: of `params`.
      tokenizer: of the text that it reads.
    """

    path: Path
    model: ModelConfig
    params: Any = dataclasses.field(repr=False)
    checksum: str
    tokenizer: Tokenizer

    @property
    def record(self) -> dict[str, Any]:
        """Return what identifies the teacher, for the workdir and its checkpoints."""
        return {"path": str(self.path), "layer": self.model.num_hidden_layers, "checksum": self.checksum}

    def check_same(self, record: dict[str, Any], *, where: str) -> None:
        """Check that a run with the teacher of `record`, in `where`, may resume with this one; it may have moved.

        Raises:
          UserError: if it is another.
        """
        if record.get("checksum") != self.checksum:
            raise UserError(
                f"--teacher={self.path} (checksum {self.checksum}, layer {self.model.num_hidden_layers}) is not the "
                f"teacher of {where}, {record.get('path')} (checksum {record.get('checksum')}, layer "
                f"{record.get('layer')}): give that one, or choose another --workdir"
            )


def load_teacher(path: str, *, config: Config, report: Callable[[str], None]) -> Teacher:
    """Load the teacher at `path` for the student of `config`.

    Raises:
      UserError: if there is no model, or its layers, width, positions or segments do not suit the config.
    """
    source = load_pretrained(path, exact=False, report=report)
    name, model, distill = f"--teacher={path}", source.model, config.distill
    assert distill is not None, "the command checks it"
    check_has_relations(model, name=name)
    layer = _layer(distill, model=model, name=name)
    check_relation_heads(distill.relation_heads, width=model.hidden_size, name=f"the width of {name}")
    longest = max(phase.max_seq_length for phase in config.train.phases)
    if longest > model.max_position_embeddings:
        raise UserError(
            f"{name} reads at most {model.max_position_embeddings} tokens, config.train.phases has sequences of "
            f"{longest}: lower max_seq_length, or give another teacher"
        )
    if model.type_vocab_size < 2 and config.data.objective != "mlm":
        raise UserError(
            f"{name} has a single type of segments, config.data.objective={config.data.objective} has two: set "
            "--config.data.objective=mlm, or give another teacher"
        )
    cut = up_to_layer(source, number=layer)
    params = cut.params["encoder"]
    return Teacher(
        path=source.path,
        model=_computed_as(cut.model, student=config.model),
        params=params,
        checksum=weights_digest(params),
        tokenizer=source.require_tokenizer(),
    )


def _layer(distill: DistillationConfig, *, model: ModelConfig, name: str) -> int:
    """Return the number of the layer that teaches, from 1: the paper's choices for Base and Large are the default."""
    count = model.num_hidden_layers
    if distill.teacher_layer > count:
        raise UserError(
            f"config.distill.teacher_layer={distill.teacher_layer}, but {name} has {count} layers: set it to at most "
            f"{count}, or to 0"
        )
    return distill.teacher_layer or (count if count < _ALL_LAYERS_BELOW else count * 7 // 8)


def _computed_as(model: ModelConfig, *, student: ModelConfig) -> ModelConfig:
    """Return the teacher computed as the student is; a kernel that the config names may not support its heads."""
    is_reference = student.attention_implementation == "reference"
    return dataclasses.replace(
        model,
        dtype=student.dtype,
        scan_layers=student.scan_layers,
        remat="none",
        attention_implementation="reference" if is_reference else "auto",
    )
