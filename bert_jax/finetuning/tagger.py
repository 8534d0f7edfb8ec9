"""The BiLSTM tagger on frozen word features: its objective and its compiled steps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int, Key

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.finetuning.settings import StepSettings, make_optimizer, no_settings
from bert_jax.model.dropout import Dropout
from bert_jax.model.feature_tagger import FeatureTagger
from bert_jax.parallel import mesh as meshes
from bert_jax.runs.program import Program
from bert_jax.training.cross_entropy import log_softmax_cross_entropy
from bert_jax.training.metrics import Mean, Means
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput, TrainStep


@struct.dataclass
class WordRows:
    """Sentences of W words: the frozen features of K layers, and targets (-1: not scored)."""

    hidden: Float[Array, "B W K D"]
    lengths: Int[Array, " B"]
    targets: Int[Array, "B W"]


@struct.dataclass
class WordBatch(WordRows):
    """Sentences with their indices in the global batch, so that dropout does not depend on gradient accumulation."""

    rows: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class TaggerObjective:
    """The training objective of the tagger: the mean loss over words."""

    tagger: FeatureTagger

    def prepare(self, rows: WordRows, *, key: Key[Array, ""]) -> WordBatch:
        """Return the batch. Nothing is random."""
        del key
        index = jnp.arange(len(rows.lengths), dtype=jnp.int32)
        return WordBatch(hidden=rows.hidden, lengths=rows.lengths, targets=rows.targets, rows=index)

    def weights(self, batch: WordBatch) -> dict[str, Float[Array, ""]]:
        """Return the number of scored words."""
        return {"words": (batch.targets >= 0).astype(jnp.float32).sum()}

    def loss(
        self, params: Any, *, batch: WordBatch, weights: dict[str, Float[Array, ""]], key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Means]:
        """Return this micro-batch's part of the mean loss over words, and the accuracy."""
        dropout = None if key is None else Dropout.create(key, rows=batch.rows)
        logits = self.logits(params, batch, dropout=dropout)
        scored = (batch.targets >= 0).astype(jnp.float32)
        labels = jnp.maximum(batch.targets, 0)
        losses, correct = log_softmax_cross_entropy(logits, labels)
        return (losses * scored).sum() / jnp.maximum(weights["words"], 1), {
            "accuracy": Mean.of(correct.astype(jnp.float32), weights=scored)
        }

    def logits(self, params: Any, batch: WordRows, *, dropout: Dropout | None = None) -> Float[Array, "B W C"]:
        """Return the tagger's logits."""
        logits = self.tagger.apply({"params": params}, batch.hidden, lengths=batch.lengths, dropout=dropout)
        assert isinstance(logits, jax.Array)
        return logits


class TaggerProgram(Program):
    """The tagger's jitted steps. The state is replicated on all devices; the sentences of a batch are sharded."""

    def __init__(self, config: FinetuneConfig, *, num_labels: int, layers: int, hidden_size: int):
        """Set up a tagger of `num_labels` tags on `layers` frozen layers of `hidden_size`."""
        self._config = config
        assert config.ner is not None  # only these options name features
        ner = config.ner
        tagger = FeatureTagger(ner.features, ner.bilstm_hidden_size, ner.bilstm_layers, num_labels)
        self.objective = TaggerObjective(tagger)
        self._sample = jnp.zeros((1, 1, layers, hidden_size)), jnp.ones((1,), jnp.int32)
        mesh = meshes.make_mesh(config.mesh)
        super().__init__(
            lambda: self._random_state(jax.random.key(0)),
            mesh=mesh,
            rules=meshes.RULES,
            compiler_options=config.mesh.compiler_options,
        )
        whole = meshes.replicated(mesh)
        self.train_step = self.compile_step(self._train_step, whole)
        self.logits = self.compile_evaluation(self.objective.logits)
        self.random_state_of = self.in_mesh(jax.jit(self._unboxed_state, out_shardings=self.step_shardings))

    @property
    def row_multiple(self) -> int:
        """Return the number of which the number of sentences in a batch must be a multiple."""
        return meshes.batch_devices(self.mesh)

    def _train_step(self, state: TrainState, rows: WordRows, settings: StepSettings) -> tuple[TrainState, StepOutput]:
        step = TrainStep(
            self.objective,
            optimizer=make_optimizer(self._config, settings=settings, num_layers=0),
            key=settings.key,
            gradient_accumulation_steps=self._config.train.gradient_accumulation_steps,
        )
        return step(state, rows)

    def _random_state(self, key: Key[Array, ""]) -> TrainState:
        hidden, lengths = self._sample
        params = self.objective.tagger.init(key, hidden, lengths=lengths)["params"]
        optimizer = make_optimizer(self._config, settings=no_settings(), num_layers=0)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))

    def _unboxed_state(self, key: Key[Array, ""]) -> TrainState:
        return nn.meta.unbox(self._random_state(key))
