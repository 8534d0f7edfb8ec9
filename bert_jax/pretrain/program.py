"""The program of a pre-training run: mesh, state and its shardings, the jitted steps of every phase.

Training, evaluation, `--dry_run` and `plan` use the same program.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bert_jax.config import Config, ModelConfig, instances_per_row, phase_models
from bert_jax.model.architectures import architecture_of
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.causal import objective_class
from bert_jax.pretrain.evaluation_program import EvaluationProgram, init_params, run_keys
from bert_jax.pretrain.masking import default_max_predictions, row_predictions
from bert_jax.pretrain.mesh_checks import validate_for_mesh
from bert_jax.pretrain.objective import PretrainingObjective, check_heads, make_objective
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.runs.program import Program
from bert_jax.training import optimizers as optim
from bert_jax.training.schedule import Phase, learning_rate_schedule, phases, rate_segments
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput, TrainStep, make_replicas
from bert_jax.types import Rows


class PretrainingProgram(Program):
    """The compiled parts of one config on one mesh. Creating it compiles nothing."""

    def __init__(self, config: Config, *, mesh: Mesh):
        """Shard the state over `mesh`.

        Raises:
          UserError: if batch, heads or inner layer do not divide over the mesh, a warm-up is longer than its part of
            the run, or the architecture has no next-sentence head for the objective.
        """
        assert config.model.vocab_size, "open_values.py settles it"
        validate_for_mesh(config, mesh=mesh)
        check_heads(config.model, next_sentence=config.next_sentence)
        self.config = config
        self.phases = phases(config.train, default_predictions=self._default_predictions)
        models = phase_models(config.model, phases=config.train.phases)
        self._models = {(p.start, p.end): model for p, model in zip(self.phases, models, strict=True)}
        self.segments = rate_segments(config.train, optimizer=config.optimizer, all_phases=self.phases)
        self.schedule = learning_rate_schedule(self.segments, recipe=config.recipe)
        self.rule = optim.optimizer_rule(config.optimizer, recipe=config.recipe)
        self.optimizer = self.make_optimizer()
        self._keys = run_keys(config.seed)
        super().__init__(
            self._random_state,
            mesh=mesh,
            rules=meshes.rules_for(mesh, sizes={"vocab": config.model.vocab_size}),
            compiler_options=config.mesh.compiler_options,
        )
        self.replicas = make_replicas(
            mesh,
            params=self.step_shapes.params,
            shardings=self.step_shardings.params,
            dtype=config.model.dtype,
            scan_layers=config.model.scan_layers,
        )
        self.evaluation = EvaluationProgram(
            mesh=mesh,
            rules=self.rules,
            param_shapes=self.state_shapes.params,
            param_shardings=self.step_shardings.params,
            key=self._keys.evaluation,
        )

    @property
    def untrained_parts(self) -> tuple[str, ...]:
        """Return the parts of the model that no loss reaches."""
        return () if self.config.next_sentence else architecture_of(self.config.model).next_sentence_parts

    def make_optimizer(self) -> optax.GradientTransformation:
        """Return the update rule of the config."""
        return optim.make_optimizer(
            self.config.optimizer, rule=self.rule, schedule=self.schedule, untrained=self.untrained_parts
        )

    def model(self, phase: Phase) -> ModelConfig:
        """Return the model as `phase` trains it."""
        return self._models[phase.start, phase.end]

    def objective(self, phase: Phase, *, special: SpecialIds) -> PretrainingObjective:
        """Return the objective of `phase`."""
        return self._objective(phase, rate=self._masking_rate(phase), special=special)

    def evaluation_objective(self, phase: Phase, *, special: SpecialIds) -> PretrainingObjective:
        """Return the objective that `phase` is evaluated by: at the run's masking rate, so that phases compare."""
        if phase.masking_rate:
            phase = dataclasses.replace(phase, max_predictions_per_seq=0)  # what masking.rate needs
        return self._objective(phase, rate=self.config.masking.rate, special=special)

    def _objective(self, phase: Phase, *, rate: float, special: SpecialIds) -> PretrainingObjective:
        return make_objective(
            self.model(phase),
            masking=dataclasses.replace(self.config.masking, rate=rate),
            special=special,
            max_seq_length=phase.max_seq_length,
            instances=instances_per_row(self.config.data, max_seq_length=phase.max_seq_length),
            max_predictions_per_seq=phase.max_predictions_per_seq,
            next_sentence=self.config.next_sentence,
            cls=objective_class(causal=self.is_causal(phase)),
        )

    def is_causal(self, phase: Phase) -> bool:
        """Return whether every position predicts the next token in `phase`."""
        return self.config.causal or phase.is_causal

    def max_predictions(self, phase: Phase) -> int:
        """Return P, the slots of a sequence in `phase`: enough for all instances of a packed sequence."""
        if self.is_causal(phase):
            return phase.max_seq_length
        return row_predictions(
            phase.max_seq_length,
            instances=instances_per_row(self.config.data, max_seq_length=phase.max_seq_length),
            rate=self._masking_rate(phase),
            limit=phase.max_predictions_per_seq,
        )

    def _masking_rate(self, phase: Phase) -> float:
        return phase.masking_rate or self.config.masking.rate

    def _default_predictions(self, max_seq_length: int, rate: float) -> int:
        return default_max_predictions(max_seq_length, rate=rate or self.config.masking.rate)

    def train_step(
        self, phase: Phase, *, special: SpecialIds
    ) -> Callable[[TrainState, Rows], tuple[TrainState, StepOutput]]:
        """Return the jitted step of `phase`, which donates the state."""
        return self.compile_step(self.step(phase, special=special))

    def step(self, phase: Phase, *, special: SpecialIds) -> TrainStep:
        """Return the step of `phase`, to be jitted."""
        clip = self.config.optimizer
        replicas_per_device = clip.clip_replicas // self.mesh.size
        return TrainStep(
            self.objective(phase, special=special),
            optimizer=self.optimizer,
            key=self._keys.step,
            gradient_accumulation_steps=(
                replicas_per_device if clip.clip_replicas > 1 else self.config.train.gradient_accumulation_steps
            ),
            replicas=self.replicas,
            clip_each=clip.max_grad_norm if clip.clip_replicas > 1 else None,
        )

    def _random_state(self) -> TrainState:
        params = init_params(self.config.model, key=self._keys.init)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=self.optimizer.init(params))
