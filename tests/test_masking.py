"""Masking: exact counts, the shares of Appendix C.2, transcripts of the original, independence of everything else."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
import pytest
from tiny_model import SPECIAL, SWEEP, VOCAB_SIZE, instance_spans, on_host, random_rows, to_device

from bert_jax.config import MaskingConfig, MeshConfig
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.masking import default_max_predictions, mask_rows, predictions_per_length
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.types import PretrainingBatch, Rows

pytestmark = pytest.mark.numerics

# Four standard deviations: a right share fails once in 16,000 draws, and the seeds are fixed.
SIGMAS = 4.0
TOKENS, WHOLE_WORD = MaskingConfig(), MaskingConfig(whole_word=True)


@functools.cache
def jitted(
    masking: MaskingConfig, max_predictions: int, special: SpecialIds = SPECIAL
) -> Callable[[Rows, jax.Array], PretrainingBatch]:
    """Return the compiled masking; compiled once for all tests that share its arguments."""

    def mask(rows: Rows, key: jax.Array) -> PretrainingBatch:
        return mask_rows(rows, key=key, masking=masking, special=special, max_predictions=max_predictions)

    return jax.jit(mask)


def masked(
    rows: Rows, *, seed: int = 0, masking: MaskingConfig = TOKENS, max_predictions: int = 20
) -> PretrainingBatch:
    """Return the masked rows as NumPy arrays."""
    return jax.device_get(jitted(masking, max_predictions)(to_device(rows), jax.random.key(seed)))


def original_count(tokens: int, *, rate: float, limit: int) -> int:
    """Return create_pretraining_data.py's num_to_predict."""
    return min(limit, max(1, round(tokens * rate)))


def chosen_positions(batch: PretrainingBatch, row: int) -> list[int]:
    """Return the positions that a row predicts."""
    return [int(p) for p, w in zip(batch.positions[row], batch.weights[row], strict=True) if w]


def one_row_a_length(length: int) -> Rows:
    """Return rows of one instance with 3, 4, ... `length` tokens."""
    sizes = np.arange(3, length + 1)
    ids = np.where(np.arange(length) < sizes[:, None], 50, 0).astype(np.int32)
    ids[:, 0] = SPECIAL.cls_id
    ids[np.arange(len(sizes)), sizes - 1] = SPECIAL.sep_id
    return on_host(
        Rows,
        input_ids=ids,
        segment_lengths=np.stack([sizes, np.zeros_like(sizes)], -1)[:, None].astype(np.int32),
        next_sentence_labels=np.zeros((len(sizes), 1), np.int32),
        word_starts=np.ones(ids.shape, bool),
    )


@pytest.mark.parametrize(("rate", "limit"), [(0.15, 20), (0.3, 77)])
def test_the_count_is_the_originals_for_every_length(rate: float, limit: int) -> None:
    rows = one_row_a_length(160)
    batch = masked(rows, masking=MaskingConfig(rate=rate), max_predictions=limit)
    counts = batch.weights.sum(1)
    expected = [original_count(n, rate=rate, limit=limit) for n in range(3, 161)]
    np.testing.assert_array_equal(counts, np.minimum(expected, np.arange(3, 161) - 2))


def test_the_table_of_counts_is_the_originals_up_to_512() -> None:
    for limit in (1, 20, 77):
        table = predictions_per_length(512, rate=0.15, limit=limit)
        assert table == [0] + [original_count(n, rate=0.15, limit=limit) for n in range(1, 513)]
    assert table[10] == 2  # 1.5 rounds to even
    assert table[30] == 4  # and so does 4.5


def test_default_slots_are_the_papers() -> None:
    assert default_max_predictions(128, rate=0.15) == 20
    assert default_max_predictions(512, rate=0.15) == 77
    assert default_max_predictions(20, rate=0.15) == 3  # 3.0000000000000004 in binary
    assert default_max_predictions(4, rate=0.0) == 1


def test_a_full_row_of_any_length_has_a_slot_for_each_prediction() -> None:
    for length in range(3, 513):
        assert default_max_predictions(length, rate=0.15) >= original_count(length, rate=0.15, limit=10**9)


