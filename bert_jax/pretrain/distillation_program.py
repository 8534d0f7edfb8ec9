"""The program of a distillation: that of pre-training, with the teacher's forward pass in the same step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bert_jax.config import Config, DistillationConfig, ModelConfig
from bert_jax.model.architectures import architecture_of
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.validation import check_layers
from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.pretrain.relation_objective import RelationObjective, TeacherModel
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.training.metrics import Means
from bert_jax.training.policy import Policy, apply_policy
from bert_jax.training.schedule import Phase
from bert_jax.training.state import TrainState
from bert_jax.training.steps import COMPUTE_POLICY, StepOutput
from bert_jax.types import LAYERS, EncoderInputs, Rows, TaughtRows


class DistillationProgram(PretrainingProgram):
    """The compiled parts of one config with a teacher. `place_teacher` comes before the first step."""

    def __init__(self, config: Config, *, mesh: Mesh, teacher: ModelConfig):
        """Shard the state and the teacher over `mesh`; `teacher` ends with the layer that teaches.

        Raises:
          UserError: as `PretrainingProgram`, also if the teacher's heads or inner layer do not divide over the mesh.
        """
        assert config.distill is not None, "the command checks it"
        self.distill: DistillationConfig = config.distill
        sizes = {"num_attention_heads": teacher.num_attention_heads, "intermediate_size": teacher.intermediate_size}
        check_layers({f"the teacher's {name}": size for name, size in sizes.items()}, mesh=mesh)
        self.teacher = TeacherModel(teacher, meshes.rules_for(mesh, sizes={"vocab": teacher.vocab_size}))
        boxed = jax.eval_shape(lambda: _random_encoder(teacher))
        # Sharded within a layer and over fsdp, as the student; whole along `data`, which has no part in its update.
        self.teacher_shardings = jax.tree.map(
            meshes.gathered_by_size, meshes.tree_shardings(boxed, mesh=mesh, rules=self.teacher.rules)
        )
        self._teacher_params: Any = None
        super().__init__(config, mesh=mesh)

    def place_teacher(self, params: Any) -> None:
        """Put the teacher's parameters on the mesh: matrices in the dtype of the computation, since none is updated."""
        dtype = jnp.dtype(self.teacher.model.dtype)
        narrow = apply_policy(COMPUTE_POLICY, params=params)
        arrays = jax.tree.map(lambda leaf, cast: np.asarray(leaf).astype(dtype if cast else leaf.dtype), params, narrow)
        self._teacher_params = jax.tree.map(jax.device_put, arrays, self.teacher_shardings)

    @property
    def untrained_parts(self) -> tuple[str, ...]:
        """Return the parts of the model that no loss reaches: relations alone reach the encoder."""
        if self.distill.pretraining_weight:
            return super().untrained_parts
        return tuple(part for part in architecture_of(self.config.model).pretraining_parts if part != "encoder")

    def make_optimizer(self) -> optax.GradientTransformation:
        """Return the update rule; what no loss reaches in the last layer keeps its values (no decay)."""
        rule = super().make_optimizer()
        return rule if self.distill.pretraining_weight else _without_rest_of_last_layer(rule, model=self.config.model)

    def objective(self, phase: Phase, *, special: SpecialIds) -> RelationObjective:
        """Return the objective of `phase`."""
        return self._taught(super().objective(phase, special=special))

    def relation_evaluation(self, phase: Phase, *, special: SpecialIds) -> RelationObjective:
        """Return the objective that `phase` is evaluated by, at the run's masking rate."""
        return self._taught(self.evaluation_objective(phase, special=special))

    def train_step(
        self, phase: Phase, *, special: SpecialIds
    ) -> Callable[[TrainState, Rows], tuple[TrainState, StepOutput]]:
        """Return the jitted step of `phase`, which donates the state."""
        step = self.step(phase, special=special)

        def taught(state: TrainState, rows: Rows, teacher: Any) -> tuple[TrainState, StepOutput]:
            return step(state, _with_teacher(rows, teacher))

        jitted = self.compile_step(taught, self.teacher_shardings)
        return lambda state, rows: jitted(state, rows, self._teacher_params)

    def evaluation_step(self, objective: RelationObjective) -> Callable[..., Means]:
        """Return the jitted evaluation of a batch (`EvaluationProgram.step`)."""

        def evaluate(params: Any, rows: Rows, index: Array, unigram: Float[Array, " V"], teacher: Any) -> Means:
            key = jax.random.fold_in(self.evaluation.key, index)
            return objective.evaluate(params, _with_teacher(rows, teacher), key=key, unigram_log_probs=unigram)

        jitted = self.evaluation.compiled(evaluate, self.teacher_shardings)
        return lambda *args: jitted(*args, self._teacher_params)

    def _taught(self, plain: PretrainingObjective) -> RelationObjective:
        return RelationObjective(
            **vars(plain),
            teacher=self.teacher,
            relation_heads=self.distill.relation_heads,
            pretraining_weight=self.distill.pretraining_weight,
        )


def _with_teacher(rows: Rows, teacher: Any) -> TaughtRows:
    return TaughtRows(**vars(rows), teacher=teacher)


def _random_encoder(model: ModelConfig) -> Any:
    sample = jnp.zeros((1, 1), jnp.int32)
    inputs = EncoderInputs(sample, sample, sample, sample)
    return architecture_of(model).encoder(model).init(jax.random.key(0), inputs)["params"]


def _without_rest_of_last_layer(
    rule: optax.GradientTransformation, *, model: ModelConfig
) -> optax.GradientTransformation:
    """Return `rule` without updates of the last layer, except for the parameters that its relations depend on."""
    projections = architecture_of(model).projections
    assert projections is not None, "check_has_relations"
    taught: Policy[bool] = (
        *((rf"{LAYERS}{name}/.*", True) for name in projections.parameters),
        (rf"{LAYERS}.*", False),
        (r".*", True),
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = rule.update(updates, state, params)
        is_taught = apply_policy(taught, params=updates)
        return jax.tree.map(lambda value, keep: value if keep else value.at[-1].set(0), updates, is_taught), state

    return optax.GradientTransformation(rule.init, update)
