"""The fine-tuning models: the encoder with a head (paper section 4 and Figure 4), with HuggingFace's parameter names.

A sequence may have several instances (`types.py`), each read at one of `pooled_positions`: its [CLS], or in a
left-to-right model its last token. Only the heads that read one position have a pooler, as in HuggingFace's classes.
"""

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig, TaskModelConfig
from bert_jax.model.architectures import architecture_of
from bert_jax.model.bilstm import bilstm_of
from bert_jax.model.dense import Dense
from bert_jax.model.dropout import Dropout
from bert_jax.model.heads import gather
from bert_jax.types import EncoderInputs

# Dropout sites below 4 belong to the encoder, in every architecture.
_HEAD = 4


def _drop(values: Float[Array, "B n D"], *, config: ModelConfig, dropout: Dropout | None) -> Float[Array, "B n D"]:
    return values if dropout is None else dropout.apply(values, rate=config.hidden_dropout_prob, site=_HEAD)


class TaskHead(nn.Module):
    """The encoder, and between it and the head what a `TaskModelConfig` asks for: a BiLSTM, a frozen encoder."""

    config: ModelConfig

    def setup(self) -> None:
        """Create the encoder and the BiLSTM."""
        self.encoder = architecture_of(self.config).encoder(self.config)
        options = _options(self.config)
        if options.bilstm_layers:
            self.bilstm = bilstm_of(self.config.hidden_size, num_layers=options.bilstm_layers)

    def hidden(self, inputs: EncoderInputs, *, dropout: Dropout | None) -> Float[Array, "B T D"]:
        """Return the states that the head reads. A frozen encoder has no dropout and gets no gradient."""
        options = _options(self.config)
        hidden: Array = self.encoder(inputs, dropout=None if options.frozen_encoder else dropout).hidden
        if options.frozen_encoder:
            hidden = jax.lax.stop_gradient(hidden)
        if options.bilstm_layers:
            hidden = self.bilstm(hidden, segment_ids=inputs.segment_ids).astype(hidden.dtype)
        return hidden


def _options(config: ModelConfig) -> TaskModelConfig:
    return config if isinstance(config, TaskModelConfig) else TaskModelConfig()


class SequenceClassifier(TaskHead):
    """Classification, or regression (`num_labels` 1), of each instance by its pooled [CLS] (left to right: last token).

    It follows run_classifier.py of the original. With one label it also scores the endings of a multiple choice
    (section 4.4).
    """

    num_labels: int

    def setup(self) -> None:
        """Create encoder, pooler and the classification layer."""
        super().setup()
        self.pooler = architecture_of(self.config).heads["pooler"](self.config)
        self.classifier = Dense(self.config, self.num_labels, names=("embed", None), name=None)

    def __call__(
        self, inputs: EncoderInputs, *, pooled_positions: Int[Array, "B S"], dropout: Dropout | None = None
    ) -> Float[Array, "B S C"]:
        """Return float32 logits."""
        hidden = self.hidden(inputs, dropout=dropout)
        pooled = _drop(self.pooler(gather(hidden, pooled_positions)), config=self.config, dropout=dropout)
        return self.classifier(pooled).astype("float32")


class TokenClassifier(TaskHead):
    """Classification of every token (section 5.3: no CRF)."""

    num_labels: int

    def setup(self) -> None:
        """Create encoder and classification layer."""
        super().setup()
        self.classifier = Dense(self.config, self.num_labels, names=("embed", None), name=None)

    def __call__(
        self, inputs: EncoderInputs, *, pooled_positions: Int[Array, "B S"], dropout: Dropout | None = None
    ) -> Float[Array, "B T C"]:
        """Return float32 logits."""
        del pooled_positions
        hidden = self.hidden(inputs, dropout=dropout)
        return self.classifier(_drop(hidden, config=self.config, dropout=dropout)).astype("float32")


class SpanClassifier(TaskHead):
    """Scores of every token as start and end of the answer (section 4.2; no dropout here, as in run_squad.py)."""

    def setup(self) -> None:
        """Create encoder and the two vectors."""
        super().setup()
        self.qa_outputs = Dense(self.config, 2, names=("embed", None), name=None)

    def __call__(
        self, inputs: EncoderInputs, *, pooled_positions: Int[Array, "B S"], dropout: Dropout | None = None
    ) -> Float[Array, "B T 2"]:
        """Return float32 logits, start and end."""
        del pooled_positions
        return self.qa_outputs(self.hidden(inputs, dropout=dropout)).astype("float32")
