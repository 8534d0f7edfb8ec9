"""Make the jitted steps of any objective: loss, gradients over micro-batches, update, figures."""

from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Key

from bert_jax.parallel.data_parallel import DataParallel
from bert_jax.training.metrics import Mean, Means, add_means
from bert_jax.training.optimizers import STACKED_POLICY
from bert_jax.training.policy import Policy, apply_policy
from bert_jax.training.state import TrainState

# Kernels and tables are gathered, and their gradients reduced, in the dtype of the computation; the small rest, which
# is computed in float32, stays float32.
_COMPUTE_POLICY: Policy[bool] = ((r".*(kernel|embeddings)", True), (r".*", False))

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
    """Take one optimizer step; a pure function of (state, rows), to be jitted with the state donated."""

    def __init__(
        self,
        objective: Objective[Rows, Batch],
        *,
        optimizer: optax.GradientTransformation,
        key: Key[Array, ""],
        gradient_accumulation_steps: int = 1,
        replicas: DataParallel | None = None,
        clip_each: float | None = None,
    ):
        """Close over everything static; `key` is the run's, folded with the step number.

        With `replicas` gradients are computed replica by replica; without, on what XLA makes of the arguments.
        With `clip_each` every micro-batch is what a replica was in the original: its loss is its own mean, its gradient
        is clipped to this norm, and the clipped gradients are averaged (optimization.py of google-research/bert clips
        before CrossShardOptimizer reduces). It needs `replicas` on a mesh of `data` alone.
        """
        self._objective = objective
        self._optimizer = optimizer
        self._key = key
        self._parts = gradient_accumulation_steps
        self._replicas = replicas
        self._clip_each = clip_each

    def __call__(self, state: TrainState, rows: Rows) -> tuple[TrainState, StepOutput]:
        """Return the next state and the figures.

        Where loss or gradients are not finite the parameters and the optimiser's state stay as they were.
        """
        prepare_key, dropout_key = jax.random.split(jax.random.fold_in(self._key, state.step))
        batch = self._objective.prepare(rows, key=prepare_key)
        loss, means, grads = self._gradients(state.params, batch, dropout_key)
        # Each reader widens the reduced gradients itself: what looks for bad parameters would have them written out.
        wide = _widened(grads)
        norm = optax.tree.norm(wide)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = self._optimizer.update(wide, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        new_state = TrainState(
            step=state.step + 1, params=keep(params, state.params), opt_state=keep(opt_state, state.opt_state)
        )
        one = jnp.ones(())
        means = {**means, "loss": Mean(loss, one), "grad_norm": Mean(norm, one)}
        if self._replicas is not None and self._replicas.is_on_gpu:
            # The host of a GPU waits for the step to know the branch, and queues nothing meanwhile (an H200 stood still
            # for 5 of 73 ms a step of BERT-Large). The pass over all parameters reads 2 GB there, half a millisecond.
            bad = _bad_parameters(state.params, grads)
        else:
            bad = jax.lax.cond(finite, _none_bad, _bad_parameters, state.params, grads)
        return new_state, StepOutput(means=means, finite=finite, bad_parameters=bad)

    def _gradients(self, params: Any, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Means, Any]:
        weights = self._objective.weights(batch)
        replicas = self._replicas
        if replicas is None:
            return self._accumulate(params, batch, weights, key)

        def replica(shares: Any, rows: Batch, weights: Any, key: Key[Array, ""]) -> tuple[Any, Any, Any]:
            loss, means, grads = self._accumulate(replicas.gather(shares), rows, weights, key)
            return *replicas.total((loss, means)), replicas.scatter(grads)

        return replicas.run(replica, params, batch, weights, key, reduced=(False, False, True))

    def _accumulate(
        self, params: Any, batch: Batch, weights: dict[str, Float[Array, ""]], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Means, Any]:
        """Return loss, figures and gradients summed over the micro-batches; sums of several are kept in float32."""

        def part(part_batch: Batch) -> tuple[Float[Array, ""], Means, Any]:
            own = self._objective.weights(part_batch) if self._clip_each is not None else weights

            def loss(p: Any) -> tuple[Float[Array, ""], Means]:
                return self._objective.loss(p, batch=part_batch, weights=own, key=key)

            (value, means), grads = jax.value_and_grad(loss, has_aux=True)(params)
            if self._clip_each is None:
                return value, means, grads
            # Divided by the number of all micro-batches of all replicas, so that their sum is the mean.
            share = 1 / (self._parts * (self._replicas.size if self._replicas else 1))
            scale = share * jnp.minimum(1.0, self._clip_each / optax.tree.norm(_widened(grads)))
            return value * share, means, jax.tree.map(lambda g: (g.astype(jnp.float32) * scale).astype(g.dtype), grads)

        if self._parts == 1:
            return part(batch)

        def add(total: Any, part_batch: Batch) -> tuple[Any, None]:
            loss, means, grads = part(part_batch)
            summed = jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total[2], grads)
            return (total[0] + loss, add_means(total[1], means), summed), None

        in_blocks = self._clip_each is not None  # which rows a replica has does not depend on the mesh then
        parts = jax.tree.map(lambda leaf: _split_rows(leaf, parts=self._parts, in_blocks=in_blocks), batch)
        shapes = jax.eval_shape(part, jax.tree.map(lambda leaf: leaf[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
        return jax.lax.scan(add, zeros, parts)[0]


def make_replicas(mesh: Mesh, *, params: Any, shardings: Any, dtype: str, scan_layers: bool) -> DataParallel:
    """Return how a step treats parameters on its replicas; `params` is a tree of their shapes.

    `dtype` is that of the computation; `scan_layers` False hands out the layers one by one.
    """
    casts = apply_policy(_COMPUTE_POLICY, params=params)
    stacked = apply_policy(STACKED_POLICY, params=params)
    return DataParallel(
        mesh,
        shardings=shardings,
        dtypes=jax.tree.map(lambda leaf, cast: jnp.dtype(dtype) if cast else leaf.dtype, params, casts),
        split=jax.tree.map(lambda layers: layers and not scan_layers, stacked),
    )


def _none_bad(params: Any, grads: Any) -> Any:
    return jax.tree.map(lambda p: jnp.zeros((), bool), params)


def _bad_parameters(params: Any, grads: Any) -> Any:
    """Return which parameters hold a value or gradient that is not finite; a pass over all, only when one does."""
    return jax.tree.map(lambda p, g: ~(jnp.isfinite(p).all() & jnp.isfinite(g).all()), params, grads)


def _widened(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _split_rows(leaf: Array, *, parts: int, in_blocks: bool) -> Array:
    """Give part i the rows i, i + parts, ... (with rows sharded in blocks, each device keeps its own), or a block."""
    if in_blocks:
        return leaf.reshape((parts, -1, *leaf.shape[1:]))
    return leaf.reshape((-1, parts, *leaf.shape[1:])).swapaxes(0, 1)
