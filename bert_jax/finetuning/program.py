"""The compiled program of fine-tuning: mesh, shardings, and the steps that all runs of a sweep share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Key

from bert_jax.config import TaskModelConfig
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.finetuning.objective import PackedRows, TaskObjective
from bert_jax.finetuning.packing import RowShape
from bert_jax.finetuning.settings import StepSettings, make_optimizer, no_settings
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.validation import check_layers
from bert_jax.runs.program import Program
from bert_jax.tasks.interface import Task
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput, TrainStep, make_replicas
from bert_jax.types import EncoderInputs

# Tokens per device in an evaluation batch: enough to use the device fully, few enough to fit in its memory.
_EVAL_TOKENS = 8192


class TaskProgram(Program):
    """The jitted steps for one task, one model and one sequence shape. The constructor compiles nothing."""

    def __init__(
        self,
        config: FinetuneConfig,
        *,
        model: TaskModelConfig,
        task: Task,
        shape: RowShape,
        class_weights: tuple[float, ...] = (),
        mesh: Mesh | None = None,
    ):
        """Set up the state's shardings on `mesh`, by default the config's.

        Raises:
          UserError: if the mesh does not fit the devices or the model.
        """
        self.config, self.model, self.shape = config, model, shape
        self.kind = task.make_kind(group=shape.group, class_weights=class_weights)
        mesh = mesh or meshes.make_mesh(config.mesh)
        sizes = {"heads": model.num_attention_heads, "inner layer": model.intermediate_size}
        check_layers({f"the model's {name}": size for name, size in sizes.items()}, mesh=mesh)
        rules = meshes.rules_for(mesh, sizes={"vocab": model.vocab_size})
        super().__init__(self._random_state, mesh=mesh, rules=rules, compiler_options=config.mesh.compiler_options)
        self.row_devices = meshes.batch_devices(mesh)
        self.replicas = make_replicas(
            mesh,
            params=self.step_shapes.params,
            shardings=self.step_shardings.params,
            dtype=model.dtype,
            scan_layers=model.scan_layers,
        )
        self.objective = TaskObjective(
            model,
            kind=self.kind,
            gather=self.replicas.concatenate,
            teacher_weight=config.distill.weight,
            teacher_temperature=config.distill.temperature,
        )
        whole = meshes.replicated(mesh)
        self.train_step: Callable[[TrainState, PackedRows, StepSettings], tuple[TrainState, StepOutput]]
        self.train_step = self.compile_step(self._train_step, whole)
        self._predict = self.compile_evaluation(self.objective.predict)
        self._init_parts = self.in_mesh(jax.jit(self._random_params, static_argnums=1, out_shardings=whole))
        self._rest = self.in_mesh(
            jax.jit(self._rest_of_state, out_shardings=(self.step_shardings.step, self.step_shardings.opt_state))
        )

    @property
    def row_multiple(self) -> int:
        """Return the number of which the number of sequences in a batch must be a multiple."""
        return self.row_devices * self.config.train.gradient_accumulation_steps

    @property
    def eval_rows(self) -> int:
        """Return the number of sequences in an evaluation batch."""
        return max(1, _EVAL_TOKENS // self.shape.length) * self.row_devices

    def to_device(self, arrays: dict[str, np.ndarray]) -> PackedRows:
        """Return the global batch. Every host passes the same, complete arrays."""
        return PackedRows(**meshes.whole_to_global(arrays, mesh=self.mesh))

    def predict(self, params: Any, arrays: dict[str, np.ndarray]) -> jax.Array:
        """Return the outputs of a batch, replicated on all devices."""
        return self._predict(params, self.to_device(arrays))

    def random_params(self, key: Key[Array, ""], *, parts: tuple[str, ...]) -> dict[str, Any]:
        """Return randomly initialized parameters of `parts`. Other parts are not computed."""
        return jax.tree.map(np.asarray, self._init_parts(key, parts)) if parts else {}

    def initial_state(self, params: dict[str, Any]) -> TrainState:
        """Return the initial state of a run, from parameters in host memory."""
        sharded = self.place_params(params)
        step, opt_state = self._rest(sharded)
        return TrainState(step=step, params=sharded, opt_state=opt_state)

    def _random_params(self, key: Key[Array, ""], parts: tuple[str, ...]) -> dict[str, Any]:
        params = nn.meta.unbox(self._boxed_params(key))
        return {part: params[part] for part in parts}

    def _rest_of_state(self, params: Any) -> tuple[Any, Any]:
        return jnp.zeros((), jnp.int32), self._optimizer(no_settings()).init(params)

    def _train_step(self, state: TrainState, rows: PackedRows, settings: StepSettings) -> tuple[TrainState, StepOutput]:
        step = TrainStep(
            self.objective,
            optimizer=self._optimizer(settings),
            key=settings.key,
            gradient_accumulation_steps=self.config.train.gradient_accumulation_steps,
            replicas=self.replicas,
        )
        return step(state, rows)

    def _optimizer(self, settings: StepSettings) -> Any:
        return make_optimizer(self.config, settings=settings, num_layers=self.model.num_hidden_layers)

    def _boxed_params(self, key: Key[Array, ""]) -> Any:
        sample = jnp.zeros((1, 1), jnp.int32)
        module = self.kind.model(self.model)
        inputs = EncoderInputs(sample, sample, sample, sample)
        return module.init(key, inputs, pooled_positions=sample)["params"]

    def _random_state(self) -> TrainState:
        params = self._boxed_params(jax.random.key(0))
        opt_state = self._optimizer(no_settings()).init(params)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state)
