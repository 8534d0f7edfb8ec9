"""The feature-based approach (paper Table 7): a BiLSTM tagger trained on features of a frozen BERT, computed once."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.loading import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.finetuning.batches import batch_examples
from bert_jax.finetuning.initial import task_model
from bert_jax.finetuning.learner import Learner
from bert_jax.finetuning.objective import PackedRows, TaskObjective
from bert_jax.finetuning.packing import all_batches, row_shape
from bert_jax.finetuning.settings import RunSettings, StepSettings
from bert_jax.finetuning.tagger import TaggerProgram, WordRows
from bert_jax.finetuning.task_data import TaskData
from bert_jax.model.architectures import architecture_of
from bert_jax.model.feature_layers import feature_layers
from bert_jax.parallel import mesh as meshes
from bert_jax.tasks.interface import Split, Task
from bert_jax.tasks.ner import TaggedWord, TagTask
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput

_ROUND_WORDS = 16  # the sentences of a batch are padded to a multiple of it, so that few shapes are compiled
_EVAL_BATCH = 64


class FeatureBased(Learner):
    """A tagger on the layers in the config. Its parameters are not saved, only results, predictions and errors."""

    saves_best = False

    def __init__(self, config: FinetuneConfig, *, task: TagTask, pretrained: PretrainedModel, data: TaskData):
        """Set the tagger up. `prepare` computes the features.

        Raises:
          UserError: if the model has fewer layers than the config needs.
        """
        super().__init__()
        model, name = pretrained.model, config.features
        if "four" in name and model.num_hidden_layers < 4:
            raise UserError(
                f"config.ner.features={name}: {pretrained.path} has {model.num_hidden_layers} layers, at least 4 are "
                "needed: choose another --config.ner.features"
            )
        self._config, self._task, self._pretrained, self._data = config, task, pretrained, data
        self._train = data.train
        self.num_examples = len(data.train.examples)
        self.metadata: Mapping[str, Any] = {"task": task.name, "features": name}
        layers = len(feature_layers(name, num_layers=model.num_hidden_layers))
        self._program = TaggerProgram(config, num_labels=len(task.labels), layers=layers, hidden_size=model.hidden_size)
        self._label = {label: index for index, label in enumerate(task.labels)}
        self._features: dict[str, list[np.ndarray]] = {}

    def describe(self) -> str:
        """Return the features in use and the number of sentences."""
        return f"features {self._config.features} of {sum(len(s.examples) for s in self._data.splits)} sentences"

    def prepare(self) -> None:
        """Compute the features of all splits."""
        extractor = _Extractor(self._config, pretrained=self._pretrained, task=self._task, data=self._data)
        self._features = {split.name: extractor.words(split) for split in self._data.splits}

    def abstract_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the tagger's state."""
        return self._program.abstract_state()

    def initial_state(self, settings: RunSettings) -> TrainState:
        """Return the state of a tagger initialized randomly from the run's seed."""
        return self._program.random_state_of(jax.random.key(settings.seed))

    def batches(self, settings: RunSettings, *, start: int, end: int) -> Iterator[WordRows]:
        """Yield the batches: sentences with their features."""
        for step in range(start, end):
            yield self._rows(self._train, batch_examples(settings, examples=self.num_examples, step=step))

    def train_step(self, state: TrainState, rows: WordRows, settings: StepSettings) -> tuple[TrainState, StepOutput]:
        """Return the next state and the metrics."""
        return self._program.train_step(state, rows, settings)

    def cost(self, rows: WordRows) -> Mapping[str, float]:
        """Return words (padding included) and FLOPs: six per weight and word."""
        words = rows.targets.size
        weights = sum(leaf.size for leaf in jax.tree.leaves(self._program.state_shapes.params))
        return {"tokens": words, "flops": 6.0 * weights * words}

    def outputs(self, params: Any, split: Split) -> list[np.ndarray]:
        """Return one output per instance, like a fine-tuned tagger's. Tokens that are not scored have zeros."""
        width = len(self._task.labels)
        outputs = [np.zeros((len(ids), width), np.float32) for ids in split.features.ids]
        of_sentence: dict[int, list[tuple[int, TaggedWord]]] = {}
        for number, words in enumerate(split.features.alignments):
            for word in words:
                of_sentence.setdefault(word.sentence, []).append((number, word))
        for indices in _by_length(split):
            logits = np.asarray(self._program.logits(params, self._rows(split, indices)), np.float32)
            for b, sentence in enumerate(indices):
                for number, word in of_sentence.get(int(sentence), []):
                    outputs[number][word.token] = logits[b, word.word]
        return outputs

    def _rows(self, split: Split, indices: np.ndarray) -> WordRows:
        features = [self._features[split.name][index] for index in indices]
        longest = -(-max(map(len, features)) // _ROUND_WORDS) * _ROUND_WORDS
        multiple = self._program.row_multiple * self._config.train.gradient_accumulation_steps
        count = -(-len(indices) // multiple) * multiple
        hidden = np.zeros((count, longest, *features[0].shape[1:]), np.float32)
        lengths, targets = np.zeros(count, np.int32), np.full((count, longest), -1, np.int32)
        for b, (words, index) in enumerate(zip(features, indices, strict=True)):
            hidden[b, : len(words)] = words
            lengths[b] = len(words)
            targets[b, : len(words)] = [self._label[tag] for tag in split.examples[index].tags]
        whole = {"hidden": hidden, "lengths": lengths, "targets": targets}
        return WordRows(**meshes.whole_to_global(whole, mesh=self._program.mesh))


class _Extractor:
    """The computation of the features: the hidden states of the layers in the config, at each word's first token."""

    def __init__(self, config: FinetuneConfig, *, pretrained: PretrainedModel, task: Task, data: TaskData):
        self._mesh = meshes.make_mesh(config.mesh)
        model = task_model(pretrained, config=config)
        self._shape = row_shape([split.features for split in data.splits], batch_size=32)
        devices = meshes.batch_devices(self._mesh)
        self._rows = max(1, 4096 // self._shape.length) * devices
        self._kind = task.make_kind(group=1)
        unfold = TaskObjective(model, kind=self._kind)
        layers = feature_layers(config.features, num_layers=model.num_hidden_layers)
        params = jax.device_put(pretrained.params["encoder"], meshes.replicated(self._mesh))

        def compute(params: Any, rows: PackedRows) -> Array:
            batch = unfold.prepare(rows, key=jax.random.key(0))
            encoder = architecture_of(model).encoder(model)
            states = encoder.apply({"params": params}, batch.inputs, output_hidden_states=True)
            return states.all_hidden[layers.start : layers.stop].astype(jnp.float16)  # type: ignore[union-attr]

        jitted = jax.jit(compute, out_shardings=meshes.replicated(self._mesh))

        def call(rows: PackedRows) -> np.ndarray:
            with meshes.use_mesh(self._mesh):
                return np.asarray(jitted(params, rows))

        self._compute = call

    def words(self, split: Split) -> list[np.ndarray]:
        """Return the features of each sentence, [W, K, D]. In float16 all of CoNLL-2003 fits in memory (Base model)."""
        features: list[np.ndarray | None] = [None] * len(split.examples)
        for batch in all_batches(split.features, shape=self._shape, kind=self._kind, rows=self._rows):
            hidden = self._compute(PackedRows(**meshes.whole_to_global(batch.arrays, mesh=self._mesh)))
            for b, row in enumerate(batch.order):
                first = 0
                for instance in row[row >= 0]:
                    for word in split.features.alignments[instance]:
                        if features[word.sentence] is None:
                            size = (len(split.examples[word.sentence].words), hidden.shape[0], hidden.shape[-1])
                            features[word.sentence] = np.zeros(size, np.float16)
                        features[word.sentence][word.word] = hidden[:, b, first + word.token]  # type: ignore[index]
                    first += len(split.features.ids[instance])
        return [np.zeros((1, 1, 1), np.float16) if sentence is None else sentence for sentence in features]


def _by_length(split: Split) -> Iterator[np.ndarray]:
    """Yield the indices of all sentences in batches, the longest sentences first."""
    order = np.argsort([-len(sentence.words) for sentence in split.examples], kind="stable")
    for start in range(0, len(order), _EVAL_BATCH):
        yield order[start : start + _EVAL_BATCH]
