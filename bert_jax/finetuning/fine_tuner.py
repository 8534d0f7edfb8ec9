"""Fine-tuning of a whole model: packed batches, all parameters trained."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.loading import PretrainedModel
from bert_jax.finetuning import initial
from bert_jax.finetuning.batches import batch_examples
from bert_jax.finetuning.learner import Learner
from bert_jax.finetuning.objective import PackedRows
from bert_jax.finetuning.packing import PackedBatch, packed_batch, row_shape
from bert_jax.finetuning.prediction import predict_outputs
from bert_jax.finetuning.program import TaskProgram
from bert_jax.finetuning.settings import RunSettings, StepSettings
from bert_jax.finetuning.task_data import TaskData
from bert_jax.finetuning.teacher import check_teacher, of_slots, teacher_outputs
from bert_jax.model.architectures import architecture_of
from bert_jax.tasks.interface import Split, Task, merged
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput

_AHEAD = 2  # batches packed ahead of the current step


class FineTuner(Learner):
    """A model with the task's head and its compiled steps."""

    saves_best = True

    def __init__(
        self,
        config: FinetuneConfig,
        *,
        task: Task,
        pretrained: PretrainedModel,
        data: TaskData,
        batch_sizes: Sequence[int],
        random_parts: tuple[str, ...],
        teacher: PretrainedModel | None = None,
    ):
        """Set the program up for sequences that fit the longest example. Nothing is compiled yet.

        `random_parts` of the model are initialized randomly even if `pretrained` has them. The outputs of `teacher` on
        the train set are learned.

        Raises:
          UserError: if data, model and config do not fit together.
        """
        super().__init__()
        self._task, self._data, self._trained = task, data, pretrained.longest_trained
        self._config, self._teacher = config, teacher
        self._teacher_outputs: np.ndarray | None = None
        if teacher is not None:
            check_teacher(teacher, task=task, student=pretrained)
        model = initial.task_model(pretrained, config=config)
        shape = row_shape([split.features for split in data.splits], batch_size=max(batch_sizes))
        weights = task.class_weights(data.train)
        self.program = TaskProgram(config, model=model, task=task, shape=shape, class_weights=weights)
        self._train = data.train.features
        self.num_examples = self._train.num_examples
        self._params = initial.pretrained_params(
            pretrained, task=task, parts=tuple(self.program.state_shapes.params), random_parts=random_parts
        )
        self._untrained = [part for part in pretrained.untrained if part in self.program.state_shapes.params]
        self.metadata = initial.checkpoint_metadata(pretrained, task=task, model=model, config=config)

    def describe(self) -> str:
        """Return the shape of the packed sequences, what is random, and positions that were never trained."""
        shape, parts = self.program.shape, self.program.state_shapes.params
        random = [part for part in parts if part not in self._params]
        longest = max(int(split.features.lengths.max(initial=0)) for split in self._data.splits)
        beyond = (
            f"; the model was trained on sequences of up to {self._trained} tokens: positions of longer ones "
            f"(up to {longest} here) are as it was initialized"
            if 0 < self._trained < longest
            else ""
        )
        untrained = f" (not trained in pre-training: {', '.join(self._untrained)})" if self._untrained else ""
        return (
            f"up to {shape.slots // shape.group} examples per sequence of {shape.length} tokens; randomly "
            f"initialized: {', '.join(random) or 'nothing'}{untrained}{beyond}"
        )

    def prepare(self) -> None:
        """Compute the teacher's outputs on the train set, if there is a teacher."""
        if self._teacher is not None:
            self._teacher_outputs = teacher_outputs(
                self._teacher, config=self._config, task=self._task, shape=self.program.shape, features=self._train
            )
            self._teacher = None  # else its weights would stay in host memory for the whole run

    def abstract_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state."""
        return self.program.abstract_state()

    def initial_params(self, settings: RunSettings) -> dict[str, Any]:
        """Return the pretrained parameters. Missing parts are initialized randomly from the run's seed."""
        shapes = self.program.state_shapes.params
        missing = tuple(part for part in shapes if part not in self._params)
        params = self._params | self.program.random_params(jax.random.key(settings.seed), parts=missing)
        return {part: params[part] for part in shapes}

    def placed(self, tree: Any) -> Any:
        """Return a restored state, or its parameters, with the rows that a step adds."""
        return self.program.placed(tree)

    def stored(self, tree: Any) -> Any:
        """Return a state, or its parameters, without the rows that a step adds."""
        return self.program.stored(tree)

    def initial_state(self, settings: RunSettings) -> TrainState:
        """Return the state with `initial_params`."""
        return self.program.initial_state(self.initial_params(settings))

    def batches(self, settings: RunSettings, *, start: int, end: int) -> Iterator[PackedRows]:
        """Yield the batches. A thread packs a few ahead while the device computes."""
        with ThreadPoolExecutor(1) as pool:
            ahead = deque(pool.submit(self._pack, settings, step) for step in range(start, min(start + _AHEAD, end)))
            for step in range(start, end):
                batch = ahead.popleft().result()
                if step + _AHEAD < end:
                    ahead.append(pool.submit(self._pack, settings, step + _AHEAD))
                yield self.program.to_device(batch.arrays)

    def _pack(self, settings: RunSettings, step: int) -> PackedBatch:
        indices = batch_examples(settings, examples=self.num_examples, step=step)
        batch = packed_batch(
            self._train,
            indices.tolist(),
            shape=self.program.shape,
            kind=self.program.kind,
            multiple=self.program.row_multiple,
        )
        if self._teacher_outputs is not None:
            batch.arrays["teacher"] = of_slots(self._teacher_outputs, order=batch.order)
        return batch

    def train_step(self, state: TrainState, rows: PackedRows, settings: StepSettings) -> tuple[TrainState, StepOutput]:
        """Return the next state and the metrics."""
        return self.program.train_step(state, rows, settings)

    def cost(self, rows: PackedRows) -> Mapping[str, float]:
        """Return tokens (padding included) and FLOPs of a batch."""
        count, length = rows.input_ids.shape
        model = self.program.model
        flops = architecture_of(model).train_flops_per_row(model, max_seq_length=length, max_predictions=0)
        if model.frozen_encoder:
            flops /= 3  # the forward pass alone
        weights = sum(leaf.size for leaf in jax.tree.leaves(self.program.state_shapes.params.get("bilstm", {})))
        return {"tokens": count * length, "flops": count * (flops + 6 * weights * length)}

    def outputs(self, params: Any, split: Split) -> list[np.ndarray]:
        """Return the head's output for each example; of a text in several windows, their mean."""
        return list(merged(split.features, predict_outputs(self.program, params, features=split.features)))
