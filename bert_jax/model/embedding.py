"""Embedding look-ups and tied logits, with backward passes that suit the size of the table."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.model.chip import is_cpu, is_gpu
from bert_jax.model.dense import kernel_init

# Tokens per call of `sum_equal_rows` on a GPU, which has several times as many tokens as a TPU: the cost is quadratic.
# The sums are added to a float32 copy of the table.
_EQUAL_ROWS = 8192
_VOCAB_MULTIPLE = 128
_NO_LOGIT = -1e9  # exp of it is 0 in float32


def word_table(module: nn.Module, *, config: ModelConfig) -> Float[Array, "R D"]:
    """Return the parameter `word_embeddings` of `module`.

    A step on TPUs adds rows of zeros to it (`parallel/padding.py`), which Flax would refuse as another shape.
    """
    if module.is_initializing():
        init = kernel_init(config, ("padded_vocab", "embed"))
        return cast(Array, module.param("word_embeddings", init, (config.vocab_size, config.hidden_size)))
    return cast(Array, nn.meta.unbox(module.get_variable("params", "word_embeddings")))


@jax.custom_vjp
def lookup(table: Float[Array, "n D"], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Return the rows of a small table (positions, token types) at `ids`, in float32.

    The gradient is a matmul with the one-hot ids, accumulated in float32: scatter is slow on TPUs.
    """
    return jnp.take(table, ids, axis=0).astype(jnp.float32)


def _lookup_forward(table: Array, ids: Array) -> tuple[Array, tuple[Array, Array]]:
    return lookup(table, ids), (table, ids)


def _lookup_backward(residuals: tuple[Array, Array], grads: Float[Array, "B T D"]) -> tuple[Array, None]:
    table, ids = residuals
    sums = jnp.einsum(
        "BTn,BTD->nD",
        jax.nn.one_hot(ids, len(table), dtype=table.dtype),
        grads.astype(table.dtype),
        preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST if table.dtype == jnp.float32 else None,
    )
    return sums.astype(table.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


@jax.custom_vjp
def tied_lookup(
    table: Float[Array, "R D"], ids: Int[Array, "B T"]
) -> tuple[Float[Array, "B T D"], Float[Array, "R D"]]:
    """Return the rows of the word embeddings at `ids` in float32, and the table for a head that is tied to it.

    The head's gradient of the table passes through this function, which adds the gradients of the rows to it: one array
    of the table's size is written instead of three.
    """
    return jnp.take(table, ids, axis=0).astype(jnp.float32), table


def _tied_forward(table: Array, ids: Array) -> tuple[tuple[Array, Array], Array]:
    return tied_lookup(table, ids), ids


def _tied_backward(ids: Array, grads: tuple[Array, Array]) -> tuple[Array, None]:
    d_rows, d_table = grads
    if d_table.dtype == jnp.float32 and not is_gpu():
        return d_table.at[ids].add(d_rows), None
    ids = jax.lax.optimization_barrier(ids.reshape(-1))
    rows = d_rows.reshape(-1, d_rows.shape[-1]).astype(d_table.dtype)
    if not is_gpu():
        return d_table.at[ids].add(sum_equal_rows(ids, rows)), None
    table = d_table.astype(jnp.float32)
    for start in range(0, len(ids), _EQUAL_ROWS):
        chunk = slice(start, start + _EQUAL_ROWS)
        table = table.at[ids[chunk]].add(sum_equal_rows(ids[chunk], rows[chunk], dtype=jnp.float32))
    return table.astype(d_table.dtype), None


def sum_equal_rows(ids: Int[Array, " n"], rows: Float[Array, "n D"], *, dtype: Any = None) -> Float[Array, "n D"]:
    """Return at the first occurrence of each id the float32 sum of its rows, rounded once to `dtype`; 0 elsewhere.

    So a bfloat16 table gets one addition per id; adding thousands of rows one by one would lose most of them. It also
    makes the result on a GPU independent of the order of the additions. The sum is a matmul with the equality of ids: 8
    of 2500 K cycles per sequence on a TPU v5e (32 sequences of 128 tokens); adding to a float32 copy of the table costs
    30.
    """
    position = jnp.arange(len(ids))
    equal = ids[:, None] == ids[None, :]
    # The lowest position among equal ids is their first occurrence.
    first = jnp.where(equal, position[None, :], len(ids)).min(1) == position
    matches = (equal & first[:, None]).astype(rows.dtype)
    precision = jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None
    sums = jnp.dot(matches, rows, precision=precision, preferred_element_type=jnp.float32)
    return sums.astype(dtype or rows.dtype)


tied_lookup.defvjp(_tied_forward, _tied_backward)


@jax.custom_vjp
def tied_logits(
    hidden: Float[Array, "B P D"], table: Float[Array, "R D"], bias: Float[Array, " V"]
) -> Float[Array, "B P R"]:
    """Return float32 `hidden @ table.T + bias`; the logits of rows that the vocabulary does not have are `_NO_LOGIT`.

    The gradient of the logits, the largest array of a step, is written once, in the dtype of `hidden`. Both matmuls and
    the bias gradient read it.
    """
    if (
        is_cpu()
    ):  # jax 0.7.2 cannot run this product in bfloat16 where a CPU has AVX512_BF16; float32 has the same terms
        hidden, table = hidden.astype(jnp.float32), table.astype(jnp.float32)
    logits = jnp.einsum("BPD,VD->BPV", hidden, _padded(table, axis=0), preferred_element_type=jnp.float32)
    return logits[..., : len(table)] + _with_padding(bias, rows=len(table))[None, None]


def _with_padding(bias: Float[Array, " V"], *, rows: int) -> Float[Array, " R"]:
    """Return the bias with a value for every row of a table: tokens that do not exist have no probability."""
    added = rows - len(bias)
    return jnp.pad(bias, (0, added), constant_values=_NO_LOGIT) if added else bias


def _padded(values: Array, *, axis: int) -> Array:
    """Return `values`, on a GPU padded with zeros to a multiple of 128 along the vocabulary axis.

    30,522 is not a multiple of 8, and cuBLAS's kernels for such sizes take three times as long (benchmarks/RESULTS.md).
    """
    padding = -values.shape[axis] % _VOCAB_MULTIPLE if is_gpu() else 0
    return (
        values if not padding else jnp.pad(values, [(0, padding * (axis == number)) for number in range(values.ndim)])
    )


def _logits_forward(hidden: Array, table: Array, bias: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return tied_logits(hidden, table, bias), (hidden, table, bias)


def _logits_backward(residuals: tuple[Array, Array, Array], grads: Float[Array, "B P V"]) -> tuple[Array, Array, Array]:
    hidden, table, bias = residuals
    d_logits = _padded(grads.astype(hidden.dtype), axis=2)
    # A matmul with ones computes the sum over tokens on the matrix units, in float32.
    ones = jnp.ones(d_logits.shape[:2], d_logits.dtype)
    d_bias = jnp.einsum("BP,BPV->V", ones, d_logits, preferred_element_type=jnp.float32)
    d_hidden = jnp.einsum("BPV,VD->BPD", d_logits, _padded(table, axis=0))
    d_table = jnp.einsum("BPV,BPD->VD", d_logits, hidden, preferred_element_type=jnp.float32)
    size = len(table)
    return d_hidden.astype(hidden.dtype), d_table[:size].astype(table.dtype), d_bias[: len(bias)].astype(bias.dtype)


tied_logits.defvjp(_logits_forward, _logits_backward)
