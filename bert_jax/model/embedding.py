"""Look up rows of a table, with a backward pass that suits the size of the table."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bert_jax.model.chip import is_cpu, is_gpu

# Tokens whose equal ids are summed at once on a GPU, which takes several times as many as a TPU: the cost grows with
# their square. The sums are added into a float32 copy of the table.
_EQUAL_ROWS = 8192
_VOCAB_MULTIPLE = 128


@jax.custom_vjp
def lookup(table: Float[Array, "n D"], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Return the rows of a small table (positions, token types) at `ids`, in float32.

    The gradient is a matmul with the one-hot ids, summed in float32: a TPU has no fast scatter.
    """
    return jnp.take(table, ids, axis=0).astype(jnp.float32)


def _lookup_forward(table: Array, ids: Array) -> tuple[Array, tuple[Array, Array]]:
    return lookup(table, ids), (table, ids)


def _lookup_backward(saved: tuple[Array, Array], grads: Float[Array, "B T D"]) -> tuple[Array, None]:
    table, ids = saved
    total = jnp.einsum(
        "BTn,BTD->nD",
        jax.nn.one_hot(ids, len(table), dtype=table.dtype),
        grads.astype(table.dtype),
        preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST if table.dtype == jnp.float32 else None,
    )
    return total.astype(table.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


@jax.custom_vjp
def tied_lookup(
    table: Float[Array, "V D"], ids: Int[Array, "B T"]
) -> tuple[Float[Array, "B T D"], Float[Array, "V D"]]:
    """Return the rows of the vocabulary's table at `ids` in float32, and the table for a head that is tied to it.

    The head's gradient of the table comes back through here, and the rows' gradients are added into it: one array of
    the table's size is written, not three.
    """
    return jnp.take(table, ids, axis=0).astype(jnp.float32), table


def _tied_forward(table: Array, ids: Array) -> tuple[tuple[Array, Array], Array]:
    return tied_lookup(table, ids), ids


def _tied_backward(ids: Array, grads: tuple[Array, Array]) -> tuple[Array, None]:
    to_rows, to_table = grads
    if to_table.dtype == jnp.float32 and not is_gpu():
        return to_table.at[ids].add(to_rows), None
    ids = jax.lax.optimization_barrier(ids.reshape(-1))
    rows = to_rows.reshape(-1, to_rows.shape[-1]).astype(to_table.dtype)
    if not is_gpu():
        return to_table.at[ids].add(sum_equal_rows(ids, rows)), None
    table = to_table.astype(jnp.float32)
    for start in range(0, len(ids), _EQUAL_ROWS):
        some = slice(start, start + _EQUAL_ROWS)
        table = table.at[ids[some]].add(sum_equal_rows(ids[some], rows[some], dtype=jnp.float32))
    return table.astype(to_table.dtype), None


def sum_equal_rows(ids: Int[Array, " n"], rows: Float[Array, "n D"], *, dtype: Any = None) -> Float[Array, "n D"]:
    """Return at the first occurrence of each id the float32 sum of all its rows, rounded once to `dtype`; 0 elsewhere.

    So a table in bfloat16 takes one addition an id, where adding thousands of rows one by one would lose most of them;
    and the additions of a GPU, in whatever order they come, give the same bits. The sum is a matmul with the equality
    of ids: 8 of 2500 K cycles a sequence on a TPU v5e (32 rows of 128); a float32 copy of the table to add into costs
    30.
    """
    place = jnp.arange(len(ids))
    equal = ids[:, None] == ids[None, :]
    # The fewest places among the equal ids: their first occurrence.
    first = jnp.where(equal, place[None, :], len(ids)).min(1) == place
    chosen = (equal & first[:, None]).astype(rows.dtype)
    precision = jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None
    total = jnp.dot(chosen, rows, precision=precision, preferred_element_type=jnp.float32)
    return total.astype(dtype or rows.dtype)


tied_lookup.defvjp(_tied_forward, _tied_backward)


@jax.custom_vjp
def tied_logits(
    hidden: Float[Array, "B P D"], table: Float[Array, "V D"], bias: Float[Array, " V"]
) -> Float[Array, "B P V"]:
    """Return float32 `hidden @ table.T + bias`.

    The gradient of the logits, the largest array of a step, is written once, in the dtype of `hidden`, and read by both
    matmuls and the bias.
    """
    if (
        is_cpu()
    ):  # jax 0.7.2 cannot run this product in bfloat16 where a CPU has AVX512_BF16; float32 has the same terms
        hidden, table = hidden.astype(jnp.float32), table.astype(jnp.float32)
    logits = jnp.einsum("BPD,VD->BPV", hidden, _padded(table, axis=0), preferred_element_type=jnp.float32)
    return logits[..., : len(table)] + bias


def _padded(values: Array, *, axis: int) -> Array:
    """Return `values` with zeros behind, so that a GPU's matmuls take whole vectors of the vocabulary.

    30,522 is no multiple of 8, and cuBLAS's kernels for that take three times as long (benchmarks/RESULTS.md).
    """
    short = -values.shape[axis] % _VOCAB_MULTIPLE if is_gpu() else 0
    return values if not short else jnp.pad(values, [(0, short * (axis == number)) for number in range(values.ndim)])


def _logits_forward(hidden: Array, table: Array, bias: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return tied_logits(hidden, table, bias), (hidden, table, bias)


def _logits_backward(saved: tuple[Array, Array, Array], grads: Float[Array, "B P V"]) -> tuple[Array, Array, Array]:
    hidden, table, bias = saved
    narrow = _padded(grads.astype(hidden.dtype), axis=2)
    # A matmul with ones: the sum over rows then rides on the MXU, in float32.
    ones = jnp.ones(narrow.shape[:2], narrow.dtype)
    to_bias = jnp.einsum("BP,BPV->V", ones, narrow, preferred_element_type=jnp.float32)
    to_hidden = jnp.einsum("BPV,VD->BPD", narrow, _padded(table, axis=0))
    to_table = jnp.einsum("BPV,BPD->VD", narrow, hidden, preferred_element_type=jnp.float32)
    size = len(table)
    return to_hidden.astype(hidden.dtype), to_table[:size].astype(table.dtype), to_bias[:size].astype(bias.dtype)


tied_logits.defvjp(_logits_forward, _logits_backward)
