"""The fine-tuning models: the encoder with a head (paper section 4 and Figure 4), with HuggingFace's parameter names.

A sequence may have several instances (`types.py`), each read at one of `pooled_positions`: its [CLS], or in a
left-to-right model its last token. Only the heads that read one position have a pooler, as in HuggingFace's classes; in
an architecture with a transform, every head has it.
"""

from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig, TaskModelConfig
from bert_jax.model.architectures import architecture_of
from bert_jax.model.bilstm import bilstm_of
from bert_jax.model.dense import Dense
from bert_jax.model.dropout import Dropout
from bert_jax.model.heads import pool_instances
from bert_jax.types import EncoderInputs

# Dropout sites below 4 belong to the encoder, in every architecture.
_HEAD = 4


def _drop(values: Float[Array, "B n D"], *, config: ModelConfig, dropout: Dropout | None) -> Float[Array, "B n D"]:
    return values if dropout is None else dropout.apply(values, rate=config.hidden_dropout_prob, site=_HEAD)


def _classifier(config: ModelConfig, num_labels: int) -> Dense:
    stddev = architecture_of(config).classifier_stddev(config)
    return Dense(config, num_labels, names=("embed", None), stddev=stddev, name=None)


def _options(config: ModelConfig) -> TaskModelConfig:
    return config if isinstance(config, TaskModelConfig) else TaskModelConfig()


class _TaskModel(nn.Module):
    """The encoder, and on it what a `TaskModelConfig` asks for: a BiLSTM; a frozen encoder gets no gradient."""

    config: ModelConfig

    def setup(self) -> None:
        """Create encoder and BiLSTM."""
        options = _options(self.config)
        self.encoder = architecture_of(self.config).encoder(self.config)
        if options.bilstm_layers:
            self.bilstm = bilstm_of(self.config.hidden_size, num_layers=options.bilstm_layers)

    def _hidden(self, inputs: EncoderInputs, *, dropout: Dropout | None) -> Float[Array, "B T D"]:
        options = _options(self.config)
        hidden: Any = self.encoder(inputs, dropout=None if options.frozen_encoder else dropout).hidden
        if options.frozen_encoder:
            hidden = jax.lax.stop_gradient(hidden)
        if options.bilstm_layers:
            hidden = self.bilstm(hidden, segment_ids=inputs.segment_ids).astype(hidden.dtype)
        return hidden


class _TokenHead(_TaskModel):
    """The encoder and, if the architecture has one, the transform of every token."""

    def setup(self) -> None:
        """Create encoder, BiLSTM and transform."""
        super().setup()
        architecture = architecture_of(self.config)
        self.has_transform = "transform" in architecture.heads
        if self.has_transform:
            self.transform = architecture.heads["transform"](self.config)

    def _tokens(self, inputs: EncoderInputs, *, dropout: Dropout | None) -> Float[Array, "B T D"]:
        hidden: Any = self._hidden(inputs, dropout=dropout)
        return self.transform(hidden) if self.has_transform else hidden


class SequenceClassifier(_TaskModel):
    """Classification, or regression (`num_labels` 1), of each instance by one pooled position, or all tokens' mean.

    It follows run_classifier.py of the original. With one label it also scores the endings of a multiple choice
    (section 4.4).
    """

    num_labels: int

    def setup(self) -> None:
        """Create encoder, BiLSTM, pooler or transform, and the classification layer."""
        super().setup()
        architecture = architecture_of(self.config)
        self.has_pooler = "pooler" in architecture.heads
        if self.has_pooler:
            self.pooler = architecture.heads["pooler"](self.config)
        else:
            self.transform = architecture.heads["transform"](self.config)
        self.classifier = _classifier(self.config, self.num_labels)

    def __call__(
        self, inputs: EncoderInputs, *, pooled_positions: Int[Array, "B S"], dropout: Dropout | None = None
    ) -> Float[Array, "B S C"]:
        """Return float32 logits."""
        pooled = pool_instances(
            self._hidden(inputs, dropout=dropout),
            cls_positions=pooled_positions,
            segment_ids=inputs.segment_ids,
            pooling=self.config.classifier_pooling,
        )
        pooled = self.pooler(pooled) if self.has_pooler else self.transform(pooled)
        return self.classifier(_drop(pooled, config=self.config, dropout=dropout)).astype("float32")


class TokenClassifier(_TokenHead):
    """Classification of every token (section 5.3: no CRF)."""

    num_labels: int

    def setup(self) -> None:
        """Create encoder and classification layer."""
        super().setup()
        self.classifier = _classifier(self.config, self.num_labels)

    def __call__(
        self, inputs: EncoderInputs, *, pooled_positions: Int[Array, "B S"], dropout: Dropout | None = None
    ) -> Float[Array, "B T C"]:
        """Return float32 logits."""
        del pooled_positions
        hidden = self._tokens(inputs, dropout=dropout)
        return self.classifier(_drop(hidden, config=self.config, dropout=dropout)).astype("float32")


class SpanClassifier(_TokenHead):
    """Scores of every token as start and end of the answer (section 4.2; no dropout here, as in run_squad.py)."""

    def setup(self) -> None:
        """Create encoder and the two vectors."""
        super().setup()
        self.qa_outputs = _classifier(self.config, 2)

    def __call__(
        self, inputs: EncoderInputs, *, pooled_positions: Int[Array, "B S"], dropout: Dropout | None = None
    ) -> Float[Array, "B T 2"]:
        """Return float32 logits, start and end."""
        del pooled_positions
        return self.qa_outputs(self._tokens(inputs, dropout=dropout)).astype("float32")


class SentenceEncoder(_TaskModel):
    """The embedding of each instance: the pooled states of its tokens, without a head and so without its dropout."""

    pooling: str

    def __call__(
        self, inputs: EncoderInputs, *, pooled_positions: Int[Array, "B S"], dropout: Dropout | None = None
    ) -> Float[Array, "B S D"]:
        """Return float32 embeddings, of an empty instance zeros (CLS pooling: those of another instance)."""
        hidden = self._hidden(inputs, dropout=dropout).astype("float32")
        return pool_instances(
            hidden, cls_positions=pooled_positions, segment_ids=inputs.segment_ids, pooling=self.pooling
        )
