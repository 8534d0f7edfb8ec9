"""Share what the tests of model, masking and steps begin with: a tiny model, its config, rows made to be awkward."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import Config, ModelConfig, OptimizerConfig, PhaseConfig, TrainConfig, validate
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.types import EncoderInputs, Rows

Made = TypeVar("Made")

# Odd, so that it divides over no mesh axis.
VOCAB_SIZE = 101
# Every mesh (data, fsdp, tensor) of eight devices.
FACTORS: list[tuple[int, ...]] = [shape for shape in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(shape) == 8]
# The same devices as two slices: (data, fsdp, tensor, slices).
SLICED: list[tuple[int, ...]] = [(2, 2, 1, 2), (4, 1, 1, 2), (1, 2, 2, 2)]
# Every mesh costs a compilation. Parameters fully sharded, heads fully sharded, both, and slices are in every run.
QUICK = [(2, 2, 2), (2, 2, 1, 2)]
SWEEP = [
    pytest.param(shape, marks=() if shape in QUICK else pytest.mark.slow, id=str(shape)) for shape in FACTORS + SLICED
]
SPECIAL = SpecialIds(cls_id=2, sep_id=3, mask_id=4, pad_id=0, vocab_size=VOCAB_SIZE)


def tiny_model(**changes: Any) -> ModelConfig:
    """Return two layers of width 32, float32, dropout as in the paper; weights ten times as large as a fresh BERT's."""
    model = ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=8,
        intermediate_size=64,
        max_position_embeddings=64,
        dtype="float32",
        initializer_range=0.2,
    )
    return dataclasses.replace(model, **changes)


def tiny_config(*, model: ModelConfig | None = None, **sections: Any) -> Config:
    """Return a config of 40 steps at length 32, batch 8."""
    fields: dict[str, Any] = {
        "model": model or tiny_model(),
        "optimizer": OptimizerConfig(warmup_steps=4, learning_rate=1e-2),
        "train": TrainConfig(num_steps=40, batch_size=8, phases=(PhaseConfig(max_seq_length=32),)),
    }
    return validate(Config(**{**fields, **sections}))


def random_rows(
    seed: int,
    *,
    batch: int,
    length: int,
    instances: int = 1,
    vocab_size: int = VOCAB_SIZE,
    word_start_share: float = 0.5,
    empty_rows: int = 0,
) -> Rows:
    """Return rows of up to `instances` instances, as the data set stores them, the last `empty_rows` of them empty.

    Instances have any length from three tokens on, some have no B, some rows are full, some hold fewer instances;
    padding holds 0. `[CLS]`, `[SEP]` and the first token of a row start a word, others do with `word_start_share`.
    """
    rng = np.random.default_rng(seed)
    ids = np.zeros((batch, length), np.int32)
    lengths = np.zeros((batch, instances, 2), np.int32)
    starts = rng.random((batch, length)) < word_start_share
    for row in range(batch - empty_rows):
        place = 0
        for number in range(instances):
            room = length - place - 3 * (instances - number - 1)  # later instances need three tokens each
            if room < 3 or (number > 0 and rng.random() < 0.2):
                break
            size = room if number == instances - 1 and rng.random() < 0.3 else int(rng.integers(3, room + 1))
            second = int(rng.integers(2, size - 2)) if size >= 6 and rng.random() < 0.8 else 0
            first = size - second
            ids[row, place : place + size] = rng.integers(5, vocab_size, size)
            ids[row, place] = SPECIAL.cls_id
            ids[row, place + first - 1] = SPECIAL.sep_id
            ids[row, place + size - 1] = SPECIAL.sep_id
            lengths[row, number] = first, second
            place += size
    special = (ids == SPECIAL.cls_id) | (ids == SPECIAL.sep_id)
    return on_host(
        Rows,
        input_ids=ids,
        segment_lengths=lengths,
        next_sentence_labels=rng.integers(0, 2, (batch, instances)).astype(np.int32),
        word_starts=starts | special,
    )


def instance_spans(rows: Rows, row: int) -> list[tuple[int, int, int]]:
    """Return begin, end of A and end of every instance of a row that is not empty."""
    spans, place = [], 0
    for first, second in np.asarray(rows.segment_lengths)[row]:
        if first + second:
            spans.append((place, place + int(first), place + int(first + second)))
        place += int(first + second)
    return spans


def on_host(struct: Callable[..., Made], **arrays: Any) -> Made:
    """Return a struct of NumPy arrays, as a loader gives them; its fields are declared as jax's."""
    return struct(**arrays)


def to_device(tree: Any) -> Any:
    """Return the tree with jax arrays for NumPy's."""
    return jax.tree.map(jnp.asarray, tree)


def plain_inputs(ids: np.ndarray, *, lengths: np.ndarray, token_type_ids: np.ndarray) -> EncoderInputs:
    """Return encoder inputs of one instance a row, `lengths` tokens long."""
    place = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return to_device(
        on_host(
            EncoderInputs,
            input_ids=ids.astype(np.int32),
            token_type_ids=token_type_ids.astype(np.int32),
            position_ids=place,
            segment_ids=(place < lengths[:, None]).astype(np.int32),
        )
    )


def worst_difference(first: Any, second: Any) -> float:
    """Return the largest difference between two trees, each leaf's relative to the largest value of its pair."""

    def one(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0), 1e-30)
        return float(np.abs(a - b).max(initial=0) / scale)

    return float(np.max(jax.tree.leaves(jax.tree.map(one, first, second))))  # Python's max skips a NaN
