"""Pooling of the states of each instance's tokens to one vector, as Pooling of sentence-transformers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_EXACT = jax.lax.Precision.HIGHEST  # a mean over a text's tokens in float32, on TPUs too


def instance_members(segment_ids: Int[Array, "B T"], *, instances: int) -> Float[Array, "B S T"]:
    """Return 1 where a token belongs to an instance; `segment_ids` number the instances from 1, and 0 is padding."""
    numbers = jnp.arange(1, instances + 1)[None, :, None]
    return (segment_ids[:, None, :] == numbers).astype(jnp.float32)


def pool(hidden: Float[Array, "B T D"], members: Float[Array, "B S T"], *, pooling: str) -> Float[Array, "B S D"]:
    """Return the pooled states of the members of each instance, whose tokens follow each other."""
    members = members.astype(hidden.dtype)
    count = jnp.maximum(members.sum(-1, keepdims=True), 1)
    start = members.argmax(-1)[..., None]
    if pooling in ("cls", "lasttoken"):
        chosen = start if pooling == "cls" else start + count.astype(start.dtype) - 1
        # A matmul with one-hot vectors: the backward pass of a gather is a scatter, which is slow on TPUs.
        weights, count = jax.nn.one_hot(chosen[..., 0], hidden.shape[1], dtype=hidden.dtype), jnp.ones_like(count)
    elif pooling == "max":
        return jnp.where(members[..., None] > 0, hidden[:, None], -jnp.inf).max(2)
    elif pooling == "weightedmean":
        weights = members * jnp.maximum(jnp.arange(1, members.shape[-1] + 1)[None, None] - start, 0)
        count = jnp.maximum(weights.sum(-1, keepdims=True), 1)
    else:
        weights = members
    total = jnp.einsum("BST,BTD->BSD", weights, hidden, precision=_EXACT)
    return total / (jnp.sqrt(count) if pooling == "mean_sqrt_len_tokens" else count)
