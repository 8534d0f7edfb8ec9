"""Table 7: freeze BERT, compute its features of every word once, train a BiLSTM on them."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.source import Source
from bert_jax.errors import UserError
from bert_jax.finetuning.initial import constant_score, task_model
from bert_jax.finetuning.objective import PackedRows, TaskObjective
from bert_jax.finetuning.origin import settle_origin
from bert_jax.finetuning.packing import all_batches, row_shape
from bert_jax.finetuning.results import TaskResults, Wanted, check_labelled
from bert_jax.finetuning.run import Evaluation, RunResult, Stopped, batch_examples, num_steps, steps_per_epoch
from bert_jax.finetuning.settings import RunSettings, StepSettings, make_optimizer, step_settings
from bert_jax.model.architectures import architecture_of
from bert_jax.model.dropout import Dropout
from bert_jax.model.feature_tagger import FEATURE_LAYERS, FeatureTagger
from bert_jax.parallel import mesh as meshes
from bert_jax.tasks.interface import Split, Task
from bert_jax.tasks.ner import TaggedWord, TagTask
from bert_jax.training.metrics import Mean, Means
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput, TrainStep

_ROUND_WORDS = 16  # sentences of a batch are padded to a multiple of it: few shapes
_EVAL_BATCH = 64


@struct.dataclass
class WordRows:
    """Hold the frozen features of sentences of W words; `targets` -1: not scored."""

    hidden: Float[Array, "B W K D"]
    lengths: Int[Array, " B"]
    targets: Int[Array, "B W"]


@dataclasses.dataclass(frozen=True)
class TaggerObjective:
    """Train the tagger on word features."""

    tagger: FeatureTagger

    def prepare(self, rows: WordRows, *, key: Key[Array, ""]) -> WordRows:
        """Return the rows; nothing is drawn."""
        del key
        return rows

    def weights(self, batch: WordRows) -> dict[str, Float[Array, ""]]:
        """Return the number of scored words."""
        return {"words": (batch.targets >= 0).astype(jnp.float32).sum()}

    def loss(
        self, params: Any, *, batch: WordRows, weights: dict[str, Float[Array, ""]], key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Means]:
        """Return the share of the mean loss over words, and the accuracy."""
        dropout = None if key is None else Dropout.create(key, rows=jnp.arange(len(batch.lengths)))
        logits = self.logits(params, batch, dropout=dropout)
        counted = (batch.targets >= 0).astype(jnp.float32)
        labels = jnp.maximum(batch.targets, 0)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
        right = (logits.argmax(-1) == labels).astype(jnp.float32)
        return (losses * counted).sum() / jnp.maximum(weights["words"], 1), {
            "accuracy": Mean.of(right, weights=counted)
        }

    def logits(self, params: Any, batch: WordRows, *, dropout: Dropout | None = None) -> Float[Array, "B W C"]:
        """Return the tagger's logits."""
        logits = self.tagger.apply({"params": params}, batch.hidden, lengths=batch.lengths, dropout=dropout)
        assert isinstance(logits, jax.Array)
        return logits


