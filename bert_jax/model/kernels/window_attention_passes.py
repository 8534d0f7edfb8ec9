"""The two passes of the kernel for attention to a window: the computation of one grid step in VMEM.

A step has a block of up to 512 tokens of one sequence for a few heads, and a chunk of 128 tokens to each side. A chunk
of 128 queries attends to the keys within `reach` of it, which is the window rounded up to half a chunk or a whole one.
The backward pass has the queries to each side too: it computes all that the keys of a block receive, so that no step
adds to what another wrote. That is a fifth more scores for a block of 512, which costs less than sums in HBM.

Layouts and the order of the source are those of `fused_attention_passes.py`: scores have keys along sublanes and
queries along lanes, and the first matmuls of a head are written before the last operations of the previous head. Arrays
with keys along lanes begin `reach` before the block, so that the keys of every chunk of queries begin at a register.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from bert_jax.model import dropout
from bert_jax.model.kernels.head_pairs import HEAD_SIZE, LANES, MASKED, column, dot, half_of, lanes_of, one_head


@dataclasses.dataclass(frozen=True)
class WindowTiling:
    """The static parameters: T, tokens per grid step, window, heads per step, heads that share words, rate, direction.

    Tokens are counted from the first of the block, chunks of 128 too: -1 and `block` / 128 are those to each side.
    """

    length: int
    block: int
    window: int
    heads: int
    group_size: int
    rate: float
    left_to_right: bool

    @property
    def reach(self) -> int:
        """Return how many keys before the first and after the last query of a chunk are computed."""
        return LANES // 2 if self.window <= LANES // 2 else LANES

    @property
    def own_chunks(self) -> range:
        """Return the chunks of the block."""
        return range(self.block // LANES)

    @property
    def all_chunks(self) -> range:
        """Return the chunks of the block and those to each side."""
        return range(-1, self.block // LANES + 1)

    @property
    def keys(self) -> range:
        """Return the keys that the block attends to."""
        return range(-self.reach, self.block + self.reach)

    @property
    def most_keys(self) -> int:
        """Return the keys of a chunk of queries in the middle of a block."""
        return LANES + 2 * self.reach

    def keys_of(self, chunk: int) -> range:
        """Return the keys of a chunk of queries, as far as the step has them."""
        first = chunk * LANES
        return range(max(first - self.reach, self.keys.start), min(first + LANES + self.reach, self.keys.stop))

    def items(self, chunks: range) -> list[tuple[int, int]]:
        """Return the work items of a grid step in order: pairs of (chunk of queries, head)."""
        groups = [range(first, first + self.group_size) for first in range(0, self.heads, self.group_size)]
        return [(chunk, head) for group in groups for chunk in chunks for head in group]

    @property
    def score_scale(self) -> float:
        """Return 1 / sqrt(64), exact in every dtype."""
        return HEAD_SIZE**-0.5


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The blocks of an array in a grid step: refs of the chunk to the left, of the block, of the chunk to the right."""

    refs: Sequence[Any]
    plan: WindowTiling

    def cut(self, tokens: range) -> Iterator[tuple[Any, slice]]:
        """Yield where the tokens are: at most 128 of them, one block each. A matmul for each uses all matrix units."""
        block, start = self.plan.block, tokens.start
        while start < tokens.stop:
            number = 0 if start < 0 else 1 if start < block else 2
            first, end = ((-LANES, 0), (0, block), (block, block + LANES))[number]
            stop = min(start + LANES, end, tokens.stop)
            yield self.refs[number], slice(start - first, stop - first)
            start = stop

    def parts(self, tokens: range, lanes: slice) -> list[jax.Array]:
        """Return the features `lanes` of these tokens, of an array `[1, tokens, features]`."""
        return [ref[0, at, lanes] for ref, at in self.cut(tokens)]

    def row(self, chunk: int, *index: Any) -> jax.Array:
        """Return a chunk of an array `[1, ..., tokens]`, at `index` of the axes between."""
        ((ref, at),) = self.cut(_tokens(chunk))
        part: jax.Array = ref[(0, *index, at)]
        return part


