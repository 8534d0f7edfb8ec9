"""Dynamic masking on the device: new masks in every step (paper section 3.1, Appendix C.2).

The number of predictions is exact, as in create_pretraining_data.py of the original: an instance of n tokens, including
[CLS] and [SEP], gets `min(P, max(1, round(rate * n)))` predictions, never at [CLS], [SEP] or padding. Masks depend only
on the key and the index of the sequence in the global batch. Positions are chosen by rank: each eligible position gets
a random number, and the positions with the smallest numbers are chosen. That takes T^2 comparisons, but no sort or
scatter, which are slow on TPUs.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from bert_jax.config import MaskingConfig
from bert_jax.rows.layout import cls_positions, encoder_inputs
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.types import EncoderInputs, PretrainingBatch, Rows

_SHORTEST_INSTANCE = 3  # [CLS], a token, [SEP]


def default_max_predictions(max_seq_length: int, *, rate: float) -> int:
    """Return the slots that a sequence of one instance needs: at a rate of 0.15, 20 for length 128 and 77 for 512."""
    return max(1, math.ceil(max_seq_length * rate - 1e-9))


def predictions_per_length(max_seq_length: int, *, rate: float, limit: int) -> list[int]:
    """Return the number of predictions for each number of tokens 0..T; it rounds half to even, like the original."""
    return [0] + [min(limit, max(1, round(rate * n))) for n in range(1, max_seq_length + 1)]


@functools.lru_cache(maxsize=64)
def row_predictions(max_seq_length: int, *, instances: int, rate: float, limit: int) -> int:
    """Return P, the slots that a sequence of up to `instances` instances needs in the worst case.

    Each instance has up to `limit` predictions, and its number is rounded separately. So a packed sequence may need
    more slots than a single instance of its length: 85 instead of 77 for 16 instances in 512 tokens.
    """
    if instances == 1:
        return limit
    counts = np.asarray(predictions_per_length(max_seq_length, rate=rate, limit=limit))
    most = np.zeros(max_seq_length + 1, np.int64)  # index: number of tokens
    for _ in range(instances):
        fewer = most.copy()
        for size in range(_SHORTEST_INSTANCE, max_seq_length + 1):
            most[size:] = np.maximum(most[size:], fewer[: len(fewer) - size] + counts[size])
        if (most == fewer).all():
            break
    return max(limit, int(most[-1]))


def mask_rows(
    rows: Rows,
    *,
    key: Key[Array, ""],
    masking: MaskingConfig,
    special: SpecialIds,
    max_predictions: int,
    max_predictions_per_seq: int = 0,
) -> PretrainingBatch:
    """Return the masked batch of `rows`, which must be the whole global batch in order.

    `max_predictions` is P, the slots of a sequence; `max_predictions_per_seq` is the maximum per instance (0: P). With
    several instances in a sequence, each gets its exact number of predictions while slots remain; `row_predictions`
    returns enough slots for all.
    """
    inputs = encoder_inputs(rows)
    batch, length = inputs.input_ids.shape
    order_key, choice_key, word_key = jax.random.split(key, 3)
    ids = inputs.input_ids
    eligible = (inputs.segment_ids > 0) & (ids != special.cls_id) & (ids != special.sep_id)
    limit = max_predictions_per_seq or max_predictions
    budgets = _budgets(rows, rate=masking.rate, limit=limit, slots=max_predictions)
    order = jax.random.bits(order_key, (batch, length), jnp.uint32)
    if masking.whole_word:
        chosen = _choose_words(order, eligible=eligible, inputs=inputs, starts=rows.word_starts, budgets=budgets)
    else:
        chosen = _choose_tokens(order, eligible=eligible, segment_ids=inputs.segment_ids, budgets=budgets)
    # The p-th slot gets the p-th chosen position from the left; unused slots match no position.
    slot = jnp.cumsum(chosen, axis=1) - 1
    one_hot = chosen[:, None, :] & (slot[:, None, :] == jnp.arange(max_predictions)[None, :, None])  # [B, P, T]
    weights = one_hot.any(-1)
    masked = _corrupt(ids, chosen=chosen, key=choice_key, word_key=word_key, masking=masking, special=special)
    exists = rows.segment_lengths.sum(-1) > 0
    return PretrainingBatch(
        inputs=dataclasses.replace(inputs, input_ids=masked),
        rows=jnp.arange(batch, dtype=jnp.int32),
        positions=(one_hot * jnp.arange(length)[None, None, :]).sum(-1).astype(jnp.int32),
        labels=(one_hot * ids[:, None, :]).sum(-1).astype(jnp.int32),
        weights=weights.astype(jnp.float32),
        cls_positions=cls_positions(rows),
        next_sentence_labels=rows.next_sentence_labels.astype(jnp.int32),
        next_sentence_weights=exists.astype(jnp.float32),
    )


def _budgets(rows: Rows, *, rate: float, limit: int, slots: int) -> Int[Array, "B S"]:
    """Return the number of predictions of each instance; later instances get only the slots that remain of P."""
    table = jnp.asarray(predictions_per_length(rows.input_ids.shape[1], rate=rate, limit=limit), jnp.int32)
    counts = table[rows.segment_lengths.sum(-1)]
    before = jnp.cumsum(counts, axis=1) - counts
    return jnp.clip(slots - before, 0, counts)


def _choose_tokens(
    order: Array, *, eligible: Bool[Array, "B T"], segment_ids: Int[Array, "B T"], budgets: Int[Array, "B S"]
) -> Bool[Array, "B T"]:
    """Return, per instance, the eligible positions with the smallest random numbers; ties go to the left position."""
    length = order.shape[1]
    position = jnp.arange(length)
    number, other = order[:, :, None], order[:, None, :]
    smaller = (other < number) | ((other == number) & (position[None, None, :] < position[None, :, None]))
    rivals = eligible[:, None, :] & (segment_ids[:, :, None] == segment_ids[:, None, :])
    rank = (smaller & rivals).sum(-1)
    return eligible & (rank < _budget_of(segment_ids, budgets=budgets))


def _choose_words(
    order: Array,
    *,
    eligible: Bool[Array, "B T"],
    inputs: EncoderInputs,
    starts: Bool[Array, "B T"],
    budgets: Int[Array, "B S"],
) -> Bool[Array, "B T"]:
    """Return whole words, chosen in random order; a word that exceeds the budget is skipped, later words may still fit.

    This equals the original's loop over shuffled words (create_pretraining_data.py, `do_whole_word_mask`). Each round
    chooses all words up to the first that does not fit, then drops the words that are too long for the rest of the
    budget. It ends after two to four rounds.
    """
    # A word starts at an eligible token that is a word start or the first of its instance; it ends before the next one.
    # The last word of A may continue after [SEP], in data sets of the original recipe (records.py).
    begins = eligible & (starts | (inputs.position_ids <= 1))
    word = jnp.cumsum(begins, axis=1) * eligible  # index of the token's word from 1; 0: none
    same_word = (word[:, :, None] == word[:, None, :]) & eligible[:, :, None] & eligible[:, None, :]
    size = same_word.sum(-1)
    heads = same_word & begins[:, None, :]
    word_order = (heads * order[:, None, :]).sum(-1, dtype=jnp.uint32)  # the word's random number, at each token
    number, other = word_order[:, :, None], word_order[:, None, :]
    before = (other < number) | ((other == number) & (word[:, None, :] < word[:, :, None]))
    before &= inputs.segment_ids[:, :, None] == inputs.segment_ids[:, None, :]
    same_instance = inputs.segment_ids[:, :, None] == inputs.segment_ids[:, None, :]
    budget = _budget_of(inputs.segment_ids, budgets=budgets)

    def remaining(chosen: Bool[Array, "B T"]) -> Int[Array, "B T"]:
        return budget - (same_instance & chosen[:, None, :]).sum(-1)

    def fits(chosen: Bool[Array, "B T"], candidates: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
        return candidates & ~chosen & (size <= remaining(chosen))

    def body(state: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, candidates = state
        candidates = fits(chosen, candidates)
        ahead = (before & candidates[:, None, :]).sum(-1)  # tokens of earlier words
        accepted = candidates & (ahead + size <= remaining(chosen))
        # The next round's `fits` skips the first word that does not fit after the accepted ones.
        return chosen | accepted, candidates & ~accepted

    start = (jnp.zeros_like(eligible), eligible)
    return jax.lax.while_loop(lambda state: fits(*state).any(), body, start)[0]


def _budget_of(segment_ids: Int[Array, "B T"], *, budgets: Int[Array, "B S"]) -> Int[Array, "B T"]:
    """Return the budget of each position's instance, or 0 for padding."""
    numbers = jnp.arange(1, budgets.shape[1] + 1)
    return ((segment_ids[:, :, None] == numbers[None, None, :]) * budgets[:, None, :]).sum(-1)


def _corrupt(
    ids: Int[Array, "B T"],
    *,
    chosen: Bool[Array, "B T"],
    key: Key[Array, ""],
    word_key: Key[Array, ""],
    masking: MaskingConfig,
    special: SpecialIds,
) -> Int[Array, "B T"]:
    """Replace the chosen tokens with [MASK] or a random token, or keep them, with the configured probabilities."""
    draw: Float[Array, "B T"] = jax.random.uniform(key, ids.shape)
    words = jax.random.randint(word_key, ids.shape, 0, special.vocab_size, dtype=jnp.int32)
    replaced = jnp.where(draw < masking.mask_share, special.mask_id, words)
    replaced = jnp.where(draw < masking.mask_share + masking.random_share, replaced, ids)
    return jnp.where(chosen, replaced, ids)
