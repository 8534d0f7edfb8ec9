"""The fine-tuning models: the encoder with a head (paper section 4 and Figure 4), with HuggingFace's parameter names.

A sequence may have several instances (`types.py`), each with its [CLS] at one of `cls_positions`. Only the heads that
use [CLS] have a pooler, as in HuggingFace's classes.
"""

from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.model.architectures import architecture_of
from bert_jax.model.dense import Dense
from bert_jax.model.dropout import Dropout
from bert_jax.model.heads import gather
from bert_jax.model.pooling import instance_members, pool
from bert_jax.types import EncoderInputs

# Dropout sites below 4 belong to the encoder, in every architecture.
_HEAD = 4


def _drop(values: Float[Array, "B n D"], *, config: ModelConfig, dropout: Dropout | None) -> Float[Array, "B n D"]:
    return values if dropout is None else dropout.apply(values, rate=config.hidden_dropout_prob, site=_HEAD)


class SequenceClassifier(nn.Module):
    """Classification, or regression (`num_labels` 1), of each instance by its pooled [CLS].

    It follows run_classifier.py of the original. With one label it also scores the endings of a multiple choice
    (section 4.4).
    """

    config: ModelConfig
    num_labels: int

    def setup(self) -> None:
        """Create encoder, pooler and the classification layer."""
        self.encoder = architecture_of(self.config).encoder(self.config)
        self.pooler = architecture_of(self.config).heads["pooler"](self.config)
        self.classifier = Dense(self.config, self.num_labels, names=("embed", None), name=None)

    def __call__(
        self, inputs: EncoderInputs, *, cls_positions: Int[Array, "B S"], dropout: Dropout | None = None
    ) -> Float[Array, "B S C"]:
        """Return float32 logits."""
        hidden = self.encoder(inputs, dropout=dropout).hidden
        pooled = _drop(self.pooler(gather(hidden, cls_positions)), config=self.config, dropout=dropout)
        return self.classifier(pooled).astype("float32")


class TokenClassifier(nn.Module):
    """Classification of every token (section 5.3: no CRF)."""

    config: ModelConfig
    num_labels: int

    def setup(self) -> None:
        """Create encoder and classification layer."""
        self.encoder = architecture_of(self.config).encoder(self.config)
        self.classifier = Dense(self.config, self.num_labels, names=("embed", None), name=None)

    def __call__(
        self, inputs: EncoderInputs, *, cls_positions: Int[Array, "B S"], dropout: Dropout | None = None
    ) -> Float[Array, "B T C"]:
        """Return float32 logits."""
        del cls_positions
        hidden = self.encoder(inputs, dropout=dropout).hidden
        return self.classifier(_drop(hidden, config=self.config, dropout=dropout)).astype("float32")


class SpanClassifier(nn.Module):
    """Scores of every token as start and end of the answer (section 4.2; no dropout here, as in run_squad.py)."""

    config: ModelConfig

    def setup(self) -> None:
        """Create encoder and the two vectors."""
        self.encoder = architecture_of(self.config).encoder(self.config)
        self.qa_outputs = Dense(self.config, 2, names=("embed", None), name=None)

    def __call__(
        self, inputs: EncoderInputs, *, cls_positions: Int[Array, "B S"], dropout: Dropout | None = None
    ) -> Float[Array, "B T 2"]:
        """Return float32 logits, start and end."""
        del cls_positions
        return self.qa_outputs(self.encoder(inputs, dropout=dropout).hidden).astype("float32")


class SentenceEncoder(nn.Module):
    """The embedding of each instance: the pooled states of its tokens, without a head and so without its dropout."""

    config: ModelConfig
    pooling: str

    def setup(self) -> None:
        """Create the encoder."""
        self.encoder = architecture_of(self.config).encoder(self.config)

    def __call__(
        self, inputs: EncoderInputs, *, cls_positions: Int[Array, "B S"], dropout: Dropout | None = None
    ) -> Float[Array, "B S D"]:
        """Return float32 embeddings, zeros for an empty instance (CLS pooling: those of another instance)."""
        hidden = self.encoder(inputs, dropout=dropout).hidden
        members = instance_members(inputs.segment_ids, instances=cls_positions.shape[1])
        return pool(hidden.astype("float32"), members, pooling=self.pooling)
