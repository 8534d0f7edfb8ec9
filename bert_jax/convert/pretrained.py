"""A model that came from somewhere: what every reader of models returns, and every writer takes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.config import ModelConfig
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.kinds.base import OutputKind
from bert_jax.kinds.table import kind_of_model

CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class PretrainedModel:
    """Hold a model that came from somewhere.

    Attributes:
      path: what the user named.
      kind: "workdir", "huggingface" or "tf1".
      model: its shape, to be computed in float32.
      architecture: the HuggingFace class that has its parts.
      params: our tree of float32 NumPy arrays.
      dtype: the width its weights came in.
      tokenizer: None where nothing beside the weights says.
      label_fields: `id2label` and its like, as HuggingFace's config.json has them.
      record: what a checkpoint of ours knows of its training: step, config, fingerprints, metrics.
    """

    path: Path
    kind: str
    model: ModelConfig
    architecture: str
    params: dict[str, Any]
    dtype: str
    tokenizer: Tokenizer | None
    label_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the parts that it has: encoder, pooler, heads."""
        return tuple(self.params)

    @property
    def num_labels(self) -> int:
        """Return the number of labels of its classifier, 0 without one."""
        classifier = self.params.get("classifier")
        return classifier["bias"].shape[-1] if classifier else 0

    @property
    def labels(self) -> list[str]:
        """Return the names of the labels in order; LABEL_0, LABEL_1 ... where none were given."""
        given = self.label_fields.get("id2label", {})
        return [str(given.get(str(index), f"LABEL_{index}")) for index in range(self.num_labels)]

    @property
    def output_kind(self) -> type[OutputKind] | None:
        """Return what its task head computes, None without one."""
        problem = str(self.label_fields.get("problem_type", ""))
        return kind_of_model(self.architecture, problem_type=problem, num_labels=self.num_labels)

    def require_tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
          UserError: if there is none.
        """
        if self.tokenizer is None:
            raise UserError(f"{self.path}: has no vocabulary: put the model's vocab.txt into the folder")
        return self.tokenizer
