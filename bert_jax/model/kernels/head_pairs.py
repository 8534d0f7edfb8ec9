"""What the TPU attention kernels share: two heads of 64 side by side fill the 128 lanes of a register."""

import jax
import jax.numpy as jnp

LANES = 128  # of a register: two heads side by side
HEAD_SIZE = 64
MASKED = -1e30


def dot(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """Return the float32 product of two matrices, contracted over these axes."""
    contraction = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, contraction, preferred_element_type=jnp.float32)


def lanes_of(head: int) -> slice:
    """Return the lanes of a head and of the other head in its pair."""
    return slice(head // 2 * LANES, (head // 2 + 1) * LANES)


def half_of(head: int) -> slice:
    """Return the rows of a head in the transposed values of its pair."""
    return slice(head % 2 * HEAD_SIZE, head % 2 * HEAD_SIZE + HEAD_SIZE)


def one_head(pair: jax.Array, which: int, *, scale: float) -> jax.Array:
    """Return a pair's `[T, 128]`, scaled, with zeros in the lanes of the other head."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return (pair.astype(jnp.float32) * jnp.where((lane >= HEAD_SIZE) == bool(which), scale, 0.0)).astype(pair.dtype)


def column(row: jax.Array) -> jax.Array:
    """Return a row `[1, T]` along sublanes, the same in every lane, in float32."""
    # It is transposed as a whole, since broadcasting lanes takes shuffles.
    return jnp.broadcast_to(row, (LANES, row.shape[1])).astype(jnp.float32).T
