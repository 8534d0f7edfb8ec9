"""The two passes of the fused attention kernel: the computation of one grid step in VMEM.

A step has all positions of one sequence for a few heads, as `[T, heads * 64]`: two heads fill the 128 lanes of a
register, so nothing is transposed in HBM. Scores are stored transposed, keys along sublanes and queries along lanes
(`[T, block]`: all keys of 256 queries, or of 128 if 256 does not divide T), for three reasons:

* Maximum and sum reduce over sublanes, which takes additions but no shuffles.
* `lse` and `delta` of the queries are rows, whose broadcast costs nothing.
* The product with the values, and the three products of the backward pass that contract over T, have the 64 features
  of a head along the streamed side of the matrix unit, which has no padding.

The products of queries and keys contract over 64 of the 128 rows of the matrix unit (256 on v6e), so they run at half
(a quarter) of its rate; the other half multiplies zeros.

Up to 512 tokens, a step has no loop, and its source order is the schedule: the first matmuls of a head are written
before the last operations of the previous head, also across blocks of queries. The compiler fills the gaps of one with
the other only if they are adjacent. Steps of longer sequences loop over the blocks of queries: unrolled, the compiler
kept 11.6 MiB of registers in VMEM (backward pass, 1,024 tokens, v4), and with the arrays needed 19.9 of 16 MiB.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from bert_jax.model import dropout
from bert_jax.model.kernels.head_pairs import HEAD_SIZE, LANES, MASKED, column, dot, half_of, lanes_of, one_head

LONGEST_UNROLLED = 512  # tokens
Item = tuple[Any, int]  # a block of queries, a number or a loop's variable; a head


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The static parameters: T, heads per grid step, heads that share words (2 or 4), rate, direction, window."""

    length: int
    heads: int
    group_size: int
    rate: float
    left_to_right: bool
    window: int = 0  # 0: none

    @property
    def loops(self) -> bool:
        """Return whether a step loops over the blocks of queries."""
        return self.length > LONGEST_UNROLLED

    @property
    def block(self) -> int:
        """Return the queries per block: the width of a v6e's matrix unit if it divides T."""
        return 2 * LANES if self.length % (2 * LANES) == 0 else LANES

    @property
    def blocks(self) -> int:
        """Return the blocks of queries of a sequence."""
        return self.length // self.block

    @property
    def items(self) -> list[tuple[int, int]]:
        """Return the work items of a grid step in order: pairs of (block of queries, head)."""
        groups = [range(first, first + self.group_size) for first in range(0, self.heads, self.group_size)]
        return [(index, head) for group in groups for index in range(self.blocks) for head in group]

    @property
    def score_scale(self) -> float:
        """Return 1 / sqrt(64), exact in every dtype."""
        return HEAD_SIZE**-0.5


