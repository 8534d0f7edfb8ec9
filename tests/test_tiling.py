"""A larger model from a smaller one: a copy in the middle of each dimension, whole heads, layers over the depth."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_helpers import flat, random_source

from bert_jax.config import presets
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.convert.tiling import tile_to
from bert_jax.errors import UserError

# (layers, hidden size, heads, feed-forward size): heads of 4, and a middle that is not a multiple of 4.
SMALL, LARGE = (4, 8, 2, 12), (7, 20, 5, 17)


@pytest.fixture(autouse=True)
def _presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.MODERNBERT_SHAPES, "modernbert-test", LARGE)
    monkeypatch.setitem(presets.MODERNBERT_SHAPES, "modernbert-test-wide-heads", (7, 20, 2, 17))
    monkeypatch.setitem(presets.MODERNBERT_SHAPES, "modernbert-test-shallow", (1, 20, 5, 17))
    monkeypatch.setitem(presets.MODERNBERT_SHAPES, "modernbert-test-deep", (16, 20, 5, 17))


def small(huggingface_class: str = "ModernBertForMaskedLM") -> PretrainedModel:
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    shape: dict[str, Any] = dict(zip(names, SMALL, strict=True))
    return random_source("ettin-17m", architecture=huggingface_class, **shape)


def tiled(source: PretrainedModel, preset: str = "modernbert-test") -> PretrainedModel:
    return tile_to(source, preset=preset, report=lambda line: None)


def test_a_copy_is_in_the_middle_and_repeated_to_both_sides() -> None:
    before, after = flat(small()), flat(tiled(small()))
    words, wide = (side["encoder/embeddings/word_embeddings"] for side in (before, after))
    assert wide.shape == (len(words), 20)
    np.testing.assert_array_equal(wide[:, 6:14], words)
    np.testing.assert_array_equal(wide[:, :6], words[:, 2:])
    np.testing.assert_array_equal(wide[:, 14:], words[:, :6])
    np.testing.assert_array_equal(after["masked_lm/bias"], before["masked_lm/bias"])


def test_whole_heads_are_repeated() -> None:
    before, after = (flat(side)["encoder/layers/query/kernel"][0] for side in (small(), tiled(small())))
    rows = (np.arange(20) - 6) % 8  # the width is not made of heads
    heads = after.reshape(20, 5, 4)
    for target, source in enumerate((1, 0, 1, 0, 1)):  # the copy of two heads begins at the second of five
        np.testing.assert_array_equal(heads[:, target], before[rows].reshape(20, 2, 4)[:, source])


def test_layers_are_spread_over_the_depth_and_a_norm_that_is_not_there_is_ones() -> None:
    before, after = flat(small()), flat(tiled(small()))
    name = "encoder/layers/mlp_layer_norm/scale"
    chosen = [0, 1, 1, 2, 2, 3, 3]  # round(t * 4 / 7)
    np.testing.assert_array_equal(after[name][:, 6:14], before[name][chosen])
    norms, wide = (side["encoder/layers/attention_layer_norm/scale"] for side in (before, after))
    np.testing.assert_array_equal(wide[:, 6:14], norms[[index - 1 for index in chosen[1:]]])
    # Layer 1 of 16 takes layer 0, which has no such norm.
    deep = flat(tiled(small(), "modernbert-test-deep"))["encoder/layers/attention_layer_norm/scale"]
    assert (deep[0] == 1).all()
    np.testing.assert_array_equal(deep[-1, 6:14], norms[-1])


@pytest.mark.parametrize("huggingface_class", ["ModernBertForMaskedLM", "ModernBertForSequenceClassification"])
def test_the_result_is_exported_and_loaded(tmp_path: Path, huggingface_class: str) -> None:
    export_folder(tiled(small(huggingface_class)), out=tmp_path / "out", report=lambda line: None)
    model = load_pretrained(tmp_path / "out").model
    assert (model.num_hidden_layers, model.hidden_size, model.num_attention_heads, model.intermediate_size) == LARGE


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("large", "--tile_to=large has architecture bert, random has modernbert"),
        ("modernbert-test-shallow", "has num_hidden_layers 1, random has 4: choose a preset that is at least as large"),
        ("modernbert-test-wide-heads", "has heads of size 10, random has 4"),
        ("nonsense", "model preset 'nonsense': choose one of"),
    ],
)
def test_another_shape_is_one_line(preset: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiled(small(), preset)