def run_feature_based(
    config: FinetuneConfig,
    *,
    task: TagTask,
    source: Source,
    workdir: Path,
    wanted: Wanted,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run every setting and return the results as they stand in results.json; finished runs are not run again.

    The taggers themselves are not kept: results, predictions and errors are.

    Raises:
      Stopped: if the user asked to stop; nothing of the run under way is saved.
      UserError: if data, model and config do not go together.
    """
    tokenizer = source.require_tokenizer()
    train = task.load("train", tokenizer=tokenizer)
    evals = [task.load(name, tokenizer=tokenizer) for name in task.eval_splits()]
    tests = [task.load(name, tokenizer=tokenizer) for name in (task.test_splits() if wanted.predict_test else ())]
    check_labelled(task, [train, *evals])
    layers = source.model.num_hidden_layers
    if "four" in config.ner.features and layers < 4:
        raise UserError(f"config.ner.features={config.ner.features}: {source.path} has {layers} layers, not four")
    constant = constant_score(task, evals[0])
    outcome = TaskResults(task, workdir=workdir, wanted=wanted, evals=evals, tests=tests, constant=constant, say=say)
    splits = [train, *evals, *tests]
    settle_origin(workdir, source=source, fresh=wanted.fresh_parts, splits=splits)
    results = [outcome.finished(settings) for settings in wanted.runs]
    if None in results:
        extractor = _Extractor(config, source=source, task=task, splits=splits)
        say(f"{task.name}: computing {config.ner.features} of {sum(len(s.examples) for s in splits)} sentences")
        features = {split.name: extractor.words(split) for split in splits}
        tagger = _TaggerRun(config, task=task, train=train, dev=evals[0], features=features, should_stop=should_stop)
        for number, settings in enumerate(wanted.runs):
            if results[number] is None:
                say(f"run {number + 1} of {len(wanted.runs)}: {settings.name}")
                result, params = tagger.run(settings, say=say)
                outcome.add(result, outputs=functools.partial(tagger.outputs, params))
                results[number] = result
    return outcome.finish(predict=None, facts={"train_examples": len(train.examples), "features": config.ner.features})


class _Extractor:
    """Compute the layers that the config names at every word's first piece."""

    def __init__(self, config: FinetuneConfig, *, source: Source, task: Task, splits: list[Split]):
        self._mesh = meshes.make_mesh(config.mesh)
        model = task_model(source, config=config)
        self._shape = row_shape([split.features for split in splits], batch_size=32)
        devices = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        self._rows = max(1, 4096 // self._shape.length) * devices
        unfold = TaskObjective(model, kind="tags", num_labels=len(task.labels))
        chosen = FEATURE_LAYERS[config.ner.features]
        params = jax.device_put(source.params["encoder"], meshes.replicated(self._mesh))

        def compute(params: Any, rows: PackedRows) -> Array:
            batch = unfold.prepare(rows, key=jax.random.key(0))
            encoder = architecture_of(model).encoder(model)
            states = encoder.apply({"params": params}, batch.inputs, output_hidden_states=True)
            return states.all_hidden[chosen].astype(jnp.float16)  # type: ignore[union-attr]

        jitted = jax.jit(compute, out_shardings=meshes.replicated(self._mesh))

        def call(rows: PackedRows) -> np.ndarray:
            with meshes.use_mesh(self._mesh):
                return np.asarray(jitted(params, rows))

        self._compute = call

    def words(self, split: Split) -> list[np.ndarray]:
        """Return float16 [W, K, D] a sentence: half precision keeps CoNLL with a base model's layers in memory."""
        found: list[np.ndarray | None] = [None] * len(split.examples)
        for batch in all_batches(split.features, shape=self._shape, kind="tags", rows=self._rows):
            hidden = self._compute(PackedRows(**meshes.to_global(batch.arrays, mesh=self._mesh)))
            for b, row in enumerate(batch.order):
                place = 0
                for instance in row[row >= 0]:
                    for word in split.features.places[instance]:
                        if found[word.sentence] is None:
                            size = (len(split.examples[word.sentence].words), hidden.shape[0], hidden.shape[-1])
                            found[word.sentence] = np.zeros(size, np.float16)
                        found[word.sentence][word.word] = hidden[:, b, place + word.token]  # type: ignore[index]
                    place += len(split.features.ids[instance])
        return [np.zeros((1, 1, 1), np.float16) if sentence is None else sentence for sentence in found]


class _TaggerRun:
    """Train taggers and keep the best evaluation of each."""

    def __init__(
        self,
        config: FinetuneConfig,
        *,
        task: TagTask,
        train: Split,
        dev: Split,
        features: dict[str, list[np.ndarray]],
        should_stop: Callable[[], bool],
    ):
        self._config, self._task, self._train, self._dev, self._features = config, task, train, dev, features
        self._should_stop = should_stop
        self._label = {label: index for index, label in enumerate(task.labels)}
        ner = config.ner
        self._objective = TaggerObjective(
            FeatureTagger(ner.features, ner.bilstm_hidden_size, ner.bilstm_layers, len(task.labels))
        )
        self._mesh = meshes.make_mesh(config.mesh)
        self._multiple = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        self._step = jax.jit(self._train_step, donate_argnums=0)
        self._logits = jax.jit(self._objective.logits, out_shardings=meshes.replicated(self._mesh))

    def _train_step(self, state: TrainState, rows: WordRows, settings: StepSettings) -> tuple[TrainState, StepOutput]:
        optimizer = make_optimizer(self._config, settings=settings, num_layers=0)
        return TrainStep(self._objective, optimizer=optimizer, key=settings.key)(state, rows)

    def run(self, settings: RunSettings, *, say: Callable[[str], None]) -> tuple[RunResult, Any]:
        """Return the result and the best evaluation's parameters."""
        examples = len(self._train.examples)
        total, epoch = num_steps(settings, examples=examples), steps_per_epoch(settings, examples=examples)
        every = max(1, round(epoch / self._config.train.evals_per_epoch))
        fixed = step_settings(settings, num_steps=total, warmup_fraction=self._config.optimizer.warmup_fraction)
        state = self._init(settings)
        history: list[Evaluation] = []
        best: tuple[float, Any] = (-math.inf, None)
        seconds = 0.0
        begun = time.monotonic()
        for step in range(1, total + 1):
            if self._should_stop():
                raise Stopped(step - 1, total, saved=False)
            chosen = batch_examples(settings, examples=examples, step=step - 1)
            state, output = self._step(state, self._rows(self._train, chosen), fixed)
            if step % every and step < total:
                continue
            loss = float(output.means["loss"].total)
            if not math.isfinite(loss):
                raise UserError(f"the loss is not finite at step {step}: lower config.optimizer.learning_rate")
            seconds += time.monotonic() - begun
            evaluation = Evaluation(step, self._task.score(self._dev, self.outputs(state.params, self._dev)))
            history.append(evaluation)
            score = evaluation.metrics[self._task.selection]
            if score > best[0]:
                best = score, jax.device_get(state.params)
            say(f"step {step}/{total}  loss {loss:.3f}  dev {self._task.selection} {score:.4f}")
            begun = time.monotonic()
        result = RunResult(
            settings=settings,
            num_steps=total,
            history=history,
            best=max(history, key=lambda item: item.metrics[self._task.selection]),
            train_seconds=seconds,
            sequences_per_second=total * settings.batch_size / max(seconds, 1e-9),
        )
        return result, best[1]

    def outputs(self, params: Any, split: Split) -> list[np.ndarray]:
        """Return an output an instance, as a fine-tuned tagger gives it, which only scored pieces' rows fill."""
        width = len(self._task.labels)
        outputs = [np.zeros((len(ids), width), np.float32) for ids in split.features.ids]
        of_sentence: dict[int, list[tuple[int, TaggedWord]]] = {}
        for number, words in enumerate(split.features.places):
            for word in words:
                of_sentence.setdefault(word.sentence, []).append((number, word))
        for chosen in _by_length(split):
            logits = np.asarray(self._logits(params, self._rows(split, chosen)), np.float32)
            for b, sentence in enumerate(chosen):
                for number, word in of_sentence.get(int(sentence), []):
                    outputs[number][word.token] = logits[b, word.word]
        return outputs

    def _init(self, settings: RunSettings) -> TrainState:
        fixed = step_settings(settings, num_steps=1, warmup_fraction=0.0)
        optimizer = make_optimizer(self._config, settings=fixed, num_layers=0)
        sample = self._rows(self._train, np.arange(1))

        @jax.jit
        def init(key: Key[Array, ""]) -> TrainState:
            params = self._objective.tagger.init(key, sample.hidden, lengths=sample.lengths)["params"]
            return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))

        return init(jax.random.key(settings.seed))

    def _rows(self, split: Split, chosen: np.ndarray) -> WordRows:
        features = [self._features[split.name][index] for index in chosen]
        longest = -(-max(map(len, features)) // _ROUND_WORDS) * _ROUND_WORDS
        count = -(-len(chosen) // self._multiple) * self._multiple
        hidden = np.zeros((count, longest, *features[0].shape[1:]), np.float32)
        lengths, targets = np.zeros(count, np.int32), np.full((count, longest), -1, np.int32)
        for b, (words, index) in enumerate(zip(features, chosen, strict=True)):
            hidden[b, : len(words)] = words
            lengths[b] = len(words)
            targets[b, : len(words)] = [self._label[tag] for tag in split.examples[index].tags]
        return WordRows(**meshes.to_global({"hidden": hidden, "lengths": lengths, "targets": targets}, mesh=self._mesh))


def _by_length(split: Split) -> Iterator[np.ndarray]:
    """Yield the numbers of all sentences in batches, the longest first."""
    order = np.argsort([-len(sentence.words) for sentence in split.examples], kind="stable")
    for start in range(0, len(order), _EVAL_BATCH):
        yield order[start : start + _EVAL_BATCH]