@pytest.mark.parametrize("masking", [TOKENS, WHOLE_WORD], ids=["tokens", "whole_words"])
def test_special_tokens_and_padding_are_never_chosen_nor_changed(masking: MaskingConfig) -> None:
    rows = random_rows(1, batch=64, length=48, instances=3, empty_rows=2)
    batch = masked(rows, masking=dataclasses.replace(masking, rate=0.9), max_predictions=48)
    real = rows.segment_lengths.sum((1, 2))
    for row in range(64):
        for position in chosen_positions(batch, row):
            assert position < real[row]
            assert rows.input_ids[row, position] not in (SPECIAL.cls_id, SPECIAL.sep_id)
    untouched = (rows.input_ids <= SPECIAL.sep_id) | (np.arange(48) >= real[:, None])
    np.testing.assert_array_equal(batch.inputs.input_ids[untouched], rows.input_ids[untouched])


def test_labels_positions_and_weights_agree_with_the_rows() -> None:
    rows = random_rows(2, batch=64, length=48, instances=3, empty_rows=2)
    batch = masked(rows, max_predictions=8)
    assert set(np.unique(batch.weights)) == {0.0, 1.0}
    for row in range(64):
        chosen = chosen_positions(batch, row)
        count = len(chosen)
        assert chosen == sorted(set(chosen))
        np.testing.assert_array_equal(batch.weights[row], [1.0] * count + [0.0] * (8 - count))
        np.testing.assert_array_equal(batch.labels[row, :count], rows.input_ids[row, chosen])
        assert not batch.labels[row, count:].any()
        assert not batch.positions[row, count:].any()
        others = np.setdiff1d(np.arange(48), chosen)
        np.testing.assert_array_equal(batch.inputs.input_ids[row, others], rows.input_ids[row, others])
        begins = [begin for begin, _, _ in instance_spans(rows, row)]
        exists = np.arange(3) < len(begins)
        np.testing.assert_array_equal(batch.cls_positions[row], np.resize([*begins, 0, 0, 0], 3))
        np.testing.assert_array_equal(batch.next_sentence_weights[row], exists)
    np.testing.assert_array_equal(batch.next_sentence_labels, rows.next_sentence_labels)
    np.testing.assert_array_equal(batch.rows, np.arange(64))


def test_rows_without_tokens_predict_nothing() -> None:
    rows = random_rows(3, batch=8, length=32, empty_rows=8)
    for masking in (TOKENS, WHOLE_WORD):
        batch = masked(rows, masking=masking)
        assert not batch.weights.any()
        assert not batch.next_sentence_weights.any()
        assert not batch.inputs.input_ids.any()


def transcript(rows: Rows, *, seed: int, masking: MaskingConfig, limit: int) -> tuple[np.ndarray, list[list[int]]]:
    """Return masked ids and chosen positions, by loops, from the same random draws."""
    batch, length = rows.input_ids.shape
    order_key, choice_key, word_key = jax.random.split(jax.random.key(seed), 3)
    order = np.asarray(jax.random.bits(order_key, (batch, length), "uint32"))
    draw = np.asarray(jax.random.uniform(choice_key, (batch, length)))
    words = np.asarray(jax.random.randint(word_key, (batch, length), 0, VOCAB_SIZE, "int32"))
    ids, positions = np.array(rows.input_ids), []
    for row in range(batch):
        chosen: list[int] = []
        slots = limit
        for begin, _, end in instance_spans(rows, row):
            count = min(original_count(end - begin, rate=masking.rate, limit=limit), slots)
            slots -= count
            choose = original_words if masking.whole_word else original_tokens
            chosen += choose(rows, row, begin=begin, end=end, count=count, order=order[row])
        for place in chosen:
            if draw[row, place] < np.float32(masking.mask_share):
                ids[row, place] = SPECIAL.mask_id
            elif draw[row, place] < np.float32(masking.mask_share + masking.random_share):
                ids[row, place] = words[row, place]
        positions.append(sorted(chosen))
    return ids, positions


