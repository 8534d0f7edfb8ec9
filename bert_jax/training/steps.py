"""The training step of any objective: loss, gradients over micro-batches, update, metrics."""

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

# Kernels and embedding tables are gathered, and their gradients reduced, in the dtype of the computation. All other
# parameters are small and used in float32, so they stay float32.
COMPUTE_POLICY: Policy[bool] = ((r".*(kernel|embeddings)", True), (r".*", False))

Rows = TypeVar("Rows", contravariant=True)
Batch = TypeVar("Batch")


@runtime_checkable
class Objective(Protocol[Rows, Batch]):
    """What is trained. Every weight is known before the forward pass, so micro-batches add up exactly."""

    def prepare(self, rows: Rows, *, key: Key[Array, ""]) -> Batch:
        """Return the batch to train on, made from the global batch as loaded."""
        ...

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Return the weight of each loss over the whole batch."""
        ...

    def loss(
        self, params: Any, *, batch: Batch, weights: dict[str, Float[Array, ""]], key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Means]:
        """Return this part's contribution to the loss, divided by the whole batch's `weights`, and its metrics."""
        ...


@runtime_checkable
class BatchObjective(Objective[Rows, Batch], Protocol[Rows, Batch]):
    """An objective whose loss may depend on the whole batch, not only on a micro-batch."""

    def with_whole_batch(
        self, params: Any, *, parts: Batch, weights: dict[str, Float[Array, ""]], key: Key[Array, ""] | None
    ) -> Batch:
        """Return the stacked micro-batches `parts` with what each must know of the others."""
        ...


@struct.dataclass
class StepOutput:
    """The metrics of one step.

    `bad_parameters` has a flag per parameter: its values or its gradient are not finite.
    """

    means: Means
    finite: Bool[Array, ""]
    bad_parameters: Any


class TrainStep(Generic[Rows, Batch]):
    """One optimizer step: a pure function of (state, rows), to be jitted with the state donated."""

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
        """Close over everything static.

        Args:
          objective: what is trained.
          optimizer: the update rule.
          key: the run's key; each step folds in its number.
          gradient_accumulation_steps: micro-batches per step (per replica, with `replicas`).
          replicas: computes gradients replica by replica. Without it XLA partitions the whole step.
          clip_each: the norm to which each micro-batch's gradient is clipped before the mean is taken. A micro-batch is
            then what a replica was in the original, with a loss that is its own mean: optimization.py of
            google-research/bert clips before CrossShardOptimizer reduces. It needs `replicas` on a mesh that has only
            `data`.
        """
        self._objective = objective
        self._optimizer = optimizer
        self._key = key
        self._parts = gradient_accumulation_steps
        self._replicas = replicas
        self._clip_each = clip_each

    def __call__(self, state: TrainState, rows: Rows) -> tuple[TrainState, StepOutput]:
        """Return the next state and the metrics.

        If the loss or the gradients are not finite, the parameters and the optimizer state stay unchanged.
        """
        prepare_key, dropout_key = jax.random.split(jax.random.fold_in(self._key, state.step))
        batch = self._objective.prepare(rows, key=prepare_key)
        loss, means, grads = self._gradients(state.params, batch, dropout_key)
        # `_bad_parameters` gets `grads`, not `wide`, for which XLA would write a float32 copy to memory.
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
            # With a conditional, a GPU's host waits for the predicate and queues nothing meanwhile: an H200 was idle
            # for 5 of the 73 ms of a BERT-Large step. Checking all parameters reads 2 GB, which takes 0.5 ms.
            bad = _bad_parameters(state.params, grads)
        else:
            bad = jax.lax.cond(finite, _none_bad, _bad_parameters, state.params, grads)
        return new_state, StepOutput(means=means, finite=finite, bad_parameters=bad)

    def _gradients(self, params: Any, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Means, Any]:
        weights = self._objective.weights(batch)
        replicas = self._replicas
        if replicas is None:
            return self._accumulate(params, batch, weights, key)

        def replica(shards: Any, rows: Batch, weights: Any, key: Key[Array, ""]) -> tuple[Any, Any, Any]:
            loss, means, grads = self._accumulate(replicas.gather(shards), rows, weights, key)
            return *replicas.total((loss, means)), replicas.scatter(grads)

        return replicas.run(replica, params, batch, weights, key, reduced=(False, False, True))

    def _accumulate(
        self, params: Any, batch: Batch, weights: dict[str, Float[Array, ""]], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Means, Any]:
        """Return loss, metrics and gradients summed over the micro-batches; the sum of several is float32."""

        def part(part_batch: Batch) -> tuple[Float[Array, ""], Means, Any]:
            part_weights = self._objective.weights(part_batch) if self._clip_each is not None else weights

            def loss(p: Any) -> tuple[Float[Array, ""], Means]:
                return self._objective.loss(p, batch=part_batch, weights=part_weights, key=key)

            (value, means), grads = jax.value_and_grad(loss, has_aux=True)(params)
            if self._clip_each is None:
                return value, means, grads
            # Divided by the number of micro-batches of all replicas, so that their sum is the mean.
            scale = 1 / (self._parts * (self._replicas.size if self._replicas else 1))
            clip_scale = scale * jnp.minimum(1.0, self._clip_each / optax.tree.norm(_widened(grads)))
            return (
                value * scale,
                means,
                jax.tree.map(lambda g: (g.astype(jnp.float32) * clip_scale).astype(g.dtype), grads),
            )

        if self._parts == 1:
            return part(batch)

        def add(total: Any, part_batch: Batch) -> tuple[Any, None]:
            loss, means, grads = part(part_batch)
            summed = jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total[2], grads)
            return (total[0] + loss, add_means(total[1], means), summed), None

        in_blocks = self._clip_each is not None  # a micro-batch then has the same sequences on every mesh
        parts = jax.tree.map(lambda leaf: _split_rows(leaf, parts=self._parts, in_blocks=in_blocks), batch)
        if isinstance(self._objective, BatchObjective):
            parts = self._objective.with_whole_batch(params, parts=parts, weights=weights, key=key)
        shapes = jax.eval_shape(part, jax.tree.map(lambda leaf: leaf[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
        return jax.lax.scan(add, zeros, parts)[0]


def make_replicas(mesh: Mesh, *, params: Any, shardings: Any, dtype: str, scan_layers: bool) -> DataParallel:
    """Return the data parallelism of a training step; `params` is a tree of the parameters' shapes.

    `dtype` is the dtype of the computation. With `scan_layers` False every layer's parameters are gathered separately.
    """
    casts = apply_policy(COMPUTE_POLICY, params=params)
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
    """Return a flag per parameter: it has a value or a gradient that is not finite."""
    return jax.tree.map(lambda p, g: ~(jnp.isfinite(p).all() & jnp.isfinite(g).all()), params, grads)


def _widened(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _split_rows(leaf: Array, *, parts: int, in_blocks: bool) -> Array:
    """Return the batch split into `parts`: part i has sequences i, i + parts, ..., or with `in_blocks` the i-th block.

    A batch is sharded in blocks, so with strided parts all sequences stay on their devices.
    """
    if in_blocks:
        return leaf.reshape((parts, -1, *leaf.shape[1:]))
    return leaf.reshape((-1, parts, *leaf.shape[1:])).swapaxes(0, 1)
