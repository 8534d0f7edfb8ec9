"""The program of an evaluation: parameters on a mesh and the jitted step, without a training config."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from bert_jax.config import ModelConfig
from bert_jax.model.heads import PretrainingModel
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.training.metrics import Means
from bert_jax.types import EncoderInputs, Rows


class RunKeys(NamedTuple):
    """The keys of a run, by purpose."""

    init: Key[Array, ""]
    step: Key[Array, ""]
    evaluation: Key[Array, ""]


def run_keys(seed: int) -> RunKeys:
    """Return the keys of a run with this `seed`; each use folds in its step or batch number."""
    return RunKeys(*jax.random.split(jax.random.key(seed), 3))


def init_params(model: ModelConfig, *, key: Key[Array, ""]) -> Any:
    """Return randomly initialized parameters, with the logical names of their axes."""
    sample = jnp.zeros((1, 1), jnp.int32)
    inputs = EncoderInputs(sample, sample, sample, sample)
    return PretrainingModel(model).init(key, inputs, positions=sample, cls_positions=sample)["params"]


@dataclasses.dataclass(frozen=True)
class EvaluationProgram:
    """The parameters' shardings on a mesh and the key of the masks. Creating it compiles nothing.

    `param_shapes` and `param_shardings` are trees with the structure of the parameters.
    """

    mesh: Mesh
    rules: tuple[tuple[str, Any], ...]
    param_shapes: Any
    param_shardings: Any
    key: Key[Array, ""]

    def step(self, objective: PretrainingObjective) -> Callable[[Any, Rows, int, Float[Array, " V"]], Means]:
        """Return the jitted evaluation of batch `index`; its masks depend only on the key and `index`."""

        def evaluate(params: Any, rows: Rows, index: Array, unigram: Float[Array, " V"]) -> Means:
            key = jax.random.fold_in(self.key, index)
            return objective.evaluate(params, rows, key=key, unigram_log_probs=unigram)

        return self.compiled(evaluate)

    def compiled(self, evaluate: Callable[..., Means], *others: Any) -> Callable[..., Means]:
        """Return the jitted `evaluate(params, rows, index, unigram, *rest)`; `rest` has the shardings `others`."""
        whole = meshes.replicated(self.mesh)
        jitted = jax.jit(
            evaluate,
            in_shardings=(self.param_shardings, meshes.batch_sharding(self.mesh), whole, whole, *others),
            out_shardings=whole,
        )

        def call(*args: Any) -> Means:
            with meshes.use_mesh(self.mesh, rules=self.rules):
                return jitted(*args)

        return call


def evaluation_program(model: ModelConfig, *, mesh: Mesh, seed: int) -> EvaluationProgram:
    """Return the evaluation of `model` with the masks of a run with this `seed`."""
    keys, rules = run_keys(seed), meshes.rules_for(mesh, sizes={"vocab": model.vocab_size})
    boxed = jax.eval_shape(lambda: init_params(model, key=keys.init))
    return EvaluationProgram(
        mesh=mesh,
        rules=rules,
        param_shapes=nn.meta.unbox(boxed),
        param_shardings=meshes.tree_shardings(boxed, mesh=mesh, rules=rules),
        key=keys.evaluation,
    )