def original_tokens(rows: Rows, row: int, *, begin: int, end: int, count: int, order: np.ndarray) -> list[int]:
    """Shuffle an instance's maskable positions by their numbers and take the first `count`."""
    maskable = [p for p in range(begin, end) if rows.input_ids[row, p] not in (SPECIAL.cls_id, SPECIAL.sep_id)]
    return sorted(maskable, key=lambda p: (order[p], p))[:count]


def original_words(rows: Rows, row: int, *, begin: int, end: int, count: int, order: np.ndarray) -> list[int]:
    """Run the original's loop: words in random order, one that would exceed the count is passed over."""
    words: list[list[int]] = []
    for place in range(begin, end):
        if rows.input_ids[row, place] in (SPECIAL.cls_id, SPECIAL.sep_id):
            continue
        if rows.word_starts[row, place] or not words:
            words.append([place])
        else:
            words[-1].append(place)
    chosen: list[int] = []
    for word in sorted(words, key=lambda word: (order[word[0]], word[0])):
        if len(chosen) >= count:
            break
        if len(chosen) + len(word) <= count:
            chosen += word
    return chosen


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("masking", [TOKENS, MaskingConfig(rate=0.4)], ids=["rate15", "rate40"])
def test_masking_equals_a_transcript_of_the_original(masking: MaskingConfig, seed: int) -> None:
    rows = random_rows(seed, batch=64, length=48, instances=3, empty_rows=1)
    batch = masked(rows, seed=seed, masking=masking, max_predictions=9)
    ids, positions = transcript(rows, seed=seed, masking=masking, limit=9)
    assert [chosen_positions(batch, row) for row in range(64)] == positions
    np.testing.assert_array_equal(batch.inputs.input_ids, ids)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("word_start_share", [0.1, 0.3, 0.7])
def test_whole_words_equal_the_originals_loop(word_start_share: float, seed: int) -> None:
    rows = random_rows(seed, batch=64, length=48, instances=2, word_start_share=word_start_share)
    masking = MaskingConfig(whole_word=True, rate=0.15 if seed % 2 else 0.5)
    batch = masked(rows, seed=seed, masking=masking, max_predictions=12)
    ids, positions = transcript(rows, seed=seed, masking=masking, limit=12)
    assert [chosen_positions(batch, row) for row in range(64)] == positions
    np.testing.assert_array_equal(batch.inputs.input_ids, ids)


def test_whole_words_are_neither_split_nor_over_budget() -> None:
    rows = random_rows(7, batch=256, length=48, word_start_share=0.25)
    batch = masked(rows, masking=WHOLE_WORD, max_predictions=6)
    chosen = np.zeros((256, 48), bool)
    for row in range(256):
        chosen[row, chosen_positions(batch, row)] = True
        tokens = int(rows.segment_lengths[row].sum())
        assert chosen[row].sum() <= original_count(tokens, rate=0.15, limit=6)
    special = rows.input_ids <= SPECIAL.sep_id
    same_word = ~rows.word_starts[:, 1:] & ~special[:, 1:] & ~special[:, :-1]
    assert not (same_word & (chosen[:, 1:] != chosen[:, :-1])).any()
    assert chosen.any(1).mean() > 0.8  # words that fit are found, not given up on


def test_each_packed_instance_has_its_exact_count() -> None:
    rows = random_rows(8, batch=128, length=64, instances=4)
    batch = masked(rows, max_predictions=20)
    for row in range(128):
        chosen = np.array(chosen_positions(batch, row))
        for begin, _, end in instance_spans(rows, row):
            inside = ((chosen >= begin) & (chosen < end)).sum()
            assert inside == min(original_count(end - begin, rate=0.15, limit=20), end - begin - 2)


# The rows of Table 8: MASK, SAME, RND.
APPENDIX_C2 = [(0.8, 0.1, 0.1), (1, 0, 0), (0.8, 0, 0.2), (0.8, 0.2, 0), (0, 0.2, 0.8), (0, 0, 1)]


