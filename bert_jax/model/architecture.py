"""The interface between an encoder architecture and the rest of the package."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bert_jax.config import ModelConfig
from bert_jax.model.parameter_names import NameTable, initializer_range
from bert_jax.model.projection import LayerProjections


@runtime_checkable
class TrainFlops(Protocol):
    """The model FLOPs of one sequence, forward and backward (three forward passes; recomputation does not count)."""

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
        """Return the FLOPs of a sequence of `max_seq_length` positions, including padding.

        A packed sequence has `instances` instances, and each attends only to itself. So only the fraction
        `attended_share` of its T^2 pairs of positions counts: the sum of the squared lengths of the instances over T^2
        (in `DatasetInfo.statistics`). Pairs that the attention computes and masks do not count.
        """
        ...


@runtime_checkable
class ReferenceOutputs(Protocol):
    """The architecture in NumPy, on the tensors of a HuggingFace folder under their HuggingFace names."""

    def __call__(
        self,
        tensors: Mapping[str, np.ndarray],
        /,
        *,
        config: Mapping[str, Any],
        input_ids: np.ndarray,
        token_type_ids: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Return the outputs of one unpadded sequence, by the field names of `parts.Outputs`."""
        ...


@dataclasses.dataclass(frozen=True)
class HuggingFaceFormat:
    """The architecture in HuggingFace folders.

    Attributes:
      class_prefix: the prefix of its class names ("Bert").
      classes: its classes, each with our names of its parts. In the class of the bare encoder (`bare_class`), all parts
        except the encoder are optional.
      read_fields: returns the model config for the fields of a config.json, in float32; raises `UserError` naming file
        and field.
      write_fields: returns those fields; raises `UserError` if HuggingFace's classes cannot compute the model.
      outputs: an independent implementation, to verify exports.
      pretraining_class: the use whose class has the parts that pre-training trains.
      special_ids: the fields of config.json for special tokens, each with the attribute of `SpecialIds`.
      has_token_types: whether the classes take `token_type_ids`.
      verified_length: the tokens of the sequence on which an export is compared with `outputs`.
    """

    class_prefix: str
    classes: Mapping[str, tuple[str, ...]]
    read_fields: Callable[[Mapping[str, Any], Path], ModelConfig]
    write_fields: Callable[[ModelConfig], dict[str, Any]]
    outputs: ReferenceOutputs
    pretraining_class: str = "ForPreTraining"
    special_ids: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"pad_token_id": "pad_id"})
    has_token_types: bool = True
    verified_length: int = 64

    @property
    def bare_class(self) -> str:
        """Return the class of the bare encoder."""
        return self.class_for("Model")

    def class_for(self, use: str) -> str:
        """Return the class for a use: "ForPreTraining", "ForTokenClassification", "Model", ..."""
        return f"{self.class_prefix}{use}"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An encoder architecture: a folder in `model/` that defines one of these, and a line in `architectures.py`.

    Its modules take a `ModelConfig`. Training relies on these conventions for parameter names
    (`training/optimizers.py`): repeated layers are under `types.LAYERS`, stacked; norms end in `layer_norm/scale` and
    `layer_norm/bias`, matrices in `kernel`, embedding tables in `embeddings`.

    Attributes:
      name: the value of `config.model.architecture`, and HuggingFace's `model_type`.
      title: its name in messages and model cards.
      citation: the publication.
      encoder: the module from `EncoderInputs` to `EncoderOutput`.
      heads: the modules on top of the encoder, by part name: `masked_lm` takes hidden states and the word embeddings,
        `pooler` the hidden state of each instance's [CLS], `next_sentence` the output of the pooler. With a `transform`
        there is no pooler: the masked LM and every classifier read what it makes of hidden states.
      names: the names of its parameters.
      shape_fields: the fields of `ModelConfig` that determine what is computed; the other fields determine how.
      train_flops_per_row: see `TrainFlops`.
      huggingface: see `HuggingFaceFormat`.
      classifier_stddev: the initial standard deviation of a classifier's matrix.
      projections: how a reader gets queries, keys and values of a layer; None for an encoder without attention.
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
    classifier_stddev: Callable[[ModelConfig], float] = initializer_range
    projections: LayerProjections | None = None

    @property
    def pretraining_parts(self) -> tuple[str, ...]:
        """Return the parts that pre-training trains."""
        return self.huggingface.classes[self.huggingface.class_for(self.huggingface.pretraining_class)]

    @property
    def next_sentence_parts(self) -> tuple[str, ...]:
        """Return those of the pre-training parts that only the next-sentence loss trains."""
        return tuple(part for part in self.pretraining_parts if part in ("pooler", "next_sentence"))

    def own_parts(self, parts: Sequence[str]) -> tuple[str, ...]:
        """Return BERT's `parts` as this architecture has them: a transform replaces the pooler and precedes heads."""
        heads = [part for part in parts if part not in ("encoder", "pooler")]
        if "transform" not in self.heads or not heads:
            return tuple(parts)
        return ("encoder", "transform", *heads)
