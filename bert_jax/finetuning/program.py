"""Assemble what fine-tuning computes: mesh, shardings, the steps that every run of a sweep shares."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key

from bert_jax import config as base
from bert_jax.config import ModelConfig
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.errors import UserError
from bert_jax.finetuning.objective import PackedRows, TaskObjective
from bert_jax.finetuning.packing import RowShape
from bert_jax.finetuning.settings import StepSettings, make_optimizer
from bert_jax.parallel import mesh as meshes
from bert_jax.tasks.interface import Task
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput, TrainStep, make_replicas
from bert_jax.types import EncoderInputs

# Tokens of an evaluation batch on one device: enough to fill it, little enough for any memory.
_EVAL_TOKENS = 8192


class TaskProgram:
    """Hold the jitted steps of one task, one model and one row shape. Building it compiles nothing."""

    def __init__(self, config: FinetuneConfig, *, model: ModelConfig, task: Task, shape: RowShape):
        """Lay out the state on the config's mesh.

        Raises:
          UserError: if the mesh does not fit the devices or the model.
        """
        self.config, self.model, self.shape = config, model, shape
        self.kind = task.kind(num_labels=len(task.labels), group=shape.group)
        self.mesh = meshes.make_mesh(config.mesh)
        tensor = self.mesh.shape["tensor"]
        if model.num_attention_heads % tensor or model.intermediate_size % tensor:
            raise UserError(
                f"config.mesh.tensor={tensor} does not divide the model's {model.num_attention_heads} heads and inner "
                f"layer of {model.intermediate_size}: choose a divisor"
            )
        self.rules = meshes.rules_for(dataclasses.replace(base.Config(), model=model), mesh=self.mesh)
        self.objective = TaskObjective(model, kind=self.kind)
        self.row_devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        boxed = jax.eval_shape(self._boxed_state)
        self.state_shardings = meshes.tree_shardings(boxed, mesh=self.mesh, rules=self.rules)
        self.state_shapes: TrainState = nn.meta.unbox(boxed)
        self.replicas = make_replicas(
            self.mesh, params=self.state_shapes.params, shardings=self.state_shardings.params, model=model
        )
        self.train_step: Callable[[TrainState, PackedRows, StepSettings], tuple[TrainState, StepOutput]]
        self.train_step = self._in_mesh(
            jax.jit(
                self._train_step,
                donate_argnums=0,
                in_shardings=(
                    self.state_shardings,
                    meshes.batch_sharding(self.mesh),
                    meshes.replicated(self.mesh),
                ),
                out_shardings=(self.state_shardings, meshes.replicated(self.mesh)),
            )
        )
        self._predict = self._in_mesh(
            jax.jit(
                self.objective.predict,
                in_shardings=(self.state_shardings.params, meshes.batch_sharding(self.mesh)),
                out_shardings=meshes.replicated(self.mesh),
            )
        )

        self._draw = self._in_mesh(jax.jit(self._drawn_params, static_argnums=1))
        self._rest = self._in_mesh(
            jax.jit(self._rest_of_state, out_shardings=(self.state_shardings.step, self.state_shardings.opt_state))
        )

    @property
    def row_multiple(self) -> int:
        """Return what the number of rows must be a multiple of."""
        return self.row_devices * self.config.train.gradient_accumulation_steps

    @property
    def eval_rows(self) -> int:
        """Return the rows of an evaluation batch."""
        return max(1, _EVAL_TOKENS // self.shape.length) * self.row_devices

    def to_device(self, arrays: dict[str, np.ndarray]) -> PackedRows:
        """Return the global batch from arrays that every host holds whole."""
        hosts, mine = jax.process_count(), jax.process_index()
        local = {name: np.split(array, hosts)[mine] if hosts > 1 else array for name, array in arrays.items()}
        return PackedRows(**meshes.to_global(local, mesh=self.mesh))

    def predict(self, params: Any, arrays: dict[str, np.ndarray]) -> jax.Array:
        """Return the outputs of a batch, whole on every device."""
        return self._predict(params, self.to_device(arrays))

    def fresh_params(self, key: Key[Array, ""], *, parts: tuple[str, ...]) -> dict[str, Any]:
        """Return newly drawn parameters of `parts`; what is not asked for is not computed."""
        return jax.tree.map(np.asarray, self._draw(key, parts)) if parts else {}

    def init_state(self, params: dict[str, Any]) -> TrainState:
        """Return the state that a run begins with, from host arrays."""
        placed = jax.tree.map(jax.device_put, params, self.state_shardings.params)
        # A copy: device_put may hand out the very buffer of the host array, and the step donates its state.
        placed = jax.tree.map(jnp.copy, placed)
        step, opt_state = self._rest(placed)
        return TrainState(step=step, params=placed, opt_state=opt_state)

    def _drawn_params(self, key: Key[Array, ""], parts: tuple[str, ...]) -> dict[str, Any]:
        params = nn.meta.unbox(self._boxed_params(key))
        return {part: params[part] for part in parts}

    def _rest_of_state(self, params: Any) -> tuple[Any, Any]:
        return jnp.zeros((), jnp.int32), self._optimizer(_no_settings()).init(params)

    def abstract_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state, for restoring it."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.state_shapes,
            self.state_shardings,
        )

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
        return module.init(key, inputs, cls_positions=sample)["params"]

    def _boxed_state(self) -> TrainState:
        params = self._boxed_params(jax.random.key(0))
        opt_state = self._optimizer(_no_settings()).init(params)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state)

    def _in_mesh(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            with meshes.use_mesh(self.mesh, rules=self.rules):
                return function(*args)

        return call


def _no_settings() -> StepSettings:
    """Return settings for making optimiser states, which do not depend on them."""
    nothing: Float[Array, ""] = jnp.zeros((), jnp.float32)
    return StepSettings(jax.random.key(0), nothing, nothing, nothing)