@pytest.mark.parametrize(("mask", "same", "random"), APPENDIX_C2)
def test_shares_of_appendix_c2_hold(mask: float, same: float, random: float) -> None:
    vocab_size = 5000
    special = dataclasses.replace(SPECIAL, vocab_size=vocab_size)
    masking = MaskingConfig(mask_share=mask, same_share=same, random_share=random)
    rows = random_rows(9, batch=1024, length=64, vocab_size=vocab_size)
    batch = jax.device_get(jitted(masking, 10, special)(to_device(rows), jax.random.key(5)))
    there = batch.weights > 0
    shown = np.take_along_axis(np.asarray(batch.inputs.input_ids), np.asarray(batch.positions), 1)[there]
    labels = batch.labels[there]
    total = len(labels)
    assert total > 4000
    # A random word is the token itself or [MASK] once in 5000; that is far inside the interval.
    counts = {
        "mask": ((shown == SPECIAL.mask_id).sum(), mask),
        "same": ((shown == labels).sum(), same),
        "random": (((shown != SPECIAL.mask_id) & (shown != labels)).sum(), random),
    }
    for name, (count, share) in counts.items():
        slack = SIGMAS * math.sqrt(total * share * (1 - share)) + 2 * random * total / vocab_size + 1
        assert abs(count - share * total) <= slack, (name, count / total, share)


def test_random_words_are_uniform_over_the_whole_vocabulary() -> None:
    masking = MaskingConfig(rate=1.0, mask_share=0.0, random_share=1.0, same_share=0.0)
    rows = random_rows(10, batch=1024, length=64)
    batch = masked(rows, masking=masking, max_predictions=64)
    there = batch.weights > 0
    shown = np.take_along_axis(np.asarray(batch.inputs.input_ids), np.asarray(batch.positions), 1)[there]
    counts = np.bincount(shown, minlength=VOCAB_SIZE)
    assert len(counts) == VOCAB_SIZE
    expected = len(shown) / VOCAB_SIZE
    assert expected > 200
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = VOCAB_SIZE - 1
    assert abs(chi_square - freedom) < SIGMAS * math.sqrt(2 * freedom)


def test_every_maskable_place_is_chosen_equally_often() -> None:
    rows = jax.tree.map(lambda leaf: np.repeat(leaf[-1:], 4096, 0), one_row_a_length(22))
    batch = masked(rows, max_predictions=20)
    counts = np.bincount(batch.positions[batch.weights > 0], minlength=22)
    expected = 4096 * 3 / 20
    assert counts[0] == counts[21] == 0
    assert (np.abs(counts[1:21] - expected) < SIGMAS * math.sqrt(expected * (1 - 3 / 20))).all()


@pytest.mark.parametrize("shape", SWEEP)
@pytest.mark.parametrize("masking", [TOKENS, WHOLE_WORD], ids=["tokens", "whole_words"])
def test_masking_is_independent_of_the_mesh(masking: MaskingConfig, shape: tuple[int, ...]) -> None:
    rows = random_rows(11, batch=16, length=32, instances=2)
    alone = masked(rows, seed=3, masking=masking, max_predictions=5)
    mesh = meshes.make_mesh(MeshConfig(*shape))
    with meshes.use_mesh(mesh):
        sharded = jitted(masking, 5)(meshes.to_global(rows, mesh=mesh), jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(sharded), alone)


def test_masking_is_independent_of_the_rows_behind() -> None:
    rows = random_rows(12, batch=24, length=32)
    some = jax.tree.map(lambda leaf: leaf[:16], rows)
    behind = jax.tree.map(lambda leaf: leaf[:16], masked(rows))
    jax.tree.map(np.testing.assert_array_equal, masked(some), behind)


def test_masks_differ_between_keys_and_between_equal_rows() -> None:
    rows = jax.tree.map(lambda leaf: np.repeat(leaf[-1:], 32, 0), one_row_a_length(64))
    first, second = masked(rows, seed=0).positions, masked(rows, seed=1).positions
    assert len(np.unique(first, axis=0)) == 32
    assert not (first == second).all(1).any()
