"""The state of one model and optimizer on a mesh: shapes, shardings, initialization, and functions compiled over it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from bert_jax.parallel import mesh as meshes
from bert_jax.training.state import TrainState

Boxed = Any  # a tree that carries Flax's logical axis names


class Program:
    """The layout of the state on `mesh`. Creating it compiles nothing."""

    def __init__(self, boxed_state: Callable[[], Boxed], *, mesh: Mesh, rules: tuple[tuple[str, Any], ...]):
        """Lay out the `TrainState` that `boxed_state` returns; it is traced, not computed."""
        self.mesh, self.rules = mesh, rules
        self._boxed_state = boxed_state
        boxed = jax.eval_shape(boxed_state)
        self.state_shardings: TrainState = meshes.tree_shardings(boxed, mesh=mesh, rules=rules)
        self.state_shapes: TrainState = nn.meta.unbox(boxed)

    def abstract_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state, for restoring it."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.state_shapes,
            self.state_shardings,
        )

    def random_state(self) -> TrainState:
        """Return the state with randomly initialized parameters; every device computes its own shard."""
        with meshes.use_mesh(self.mesh, rules=self.rules):
            return jax.jit(lambda: nn.meta.unbox(self._boxed_state()), out_shardings=self.state_shardings)()

    def place_params(self, params: Any) -> Any:
        """Return host arrays as parameters on the mesh, in new buffers.

        They are copied, because `device_put` may return the host array's own buffer, and a step donates its state.
        """
        return jax.tree.map(jnp.copy, jax.tree.map(jax.device_put, params, self.state_shardings.params))

    def compile_step(self, step: Callable[..., Any], *others: Any) -> Callable[..., Any]:
        """Return the jitted `step(state, rows, *rest)`, which donates the state; `rest` has the shardings `others`."""
        return self.in_mesh(
            jax.jit(
                step,
                donate_argnums=0,
                in_shardings=(self.state_shardings, meshes.batch_sharding(self.mesh), *others),
                out_shardings=(self.state_shardings, meshes.replicated(self.mesh)),
            )
        )

    def compile_evaluation(self, evaluate: Callable[..., Any], *others: Any) -> Callable[..., Any]:
        """Return the jitted `evaluate(params, rows, *rest)`, whose results are replicated on every device."""
        return self.in_mesh(
            jax.jit(
                evaluate,
                in_shardings=(self.state_shardings.params, meshes.batch_sharding(self.mesh), *others),
                out_shardings=meshes.replicated(self.mesh),
            )
        )

    def in_mesh(self, function: Any) -> Any:
        """Return `function`, traced and run inside the mesh; `lower` is copied from a jitted function."""

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            with meshes.use_mesh(self.mesh, rules=self.rules):
                return function(*args)

        call.lower = function.lower  # type: ignore[attr-defined]
        return call
