"""The state of one model and optimizer on a mesh: shapes, shardings, initialization, and functions compiled over it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from bert_jax.parallel import mesh as meshes
from bert_jax.parallel import padding
from bert_jax.parallel.compiler_options import CompilerOptions, compiler_options
from bert_jax.training.state import TrainState

Boxed = Any  # a tree that carries Flax's logical axis names


class Program:
    """The layout of the state on `mesh`. Creating it compiles nothing."""

    def __init__(
        self,
        boxed_state: Callable[[], Boxed],
        *,
        mesh: Mesh,
        rules: tuple[tuple[str, Any], ...],
        compiler_options: str = "auto",
    ):
        """Lay out the `TrainState` that `boxed_state` returns; it is traced, not computed.

        `compiler_options` is the field of the config's mesh.
        """
        self.mesh, self.rules = mesh, rules
        self._compiler_options = compiler_options
        self._boxed_state = boxed_state
        boxed = jax.eval_shape(boxed_state)
        self.state_shardings: TrainState = meshes.tree_shardings(boxed, mesh=mesh, rules=rules)
        self.state_shapes: TrainState = nn.meta.unbox(boxed)
        # The layout of a step: tables may have rows that no checkpoint has.
        self.added_rows: TrainState = padding.added_rows(boxed, mesh=mesh)
        self.step_shapes: TrainState = jax.tree.map(padding.padded_shape, self.state_shapes, self.added_rows)
        self.step_shardings: TrainState = jax.tree.map(padding.padded_sharding, self.state_shardings, self.added_rows)

    @functools.cached_property
    def compiler_options(self) -> CompilerOptions:
        """Return the options with which the steps are compiled."""
        return compiler_options(self._compiler_options, mesh=self.mesh)

    def abstract_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state, for restoring it; `placed` returns that for a step."""
        return _abstract(self.state_shapes, self.state_shardings)

    def abstract_step_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state that the steps take."""
        return _abstract(self.step_shapes, self.step_shardings)

    def placed(self, tree: Any) -> Any:
        """Return a restored state, or its parameters, as the steps take them."""
        return self._converted(padding.placed, tree, self.step_shardings)

    def stored(self, tree: Any) -> Any:
        """Return a state of a step, or its parameters, as checkpoints have them."""
        return self._converted(padding.stored, tree, self.state_shardings)

    def _converted(self, convert: Callable[..., Any], tree: Any, shardings: TrainState) -> Any:
        rows = self.added_rows
        if not isinstance(tree, TrainState):
            rows, shardings = rows.params, shardings.params
        return jax.tree.map(convert, tree, rows, shardings)

    def random_state(self) -> TrainState:
        """Return the state with randomly initialized parameters; every device computes its own shard."""
        with meshes.use_mesh(self.mesh, rules=self.rules):
            return jax.jit(self._random_step_state, out_shardings=self.step_shardings)()

    def place_params(self, params: Any) -> Any:
        """Return host arrays as parameters on the mesh, in new buffers.

        They are copied, because `device_put` may return the host array's own buffer, and a step donates its state.
        """
        placed = jax.tree.map(jnp.copy, jax.tree.map(jax.device_put, params, self.state_shardings.params))
        return self.placed(placed)

    def compile_step(self, step: Callable[..., Any], *others: Any) -> Callable[..., Any]:
        """Return the jitted `step(state, rows, *rest)`, which donates the state; `rest` has the shardings `others`."""
        return self.in_mesh(
            jax.jit(
                step,
                donate_argnums=0,
                in_shardings=(self.step_shardings, meshes.batch_sharding(self.mesh), *others),
                out_shardings=(self.step_shardings, meshes.replicated(self.mesh)),
                compiler_options=dict(self.compiler_options.values) or None,
            )
        )

    def compile_evaluation(self, evaluate: Callable[..., Any], *others: Any) -> Callable[..., Any]:
        """Return the jitted `evaluate(params, rows, *rest)`, whose results are replicated on every device."""
        return self.in_mesh(
            jax.jit(
                evaluate,
                in_shardings=(self.step_shardings.params, meshes.batch_sharding(self.mesh), *others),
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

    def _random_step_state(self) -> TrainState:
        return jax.tree.map(padding.add, nn.meta.unbox(self._boxed_state()), self.added_rows)


def _abstract(shapes: TrainState, shardings: TrainState) -> TrainState:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
