"""A pretrained model: the result of all importers and the input of all exporters."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.config import ModelConfig
from bert_jax.convert.sentence_transformers import EmbeddingSettings
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.kinds.base import OutputKind
from bert_jax.kinds.table import kind_of_model
from bert_jax.model.architectures import architecture_of

CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class PretrainedModel:
    """A model loaded from a workdir, a HuggingFace folder or a TF1 checkpoint.

    Attributes:
      path: the path that the user gave.
      kind: "workdir", "huggingface" or "tf1".
      model: its config, with dtype float32.
      architecture: the HuggingFace class with the same parts.
      params: our parameter tree, float32 NumPy arrays.
      dtype: the dtype of the weights in the file.
      tokenizer: None if there is no vocabulary next to the weights.
      label_fields: the fields about labels (`id2label`, ...) of HuggingFace's config.json.
      record: metadata of a workdir's checkpoint: step, config, fingerprints, metrics.
      random: the parts, or single parameters, that were initialized randomly when it was loaded.
      embedding: the settings of a sentence-transformers folder, None for other models.
      max_length: the tokens to which a folder's tokenizer cuts texts, 0 if it says nothing or more than positions.
      trained_texts: `max_seq_length` and `truncation` of the training of a folder that this package exported.
    """

    path: Path
    kind: str
    model: ModelConfig
    architecture: str
    params: dict[str, Any] = dataclasses.field(repr=False)
    dtype: str
    tokenizer: Tokenizer | None
    label_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    random: tuple[str, ...] = ()
    embedding: EmbeddingSettings | None = None
    max_length: int = 0
    trained_texts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the names of the model's parts: encoder, pooler, heads."""
        return tuple(self.params)

    @property
    def num_labels(self) -> int:
        """Return the number of labels of the classifier, 0 without one."""
        classifier = self.params.get("classifier")
        return classifier["bias"].shape[-1] if classifier else 0

    @property
    def labels(self) -> list[str]:
        """Return the label names in order; LABEL_0, LABEL_1, ... if the model has no names."""
        names = self.label_fields.get("id2label", {})
        return [str(names.get(str(index), f"LABEL_{index}")) for index in range(self.num_labels)]

    @property
    def output_kind(self) -> type[OutputKind] | None:
        """Return the kind of the task head's output, None without a head."""
        problem = str(self.label_fields.get("problem_type", ""))
        return kind_of_model(self.architecture, problem_type=problem, num_labels=self.num_labels)

    @property
    def untrained(self) -> tuple[str, ...]:
        """Return the parts that are still random: pre-training had no loss that reaches them.

        Checkpoints of earlier versions do not say; with the objective mlm their weight decay shrank these parts.
        """
        config = self.record.get("config", {})
        if "untrained" in self.record or config.get("data", {}).get("objective") != "mlm" or "masking" not in config:
            return tuple(self.record.get("untrained", ()))
        return tuple(part for part in architecture_of(self.model).next_sentence_parts if part in self.params)

    @property
    def predicts_next(self) -> bool:
        """Return whether the language model predicts the token after a position, not that at it: a causal model."""
        config = self.record.get("config", {})
        is_causal = config.get("train", {}).get("objective") == "causal"
        # A bidirectional model that reads left to right at this step is in a causal phase.
        is_causal |= config.get("model", {}).get("attention_direction") == "bidirectional"
        is_decoder = self.architecture == architecture_of(self.model).huggingface.class_for("LMHeadModel")
        return self.model.attention_direction == "left_to_right" and (is_decoder or is_causal)

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """Return the parts that are not random."""
        return tuple(part for part in self.parts if part not in (*self.untrained, *self.random))

    @property
    def longest_trained(self) -> int:
        """Return the longest sequences that the model was trained on: from its run or its folder, 0 if unknown."""
        config = self.record.get("config", {})
        lengths = [phase.get("max_seq_length", 0) for phase in config.get("train", {}).get("phases", ())]
        data = config.get("data") or self.trained_texts
        return max([*lengths, data.get("max_seq_length", 0)])

    @property
    def text_limits(self) -> dict[str, Any]:
        """Return the `max_length` and `truncation` of texts in fine-tuning, as far as they are known."""
        data = self.record.get("config", {}).get("data") or self.trained_texts
        if length := data.get("max_seq_length", self.max_length):
            return {"max_length": length, "truncation": data.get("truncation", "head")}
        return {}

    @property
    def randomness(self) -> str:
        """Return "randomly initialized: ..." for the end of a message, "" if nothing was."""
        return f"randomly initialized: {', '.join(self.random)}" if self.random else ""

    def require_tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
          UserError: if there is none.
        """
        if self.tokenizer is None:
            raise UserError(f"{self.path}: there is no vocabulary: put the model's vocab.txt into the folder")
        return self.tokenizer
