"""Make the jitted steps of any objective: loss, gradients over micro-batches, update, figures."""

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Key

from bert_jax.training.metrics import Mean, Means, add_means
from bert_jax.training.state import TrainState

Rows = TypeVar("Rows", contravariant=True)
Batch = TypeVar("Batch")


@runtime_checkable
class Objective(Protocol[Rows, Batch]):
    """Define what is trained. Every weight is known before the forward pass, so micro-batches add up exactly."""

    def prepare(self, rows: Rows, *, key: Key[Array, ""]) -> Batch:
        """Turn the global batch as loaded into the batch that is trained on."""
        ...

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Return the weight of each loss over the whole batch."""
        ...

    def loss(
        self, params: Any, *, batch: Batch, weights: dict[str, Float[Array, ""]], key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Means]:
        """Return this part's share of the loss, divided by the whole batch's `weights`, and its figures."""
        ...


@struct.dataclass
class StepOutput:
    """Hold the figures of one step. `bad_parameters` flags, a parameter, values or gradients that are not finite."""

    means: Means
    finite: Bool[Array, ""]
    bad_parameters: Any


class TrainStep(Generic[Rows, Batch]):
    """Take one optimiser step; a pure function of (state, rows), to be jitted with the state donated."""

    def __init__(
        self,
        objective: Objective[Rows, Batch],
        *,
        optimizer: optax.GradientTransformation,
        key: Key[Array, ""],
        gradient_accumulation_steps: int = 1,
    ):
        """Close over everything static; `key` is the run's, folded with the step number."""
        self._objective = objective
        self._optimizer = optimizer
        self._key = key
        self._parts = gradient_accumulation_steps

    def __call__(self, state: TrainState, rows: Rows) -> tuple[TrainState, StepOutput]:
        """Return the next state and the figures.

        Where loss or gradients are not finite the parameters and the optimiser's state stay as they were.
        """
        prepare_key, dropout_key = jax.random.split(jax.random.fold_in(self._key, state.step))
        batch = self._objective.prepare(rows, key=prepare_key)
        loss, means, grads = self._gradients(state.params, batch, dropout_key)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        new_state = TrainState(
            step=state.step + 1, params=keep(params, state.params), opt_state=keep(opt_state, state.opt_state)
        )
        one = jnp.ones(())
        means = {**means, "loss": Mean(loss, one), "grad_norm": Mean(norm, one)}
        bad = jax.tree.map(lambda p, g: ~(jnp.isfinite(p).all() & jnp.isfinite(g).all()), state.params, grads)
        return new_state, StepOutput(means=means, finite=finite, bad_parameters=bad)

    def _gradients(self, params: Any, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Means, Any]:
        weights = self._objective.weights(batch)

        def part(part_batch: Batch) -> tuple[Float[Array, ""], Means, Any]:
            def loss(p: Any) -> tuple[Float[Array, ""], Means]:
                return self._objective.loss(p, batch=part_batch, weights=weights, key=key)

            (value, means), grads = jax.value_and_grad(loss, has_aux=True)(params)
            return value, means, grads

        if self._parts == 1:
            return part(batch)

        def add(total: Any, part_batch: Batch) -> tuple[Any, None]:
            loss, means, grads = part(part_batch)
            return (total[0] + loss, add_means(total[1], means), jax.tree.map(jnp.add, total[2], grads)), None

        parts = jax.tree.map(lambda leaf: _split_rows(leaf, parts=self._parts), batch)
        shapes = jax.eval_shape(part, jax.tree.map(lambda leaf: leaf[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]


def _split_rows(leaf: Array, *, parts: int) -> Array:
    """Give part i the rows i, i + parts, ...: with rows sharded in blocks, each device keeps its own."""
    return leaf.reshape((-1, parts, *leaf.shape[1:])).swapaxes(0, 1)


def make_eval_step(
    evaluate: Callable[[Any, Rows, Key[Array, ""]], Means], *, key: Key[Array, ""]
) -> Callable[[Any, Rows, Any], Means]:
    """Return the step that evaluates batch number `index`, always with the same masks."""

    def step(params: Any, rows: Rows, index: Any) -> Means:
        return evaluate(params, rows, jax.random.fold_in(key, index))

    return step
