"""What the rest of the package needs to know of an encoder architecture, in one struct."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bert_jax.config import ModelConfig
from bert_jax.model.parameter_names import NameTable


@runtime_checkable
class TrainFlops(Protocol):
    """The model FLOPs of one row's forward and backward pass (three forward passes; nothing recomputed counts)."""

    def __call__(
        self,
        model: ModelConfig,
        /,
        *,
        max_seq_length: int,
        max_predictions: int,
        instances: int | float = 1,
        attended_share: float = 1.0,
    ) -> float:
        """Return the FLOPs of a row of `max_seq_length` positions, padding included.

        A packed row has `instances` instances, each of which attends to itself alone: of its T^2 pairs of positions
        only `attended_share` count, the sum of the squares of the instances' lengths over T^2
        (`DatasetInfo.statistics` has it), whatever an attention that masks the others computes.
        """
        ...


@runtime_checkable
class ReferenceOutputs(Protocol):
    """The architecture in NumPy, from a HuggingFace folder's tensors by their own names."""

    def __call__(
        self,
        tensors: Mapping[str, np.ndarray],
        /,
        *,
        config: Mapping[str, Any],
        input_ids: np.ndarray,
        token_type_ids: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Return the outputs of one unpadded sequence by the names of `parts.Outputs`."""
        ...


@dataclasses.dataclass(frozen=True)
class HuggingFaceFormat:
    """The architecture in HuggingFace's folders.

    Attributes:
      class_prefix: what the names of its classes begin with ("Bert").
      classes: its classes and the parts of ours that each holds. In the class of the encoder alone (`bare_class`) every
        part but the encoder is optional.
      read_fields: the shape that the fields of a config.json describe, to be computed in float32; raises `UserError`
        naming file and field.
      write_fields: those fields; raises `UserError` where HuggingFace's classes do not compute what the model does.
      outputs: the second opinion on an export.
    """

    class_prefix: str
    classes: Mapping[str, tuple[str, ...]]
    read_fields: Callable[[Mapping[str, Any], Path], ModelConfig]
    write_fields: Callable[[ModelConfig], dict[str, Any]]
    outputs: ReferenceOutputs

    @property
    def bare_class(self) -> str:
        """Return the class of the encoder alone."""
        return self.class_for("Model")

    def class_for(self, use: str) -> str:
        """Return the class for a use: "ForPreTraining", "ForTokenClassification", "Model", ..."""
        return f"{self.class_prefix}{use}"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An encoder architecture: a folder of `model/` that ends in one of these, and a line in `architectures.py`.

    Its modules take a `ModelConfig`. Every architecture keeps the conventions that training relies on: the parameters
    of repeated layers are below `types.LAYERS`, stacked; norms end in `layer_norm/scale` and `layer_norm/bias`,
    matrices in `kernel`, tables in `embeddings` (`training/optimizers.py`).

    Attributes:
      name: the value of `config.model.architecture`, and HuggingFace's `model_type`.
      title: how messages and model cards call it.
      citation: where it was published.
      encoder: from `EncoderInputs` to `EncoderOutput`.
      heads: the modules on top of it by the names of parts: `masked_lm`, called with hidden states and the word
        embeddings; `pooler`, called with the hidden states of each instance's [CLS]; `next_sentence`, called with what
        the pooler gave.
      names: its parameters' names.
      shape_fields: the fields of `ModelConfig` that say what is computed; the others say how.
      train_flops_per_row: see `TrainFlops`.
      huggingface: see `HuggingFaceFormat`.
    """

    name: str
    title: str
    citation: str
    encoder: Callable[[ModelConfig], Any]
    heads: Mapping[str, Callable[[ModelConfig], Any]]
    names: NameTable
    shape_fields: tuple[str, ...]
    train_flops_per_row: TrainFlops
    huggingface: HuggingFaceFormat

    @property
    def pretraining_parts(self) -> tuple[str, ...]:
        """Return the parts that pre-training trains."""
        return self.huggingface.classes[self.huggingface.class_for("ForPreTraining")]