def forward(
    seeds: Any,
    first_head: Any,
    segments: Any,
    positions: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    *rest: Any,
    plan: Tiling,
) -> None:
    """Write softmax(q k^T) v and `lse`, the log-sum-exp of each query's scores; the arguments are refs of blocks."""
    bias, words, v_t, scores = rest
    seed, first_of_step = seeds[pl.program_id(0)], first_head[0] + pl.program_id(1) * plan.heads
    _fill_bias(segments, positions, bias, plan=plan)

    def score(index: Any, head: int) -> jax.Array:
        queries, lanes = _queries(index, plan), lanes_of(head)
        query = one_head(q[0, queries, lanes], head % 2, scale=plan.score_scale)
        max_score = None
        for keys in _blocks_of_lanes(plan):
            part_scores = dot(k[0, keys, lanes], query, 1, 1) + bias[keys, queries]
            scores[head % 2, keys] = part_scores
            partial = part_scores.reshape(-1, 8, plan.block).max(0)
            max_score = partial if max_score is None else jnp.maximum(max_score, partial)
        assert max_score is not None
        return max_score.max(0, keepdims=True)

    def attend(index: Any, head: int, max_score: jax.Array, factors: list[Any]) -> jax.Array:
        probs = jnp.exp(scores[head % 2] - max_score)
        total = probs.sum(0, keepdims=True)
        within = head % plan.group_size
        lse[0, head // plan.group_size, within : within + 1, _queries(index, plan)] = jnp.log(total) + max_score
        if plan.rate:
            probs = jnp.where(dropout.is_kept(words[...] * factors[within], rate=plan.rate), probs, 0.0)
        mixed = dot(v_t[head // 2, half_of(head)], probs.astype(v.dtype), 1, 0)
        return mixed * (1 / (1 - plan.rate) / total)

    def transpose(pair: int) -> None:
        v_t[pair] = v[0, :, lanes_of(2 * pair)].T

    def walk(items: list[Item]) -> None:
        score_max: Any = score(*items[0])
        factors, halves = [], []
        for (index, head), next_item in zip(items, [*items[1:], None], strict=True):
            next_max = score(*next_item) if next_item else None
            if _is_first(index) and head % 2 == 0:
                transpose(head // 2)
            if head % plan.group_size == 0:
                factors = _fill_words(words, seed, first_of_step + head, block=index, plan=plan)
            halves.append(attend(index, head, score_max, factors))
            score_max = next_max
            if head % 2:
                out[0, _queries(index, plan), lanes_of(head)] = jnp.concatenate(halves, 0).T.astype(out.dtype)
                halves = []

    if plan.loops:
        for pair in range(plan.heads // 2):
            transpose(pair)
    _walk_all(walk, plan)


def backward(
    seeds: Any,
    first_head: Any,
    segments: Any,
    positions: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    d_out: Any,
    d_q: Any,
    d_k: Any,
    d_v: Any,
    q_total: Any,
    k_total: Any,
    v_total: Any,
    *rest: Any,
    plan: Tiling,
) -> None:
    """Write dQ, dK and dV, and their sums over positions: the contribution of this sequence to the bias gradients.

    The probabilities P are recomputed from `lse`, the dropout mask from the same words. `delta` is the sum of dO * O
    over the features of a head, and dS = P * (dP - delta).
    """
    bias, words, k_t, q_t, d_out_t, delta, k_sum, v_sum, block_probs, d_scores = rest
    seed, first_of_step = seeds[pl.program_id(0)], first_head[0] + pl.program_id(1) * plan.heads
    last_block = plan.blocks - 1
    _fill_bias(segments, positions, bias, plan=plan)

    def scaled_d_out(index: Any, head: int) -> jax.Array:
        head_d_out = d_out_t[head // 2, half_of(head), _queries(index, plan)].astype(jnp.float32) * (
            1 / (1 - plan.rate)
        )
        return head_d_out.astype(q.dtype)

    def scores(index: Any, head: int, factors: list[Any]) -> None:
        queries, lanes, slot, within = _queries(index, plan), lanes_of(head), head % 2, head % plan.group_size
        query = one_head(q[0, queries, lanes], slot, scale=plan.score_scale)
        zeros = jnp.zeros((HEAD_SIZE, plan.block), q.dtype)
        halves_of_pair = [scaled_d_out(index, head), zeros]
        head_d_out = jnp.concatenate(halves_of_pair if slot == 0 else halves_of_pair[::-1], 0)
        head_lse, head_delta = (
            lse[0, head // plan.group_size, within : within + 1, queries],
            delta[head : head + 1, queries],
        )
        for keys in _blocks_of_lanes(plan):
            logits = dot(k[0, keys, lanes], query, 1, 1) + bias[keys, queries]
            probs = dropped_probs = jnp.exp(logits - head_lse)
            d_probs = dot(v[0, keys, lanes], head_d_out, 1, 0)
            if plan.rate:
                keep = dropout.is_kept(words[keys] * factors[within], rate=plan.rate)
                dropped_probs, d_probs = jnp.where(keep, probs, 0.0), jnp.where(keep, d_probs, 0.0)
            d_scores[slot, keys] = (probs * (d_probs - head_delta)).astype(q.dtype)
            block_probs[slot, keys] = dropped_probs.astype(q.dtype)

    def products(index: Any, head: int) -> jax.Array:
        pair, slot, within = head // 2, head % 2, head % plan.group_size
        d_value = dot(scaled_d_out(index, head), block_probs[slot], 1, 1)
        d_key = dot(q_t[pair, half_of(head), _queries(index, plan)], d_scores[slot], 1, 1)
        v_sum[within] = d_value if _is_first(index) else v_sum[within] + d_value
        k_sum[within] = d_key if _is_first(index) else k_sum[within] + d_key
        return dot(k_t[pair, half_of(head)], d_scores[slot], 1, 0)

    def write_queries(index: Any, head: int, halves: list[jax.Array]) -> None:
        d_query = (jnp.concatenate(halves, 0) * plan.score_scale).T
        d_q[0, _queries(index, plan), lanes_of(head)] = d_query.astype(d_q.dtype)
        total, at = d_query.sum(0, keepdims=True), (0, slice(None), lanes_of(head))
        q_total[at] = total if _is_first(index) else q_total[at] + total

    def write_keys_and_values(head: int) -> None:
        within = head % plan.group_size
        for sums, scale, gradient, total in ((k_sum, plan.score_scale, d_k, k_total), (v_sum, 1.0, d_v, v_total)):
            both = (jnp.concatenate([sums[within - 1], sums[within]], 0) * scale).T
            gradient[0, :, lanes_of(head)] = both.astype(gradient.dtype)
            total[0, :, lanes_of(head)] = both.sum(0, keepdims=True)

    def transpose(pair: int) -> None:
        at = lanes_of(2 * pair)
        k_t[pair], q_t[pair], d_out_t[pair] = k[0, :, at].T, q[0, :, at].T, d_out[0, :, at].T
        product = d_out_t[pair].astype(jnp.float32) * out[0, :, at].T.astype(jnp.float32)
        for head in (2 * pair, 2 * pair + 1):
            delta[head : head + 1] = product[half_of(head)].sum(0, keepdims=True)

    def walk(items: list[Item]) -> None:
        factors, halves = [], []
        for item, next_item in zip([None, *items], [*items, None], strict=True):
            if next_item:
                index, head = next_item
                if head % plan.group_size == 0:
                    factors = _fill_words(words, seed, first_of_step + head, block=index, plan=plan)
                if _is_first(index) and head % 2 == 0:
                    transpose(head // 2)
                scores(index, head, factors)
            if item:
                index, head = item
                halves.append(products(index, head))
                if head % 2:
                    write_queries(index, head, halves)
                    halves = []
                    if not plan.loops and index == last_block:
                        write_keys_and_values(head)

    if plan.loops:
        for pair in range(plan.heads // 2):
            transpose(pair)
        for sums in (v_sum, k_sum, q_total):
            sums[...] = jnp.zeros_like(sums)
    _walk_all(walk, plan)
    if plan.loops:
        for head in range(1, plan.heads, 2):
            write_keys_and_values(head)


def _walk_all(walk: Callable[[list[Item]], None], plan: Tiling) -> None:
    """Call `walk` with all items, or in a loop with those of each block of queries."""
    if not plan.loops:
        return walk(plan.items)
    assert plan.heads == plan.group_size  # the sums over blocks hold one group

    def one_block(index: Any, carry: tuple[()]) -> tuple[()]:
        walk([(index, head) for head in range(plan.heads)])
        return carry

    jax.lax.fori_loop(0, plan.blocks, one_block, ())
    return None


def _is_first(index: Any) -> bool:
    """Return whether this is the first block, whose sums start here; those of a loop start before it."""
    return isinstance(index, int) and index == 0


def _queries(index: Any, plan: Tiling) -> Any:
    start = index * plan.block
    return pl.ds(start if isinstance(index, int) else pl.multiple_of(start, plan.block), plan.block)


def _blocks_of_lanes(plan: Tiling) -> list[slice]:
    """Return the positions in blocks of 128. One matmul per 128 keys uses all matrix units."""
    return [slice(start, start + LANES) for start in range(0, plan.length, LANES)]


def _fill_bias(segments: Any, positions: Any, bias: Any, *, plan: Tiling) -> None:
    """Write the mask bias of a sequence, once for all heads: 0 for allowed keys, a large negative number for others."""

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        key = column(segments[0])
        key_position = column(positions[0]) if plan.left_to_right or plan.window else None
        for queries in _blocks_of_lanes(plan):
            query = segments[0, :, queries].astype(jnp.float32)
            allowed = (key > 0) & ((query == key) | (query == 0))
            if key_position is not None:
                query_position = positions[0, :, queries].astype(jnp.float32)
                if plan.left_to_right:
                    allowed &= query_position >= key_position
                if plan.window:
                    allowed &= (jnp.abs(query_position - key_position) <= plan.window) | (query == 0)
            bias[:, queries] = jnp.where(allowed, 0.0, MASKED).astype(jnp.float32)


def _fill_words(words: Any, seed: Any, head: Any, *, block: Any, plan: Tiling) -> list[Any]:
    """Write the words that the heads of a group, from `head` on, share for a block of queries; return their factors."""
    if not plan.rate:
        return []
    shared_by = jnp.int32(dropout.SHARED_BY)
    group, within = jax.lax.div(head, shared_by), jax.lax.rem(head, shared_by)
    query = jax.lax.broadcasted_iota(jnp.uint32, (1, plan.block), 1) + jnp.uint32(block * plan.block)
    key = jax.lax.broadcasted_iota(jnp.uint32, (plan.length, 1), 0)
    counter = dropout.word_counter((group, query, key), sizes=(1, plan.length, plan.length))
    words[...] = dropout.mix(counter ^ seed)
    if plan.group_size == dropout.SHARED_BY:
        within = 0  # a whole group: the factors are constants
    return [dropout.multiplier(jnp.int32(within + number)) for number in range(plan.group_size)]
