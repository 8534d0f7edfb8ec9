"""The loss of MiniLMv2 (Wang et al. 2021, section 3.1): a student's self-attention relations against a teacher's.

The relations of a token are the softmax, over the tokens of its instance, of the scaled dot products of its vector with
theirs. The vectors are the queries, keys or values of a layer, split into relation heads, whose number is the same on
both sides; so the widths and the attention heads of the two models may differ.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_MASKED = -1e30  # finite: two of them have a difference, 0


def relation_divergences(
    student: Float[Array, "B T D"],
    *,
    teacher: Float[Array, "B T E"],
    segment_ids: Int[Array, "B T"],
    heads: int,
) -> Float[Array, "B T"]:
    """Return the KL divergence of each token's relations from the teacher's, the mean over relation heads.

    Padding, the tokens of segment 0, has relations among itself, which nothing reads.
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]

    def add_head(
        total: Float[Array, "B T"], vectors: tuple[Float[Array, "B T d"], Float[Array, "B T e"]]
    ) -> tuple[Float[Array, "B T"], None]:
        log_student, log_teacher = (_log_relations(of_head, same) for of_head in vectors)
        return total + (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(-1), None

    # Head by head, and again in the backward pass: the relations of 48 heads in 32 sequences of 512 are 1.6 GB.
    step = jax.checkpoint(add_head, prevent_cse=False)
    start = jnp.zeros(segment_ids.shape, jnp.float32)
    total, _ = jax.lax.scan(step, start, (_split(student, heads), _split(teacher, heads)))
    return total / heads


def token_weights(segment_ids: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Return 1 / |x| for each token of an instance x, 0 for padding: the paper's mean over the tokens of a text."""
    sizes = (segment_ids[:, :, None] == segment_ids[:, None, :]).sum(-1)
    return jnp.where(segment_ids > 0, 1 / sizes, 0.0)


def _log_relations(vectors: Float[Array, "B T d"], same: Bool[Array, "B T T"]) -> Float[Array, "B T T"]:
    scores = jnp.einsum("BqK,BkK->Bqk", vectors, vectors, preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(jnp.where(same, scores / math.sqrt(vectors.shape[-1]), _MASKED), axis=-1)


def _split(vectors: Float[Array, "B T D"], heads: int) -> Float[Array, "A B T d"]:
    return jnp.moveaxis(vectors.reshape(*vectors.shape[:2], heads, -1), 2, 0)