def forward(seeds: Any, first_head: Any, *refs: Any, plan: WindowTiling) -> None:
    """Write softmax(q k^T) v and `lse`, the log-sum-exp of each query's scores; the arguments are refs of blocks."""
    segment_refs, (q,), k_refs, v_refs, rest = _split(refs, (3, 1, 3, 3))
    segments, k, v = (Tokens(parts, plan) for parts in (segment_refs, k_refs, v_refs))
    out, lse, bias, columns, words, v_t, scores = rest
    seed, first_of_step = seeds[pl.program_id(0)], first_head[0] + pl.program_id(2) * plan.heads
    _fill_bias(segments, columns, bias, chunks=plan.own_chunks, plan=plan)

    def score(chunk: int, head: int) -> jax.Array:
        query = one_head(q[0, _at(chunk), lanes_of(head)], head % 2, scale=plan.score_scale)
        max_score = None
        for rows, part in _with_rows(k.parts(plan.keys_of(chunk), lanes_of(head))):
            part_scores = dot(part, query, 1, 1) + bias[chunk, rows]
            scores[head % 2, rows] = part_scores
            partial = part_scores.reshape(-1, 8, LANES).max(0)
            max_score = partial if max_score is None else jnp.maximum(max_score, partial)
        assert max_score is not None
        return max_score.max(0, keepdims=True)

    def attend(chunk: int, head: int, max_score: jax.Array, factors: list[Any]) -> jax.Array:
        within = head % plan.group_size
        probs = jnp.exp(scores[head % 2] - max_score)
        total = probs.sum(0, keepdims=True)
        lse[0, head // plan.group_size, within : within + 1, _at(chunk)] = jnp.log(total) + max_score
        if plan.rate:
            probs = jnp.where(dropout.is_kept(words[...] * factors[within], rate=plan.rate), probs, 0.0)
        mixed = dot(v_t[head // 2, half_of(head), _span(plan.keys_of(chunk), plan)], probs.astype(q.dtype), 1, 0)
        return mixed * (1 / (1 - plan.rate) / total)

    items = plan.items(plan.own_chunks)
    score_max: Any = score(*items[0])
    factors, halves = [], []
    for (chunk, head), next_item in zip(items, [*items[1:], None], strict=True):
        next_max = score(*next_item) if next_item else None
        if chunk == 0 and head % 2 == 0:
            _transpose_keys(v, v_t, pair=head // 2, plan=plan)
        if head % plan.group_size == 0:
            factors = _fill_words(words, seed, first_of_step + head, chunk=chunk, plan=plan)
        halves.append(attend(chunk, head, score_max, factors))
        score_max = next_max
        if head % 2:
            out[0, _at(chunk), lanes_of(head)] = jnp.concatenate(halves, 0).T.astype(out.dtype)
            halves = []


def backward(seeds: Any, first_head: Any, *refs: Any, plan: WindowTiling) -> None:
    """Write dQ, dK and dV of a block.

    The probabilities P are recomputed from `lse`, the dropout mask from the same words. `delta` is the sum of dO * O
    over the features of a head, and dS = P * (dP - delta).
    """
    *inputs, rest = _split(refs, (3,) * 7)
    segments, q, k, v, out, lse, d_out = (Tokens(parts, plan) for parts in inputs)
    d_q, d_k, d_v, bias, columns, words, k_t, q_t, d_out_t, delta, k_sum, v_sum, chunk_probs, d_scores = rest
    dtype = d_q.dtype
    seed, first_of_step = seeds[pl.program_id(0)], first_head[0] + pl.program_id(2) * plan.heads
    _fill_bias(segments, columns, bias, chunks=plan.all_chunks, plan=plan)

    def scaled_d_out(chunk: int, head: int) -> jax.Array:
        head_d_out = d_out_t[head // 2, half_of(head), _at(chunk + 1)]
        return (head_d_out.astype(jnp.float32) * (1 / (1 - plan.rate))).astype(dtype)

    def scores(chunk: int, head: int, factors: list[Any]) -> None:
        lanes, slot, within = lanes_of(head), head % 2, head % plan.group_size
        query = one_head(q.parts(_tokens(chunk), lanes)[0], slot, scale=plan.score_scale)
        halves_of_pair = [scaled_d_out(chunk, head), jnp.zeros((HEAD_SIZE, LANES), dtype)]
        head_d_out = jnp.concatenate(halves_of_pair if slot == 0 else halves_of_pair[::-1], 0)
        head_lse = lse.row(chunk, head // plan.group_size, slice(within, within + 1))
        head_delta, keys = delta[head : head + 1, _at(chunk + 1)], plan.keys_of(chunk)
        for (rows, key), value in zip(_with_rows(k.parts(keys, lanes)), v.parts(keys, lanes), strict=True):
            logits = dot(key, query, 1, 1) + bias[chunk + 1, rows]
            probs = dropped_probs = jnp.exp(logits - head_lse)
            d_probs = dot(value, head_d_out, 1, 0)
            if plan.rate:
                keep = dropout.is_kept(words[rows] * factors[within], rate=plan.rate)
                dropped_probs, d_probs = jnp.where(keep, probs, 0.0), jnp.where(keep, d_probs, 0.0)
            d_scores[slot, rows] = (probs * (d_probs - head_delta)).astype(dtype)
            chunk_probs[slot, rows] = dropped_probs.astype(dtype)

    def products(chunk: int, head: int) -> jax.Array | None:
        pair, slot, within, keys = head // 2, head % 2, head % plan.group_size, plan.keys_of(chunk)
        rows, at = slice(0, len(keys)), _span(keys, plan)
        query = q_t[pair, half_of(head), _at(chunk + 1)]
        v_sum[within, :, at] += dot(scaled_d_out(chunk, head), chunk_probs[slot, rows], 1, 1)
        k_sum[within, :, at] += dot(query, d_scores[slot, rows], 1, 1)
        if chunk not in plan.own_chunks:
            return None
        return dot(k_t[pair, half_of(head), at], d_scores[slot, rows], 1, 0) * plan.score_scale

    def write_keys_and_values(head: int) -> None:
        within, own = head % plan.group_size, slice(plan.reach, plan.reach + plan.block)
        for sums, scale, gradient in ((k_sum, plan.score_scale, d_k), (v_sum, 1.0, d_v)):
            both = jnp.concatenate([sums[within - 1], sums[within]], 0) * scale
            gradient[0, :, lanes_of(head)] = both.T[own].astype(dtype)

    def transpose(pair: int) -> None:
        _transpose_keys(k, k_t, pair=pair, plan=plan)
        for chunk in plan.all_chunks:
            at, lanes = _at(chunk + 1), lanes_of(2 * pair)
            q_t[pair, :, at] = q.parts(_tokens(chunk), lanes)[0].T
            d_out_t[pair, :, at] = d_out.parts(_tokens(chunk), lanes)[0].T
            output = out.parts(_tokens(chunk), lanes)[0].T.astype(jnp.float32)
            product = d_out_t[pair, :, at].astype(jnp.float32) * output
            for head in (2 * pair, 2 * pair + 1):
                delta[head : head + 1, at] = product[half_of(head)].sum(0, keepdims=True)

    items = plan.items(plan.all_chunks)
    (first_chunk, _), (last_chunk, _) = items[0], items[-1]
    factors, halves = [], []
    for item, next_item in zip([None, *items], [*items, None], strict=True):
        if next_item:
            chunk, head = next_item
            if head % plan.group_size == 0:
                factors = _fill_words(words, seed, first_of_step + head, chunk=chunk, plan=plan)
            if chunk == first_chunk and head % 2 == 0:
                transpose(head // 2)
            scores(chunk, head, factors)
        if item:
            chunk, head = item
            if chunk == first_chunk:
                zeros = jnp.zeros((HEAD_SIZE, len(plan.keys)), jnp.float32)
                k_sum[head % plan.group_size] = v_sum[head % plan.group_size] = zeros
            halves.append(products(chunk, head))
            if head % 2:
                if chunk in plan.own_chunks:
                    d_q[0, _at(chunk), lanes_of(head)] = jnp.concatenate(halves, 0).T.astype(dtype)
                halves = []
                if chunk == last_chunk:
                    write_keys_and_values(head)


def _split(refs: Sequence[Any], sizes: Sequence[int]) -> list[Sequence[Any]]:
    """Return `refs` in parts of these sizes, and the rest."""
    ends = list(itertools.accumulate(sizes, initial=0))
    return [*(refs[start:stop] for start, stop in itertools.pairwise(ends)), refs[ends[-1] :]]


def _tokens(chunk: int) -> range:
    return range(chunk * LANES, (chunk + 1) * LANES)


def _at(chunk: int) -> slice:
    return slice(chunk * LANES, (chunk + 1) * LANES)


def _span(keys: range, plan: WindowTiling) -> slice:
    """Return where keys are in an array that has those of the block along lanes."""
    return slice(keys.start - plan.keys.start, keys.stop - plan.keys.start)


def _with_rows(parts: Sequence[jax.Array]) -> Iterator[tuple[slice, jax.Array]]:
    """Yield the rows of a chunk's scores that parts of its keys have, and the part."""
    start = 0
    for part in parts:
        yield slice(start, start + len(part)), part
        start += len(part)


def _transpose_keys(array: Tokens, transposed: Any, *, pair: int, plan: WindowTiling) -> None:
    for start in range(plan.keys.start, plan.keys.stop, LANES):
        tokens = range(start, start + LANES)
        transposed[pair, :, _span(tokens, plan)] = jnp.concatenate(array.parts(tokens, lanes_of(2 * pair)), 0).T


def _fill_bias(segments: Tokens, columns: Any, bias: Any, *, chunks: range, plan: WindowTiling) -> None:
    """Write the mask bias of chunks of queries, once for all heads: 0 for allowed keys, else a negative number.

    Padding may attend to padding near it, so that every query has a key.
    """
    block, last = pl.program_id(1), plan.length // plan.block - 1

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        # At the ends of a sequence, the chunk to the side is another chunk's copy, which belongs to no instance.
        absent = {plan.all_chunks[0]: block == 0, plan.all_chunks[-1]: block == last}
        rows = {}
        for chunk in plan.all_chunks:
            row = segments.row(chunk, slice(None)).astype(jnp.float32)
            rows[chunk] = jnp.where(absent[chunk], -1.0, row) if chunk in absent else row
            columns[_at(chunk + 1)] = column(rows[chunk])
        for number, chunk in enumerate(chunks):
            keys = plan.keys_of(chunk)
            distance = jax.lax.broadcasted_iota(jnp.int32, (len(keys), LANES), 0) + (keys.start - chunk * LANES)
            distance -= jax.lax.broadcasted_iota(jnp.int32, (len(keys), LANES), 1)
            near = distance >= -plan.window
            near &= distance <= (0 if plan.left_to_right else plan.window)
            allowed = near & (rows[chunk] == columns[keys.start + LANES : keys.stop + LANES])
            bias[number, : len(keys)] = jnp.where(allowed, 0.0, MASKED).astype(jnp.float32)


def _fill_words(words: Any, seed: Any, head: Any, *, chunk: int, plan: WindowTiling) -> list[Any]:
    """Write the words that the heads of a group, from `head` on, share for a chunk of queries; return their factors."""
    if not plan.rate:
        return []
    shared_by, keys = jnp.int32(dropout.SHARED_BY), plan.keys_of(chunk)
    group, within = jax.lax.div(head, shared_by), jax.lax.rem(head, shared_by)
    first = pl.program_id(1) * plan.block
    query = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1) + (first + chunk * LANES)
    key = jax.lax.broadcasted_iota(jnp.int32, (len(keys), 1), 0) + (first + keys.start)
    at = (query.astype(jnp.uint32), key.astype(jnp.uint32))
    counter = dropout.word_counter((group, *at), sizes=(1, plan.length, plan.length))
    words[: len(keys)] = dropout.mix(counter ^ seed)
    if plan.group_size == dropout.SHARED_BY:
        within = 0  # a whole group: the factors are constants
    return [dropout.multiplier(jnp.int32(within + number)) for number in range(plan.group_size)]
