"""Assemble what a run computes: mesh, state and its shardings, the jitted steps of every phase.

The same program is trained with, evaluated with, shown by `--dry_run` and compiled by `plan`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bert_jax.config import Config, instances_per_row
from bert_jax.model.heads import PretrainingModel
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.masking import SpecialIds, default_max_predictions, row_predictions
from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.training import optimizers as optim
from bert_jax.training.metrics import Means
from bert_jax.training.schedule import Phase, learning_rate_schedule, phases, rate_segments
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput, TrainStep, make_replicas
from bert_jax.types import EncoderInputs, Rows


class Program:
    """Hold the compiled parts of one config on one mesh. Building it compiles nothing."""

    def __init__(self, config: Config, *, mesh: Mesh):
        """Lay out the state on `mesh`.

        Raises:
          UserError: if batch, heads or inner layer do not divide over the mesh, or the warm-up does not fit.
        """
        meshes.validate_for_mesh(config, mesh=mesh)
        self.config, self.mesh = config, mesh
        self.rules = meshes.rules_for(config, mesh=mesh)
        predictions = functools.partial(default_max_predictions, rate=config.masking.rate)
        self.phases = phases(config, default_predictions=predictions)
        self.segments = rate_segments(config, all_phases=self.phases)
        self.schedule = learning_rate_schedule(self.segments, recipe=config.recipe)
        self.rule = optim.optimizer_rule(config)
        self.optimizer = optim.make_optimizer(config.optimizer, rule=self.rule, schedule=self.schedule)
        self._init_key, self._step_key, self._eval_key = jax.random.split(jax.random.key(config.seed), 3)
        boxed = jax.eval_shape(self._boxed_state)
        self.state_shardings = meshes.tree_shardings(boxed, mesh=mesh, rules=self.rules)
        self.state_shapes: TrainState = nn.meta.unbox(boxed)
        self.replicas = make_replicas(
            mesh,
            params=self.state_shapes.params,
            shardings=self.state_shardings.params,
            model=config.model,
        )

    def abstract_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state, for restoring it."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.state_shapes,
            self.state_shardings,
        )

    def init_state(self) -> TrainState:
        """Return the freshly drawn state; every device draws its own shard."""
        with meshes.use_mesh(self.mesh, rules=self.rules):
            return jax.jit(lambda: nn.meta.unbox(self._boxed_state()), out_shardings=self.state_shardings)()

    def objective(self, phase: Phase, *, special: SpecialIds) -> PretrainingObjective:
        """Return what is optimised in `phase`."""
        return PretrainingObjective(
            model=self.config.model,
            masking=self.config.masking,
            special=special,
            max_predictions=self.max_predictions(phase),
            max_predictions_per_seq=phase.max_predictions_per_seq,
            next_sentence=self.config.data.objective != "mlm",
        )

    def max_predictions(self, phase: Phase) -> int:
        """Return P, the slots of a row in `phase`: enough for every instance of a packed row."""
        return row_predictions(
            phase.max_seq_length,
            instances=instances_per_row(self.config.data, max_seq_length=phase.max_seq_length),
            rate=self.config.masking.rate,
            limit=phase.max_predictions_per_seq,
        )

    def train_step(
        self, phase: Phase, *, special: SpecialIds
    ) -> Callable[[TrainState, Rows], tuple[TrainState, StepOutput]]:
        """Return the jitted step of `phase`; it donates the state."""
        clip = self.config.optimizer
        replicas_per_device = clip.clip_replicas // self.mesh.size
        step = TrainStep(
            self.objective(phase, special=special),
            optimizer=self.optimizer,
            key=self._step_key,
            gradient_accumulation_steps=(
                replicas_per_device if clip.clip_replicas > 1 else self.config.train.gradient_accumulation_steps
            ),
            replicas=self.replicas,
            clip_each=clip.max_grad_norm if clip.clip_replicas > 1 else None,
        )
        jitted = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(self.state_shardings, meshes.batch_sharding(self.mesh)),
            out_shardings=(self.state_shardings, meshes.replicated(self.mesh)),
        )
        return self._in_mesh(jitted)

    def eval_step(self, phase: Phase, *, special: SpecialIds) -> Callable[[Any, Rows, int, Float[Array, " V"]], Means]:
        """Return the jitted evaluation of batch number `index`, whose masks depend on seed and `index` alone."""
        objective = self.objective(phase, special=special)

        def step(params: Any, rows: Rows, index: Array, unigram: Float[Array, " V"]) -> Means:
            key = jax.random.fold_in(self._eval_key, index)
            return objective.evaluate(params, rows, key=key, unigram_log_probs=unigram)

        jitted = jax.jit(
            step,
            in_shardings=(
                self.state_shardings.params,
                meshes.batch_sharding(self.mesh),
                meshes.replicated(self.mesh),
                meshes.replicated(self.mesh),
            ),
            out_shardings=meshes.replicated(self.mesh),
        )
        return self._in_mesh(jitted)

    def _in_mesh(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            with meshes.use_mesh(self.mesh, rules=self.rules):
                return function(*args)

        call.lower = function.lower  # type: ignore[attr-defined]
        return call

    def _boxed_state(self) -> TrainState:
        sample = jnp.zeros((1, 1), jnp.int32)
        inputs = EncoderInputs(sample, sample, sample, sample)
        params = PretrainingModel(self.config.model).init(
            self._init_key, inputs, positions=sample, cls_positions=sample
        )["params"]
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=self.optimizer.init(params))
