"""The model: sizes, initialization, and one result however it is computed."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from rounding import (
    SUMS_A_LAYER,
    UNIT_BFLOAT16,
    assert_rounded_alike,
    assert_trees_rounded_alike,
    encoder_bound,
    gradient_bound,
    sum_bound,
)
from tiny_model import instance_spans, on_host, plain_inputs, random_rows, tiny_model, to_device, worst_difference

from bert_jax.config import ModelConfig, model_preset
from bert_jax.model import chip, dense
from bert_jax.model.bert.encoder import BertEncoder
from bert_jax.model.bert.flops import train_flops_per_row
from bert_jax.model.dropout import Dropout
from bert_jax.model.heads import PretrainingModel, gather
from bert_jax.model.layer_norm import LayerNorm
from bert_jax.rows.layout import encoder_inputs
from bert_jax.types import EncoderInputs, EncoderOutput, PretrainingLogits, Rows

pytestmark = pytest.mark.numerics

LENGTH = 24
REORDERED = gradient_bound(tiny_model(), tokens=8 * LENGTH)
# Each sum of two layers and the head has its terms and its result rounded to a unit.
BFLOAT16 = (2 * SUMS_A_LAYER + 1) * 2 * UNIT_BFLOAT16


def init(key: jax.Array, *, model: ModelConfig) -> Any:
    """Return unboxed parameters."""
    sample = jnp.zeros((1, 1), jnp.int32)
    inputs = EncoderInputs(sample, sample, sample, sample)
    variables = PretrainingModel(model).init(key, inputs, positions=sample, cls_positions=sample)
    return nn.meta.unbox(variables["params"])


init_tiny = jax.jit(functools.partial(init, model=tiny_model()))


@functools.cache
def tiny_params() -> Any:
    """Return parameters of the tiny model with biases and scales that matter."""
    leaves, tree = jax.tree.flatten(init_tiny(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return jax.tree.unflatten(
        tree, [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


@functools.cache
def batch() -> tuple[EncoderInputs, jax.Array]:
    """Return eight padded rows with token types, and five positions of each."""
    inputs = encoder_inputs(to_device(random_rows(0, batch=8, length=LENGTH)))
    return inputs, jax.random.randint(jax.random.key(1), (8, 5), 0, 3)


def scalar(params: Any, inputs: EncoderInputs, positions: Any, cls: Any, *, model: ModelConfig, drop: Any) -> Any:
    """Return a number that depends on every output, and the outputs."""
    apply = PretrainingModel(model).apply
    result = apply({"params": params}, inputs, positions=positions, cls_positions=cls, dropout=drop)
    logits = cast(PretrainingLogits, result)
    assert logits.next_sentence is not None
    wave = jnp.sin(jnp.arange(logits.masked_lm.shape[-1], dtype=jnp.float32))
    value = (jnp.tanh(logits.masked_lm) * wave[None, None]).mean() + (logits.next_sentence[..., 0] ** 2).mean()
    return value, logits


@functools.cache
def outputs_and_gradients(model: ModelConfig) -> Any:
    """Return logits and gradients of the tiny parameters with dropout on."""
    inputs, positions = batch()
    drop = Dropout.create(jax.random.key(5), rows=jnp.arange(8))
    run = jax.jit(jax.value_and_grad(functools.partial(scalar, model=model, drop=drop), has_aux=True))
    (_, logits), gradients = run(tiny_params(), inputs, positions, jnp.zeros((8, 1), jnp.int32))
    return jax.device_get((logits, gradients))


@pytest.mark.parametrize(("name", "count"), [("base", 109_482_240), ("large", 335_141_888)])
def test_encoder_and_pooler_have_the_published_number_of_parameters(name: str, count: int) -> None:
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), model=model_preset(name)))
    assert sum(leaf.size for part in ("encoder", "pooler") for leaf in jax.tree.leaves(shapes[part])) == count


TABLE_6 = ["L-3_H-768_A-12", "L-6_H-768_A-3", "L-6_H-768_A-12", "L-12_H-768_A-12", "L-12_H-1024_A-16"]


@pytest.mark.parametrize("name", ["tiny", "mini", "small", "medium", "base", "large", *TABLE_6, "L-24_H-1024_A-16"])
def test_every_named_size_builds_with_float32_parameters(name: str) -> None:
    model = model_preset(name)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), model=model))
    width, layers, inner = model.hidden_size, model.num_hidden_layers, model.intermediate_size
    a_layer = 4 * (width**2 + width) + 2 * width * inner + inner + width + 4 * width
    tables = (model.vocab_size + 512 + 2) * width + 2 * width
    heads = 2 * (width**2 + width) + 2 * width + model.vocab_size + 2 * width + 2
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == layers * a_layer + tables + heads
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_initialisation_is_the_originals() -> None:
    model = tiny_model(hidden_size=64, intermediate_size=256, vocab_size=2000, initializer_range=0.02)
    named = jax.tree_util.tree_leaves_with_path(jax.jit(lambda: init(jax.random.key(0), model=model))())
    kernels = 0
    for path, leaf in named:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("bias"):
            assert not leaf.any(), name
        elif name.endswith("layer_norm/scale"):
            assert (leaf == 1).all(), name
        else:
            kernels += 1
            # Cut at two deviations, a normal keeps 0.8796 of its deviation.
            assert np.abs(leaf).max() <= 0.04, name
            slack = 5 / np.sqrt(2 * leaf.size)
            assert leaf.std() == pytest.approx(0.02 * 0.8796, rel=slack), name
            assert abs(leaf.mean()) < 5 * 0.02 / np.sqrt(leaf.size), name
    assert kernels == 3 + 6 + 3


def test_every_layer_and_table_is_drawn_anew() -> None:
    params, other = (jax.device_get(init_tiny(jax.random.key(seed))) for seed in (0, 1))
    layers = params["encoder"]["layers"]
    square = [layers[name]["kernel"][i] for name in ("query", "key", "value", "attention_output") for i in (0, 1)]
    square += [params["pooler"]["dense"]["kernel"], params["masked_lm"]["transform"]["kernel"]]
    assert len({matrix.tobytes() for matrix in square}) == 10
    assert not np.array_equal(
        params["encoder"]["embeddings"]["word_embeddings"],
        other["encoder"]["embeddings"]["word_embeddings"],
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"scan_layers": False},
        {"remat": "dots"},
        {"remat": "full"},
        {"scan_layers": False, "remat": "full"},
    ],
    ids=str,
)
def test_loss_and_gradients_do_not_depend_on_scan_or_remat(changes: dict[str, Any]) -> None:
    expected = outputs_and_gradients(tiny_model())
    found = outputs_and_gradients(tiny_model(**changes))
    assert_trees_rounded_alike(without_key_bias(found), without_key_bias(expected), bound=REORDERED)


def without_key_bias(tree: Any) -> Any:
    """Zero the gradient of the keys' bias, which is nothing but rounding: a softmax does not see what keys share."""

    def one(path: Any, leaf: Any) -> Any:
        return np.zeros_like(leaf) if jax.tree_util.keystr(path).endswith("['key']['bias']") else leaf

    return jax.tree_util.tree_map_with_path(one, tree)


def test_loss_and_gradients_do_not_depend_on_the_chips_bottleneck(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outputs_and_gradients(tiny_model())
    for module in (chip, dense):
        monkeypatch.setattr(module, "is_vector_bound", lambda: True)
    found = outputs_and_gradients.__wrapped__(tiny_model())
    assert_trees_rounded_alike(without_key_bias(found), without_key_bias(expected), bound=REORDERED)
    biases = [tree["encoder"]["layers"]["output"]["bias"] for tree in (found[1], expected[1])]
    assert not np.array_equal(*biases)  # the other way of adding up was taken


def test_bfloat16_is_close_to_float32() -> None:
    expected = outputs_and_gradients(tiny_model())[0]
    logits = outputs_and_gradients(tiny_model(dtype="bfloat16"))[0]
    assert logits.masked_lm.dtype == logits.next_sentence.dtype == np.float32
    assert 1e-4 < worst_difference(logits, expected) < BFLOAT16


def test_dropout_reaches_every_layer_and_none_means_none() -> None:
    inputs, _ = batch()
    encoder = BertEncoder(tiny_model())
    params = {"params": tiny_params()["encoder"]}
    drop = Dropout.create(jax.random.key(5), rows=jnp.arange(8))
    run = jax.jit(lambda d: encoder.apply(params, inputs, dropout=d, output_hidden_states=True))
    plain, dropped = run(None), run(drop)
    assert plain.all_hidden.shape == (3, 8, LENGTH, 32)
    np.testing.assert_array_equal(plain.all_hidden[-1], plain.hidden)
    embedded = np.asarray(dropped.all_hidden[0])
    share = (embedded == 0).mean()
    assert 0.08 < share < 0.12  # the embeddings' own dropout lies behind their LayerNorm
    for layer in range(3):
        assert not np.allclose(plain.all_hidden[layer], dropped.all_hidden[layer])
    still = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    silent = cast(EncoderOutput, BertEncoder(still).apply(params, inputs, dropout=drop))
    assert_trees_rounded_alike(silent.hidden, plain.hidden, bound=encoder_bound(still))


@pytest.mark.parametrize("place", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_rate_acts_alone(place: str) -> None:
    inputs, _ = batch()
    params = {"params": tiny_params()["encoder"]}
    drop = Dropout.create(jax.random.key(5), rows=jnp.arange(8))
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, place: 0.5}
    one, both = tiny_model(**rates), tiny_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    first, second, none = (
        cast(EncoderOutput, BertEncoder(model).apply(params, inputs, dropout=drop)).hidden
        for model in (one, both, tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    )
    assert not np.allclose(first, none, atol=1e-2)
    assert not np.allclose(first, second, atol=1e-2)


def encode(encoder: BertEncoder, inputs: EncoderInputs) -> EncoderOutput:
    """Return what an encoder makes of the tiny parameters."""
    return cast(EncoderOutput, encoder.apply({"params": tiny_params()["encoder"]}, inputs))


def test_left_to_right_is_causal_and_bidirectional_is_not() -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(5, 101, (1, LENGTH))
    changed = ids.copy()
    changed[0, 10] = 5 + (ids[0, 10] - 4) % 96
    types, lengths = np.zeros_like(ids), np.array([LENGTH])
    for direction in ("left_to_right", "bidirectional"):
        encoder = BertEncoder(tiny_model(attention_direction=direction))
        first, second = (
            encode(encoder, plain_inputs(x, lengths=lengths, token_type_ids=types)).hidden for x in (ids, changed)
        )
        unchanged = np.array([np.array_equal(first[0, t], second[0, t]) for t in range(LENGTH)])
        assert unchanged[:10].all() == (direction == "left_to_right")
        assert not unchanged[10:].any()


def test_what_stands_in_the_padding_does_not_matter() -> None:
    rows = random_rows(4, batch=8, length=LENGTH)
    real = np.arange(LENGTH) < rows.segment_lengths.sum((1, 2))[:, None]
    other = dataclasses.replace(rows, input_ids=np.where(real, rows.input_ids, 77).astype(np.int32))
    encoder = BertEncoder(tiny_model())
    first, second = (np.asarray(encode(encoder, encoder_inputs(to_device(r))).hidden) for r in (rows, other))
    np.testing.assert_array_equal(first[real], second[real])
    assert not real.all()


@pytest.mark.parametrize("direction", ["bidirectional", "left_to_right"])
def test_a_packed_row_gives_each_instance_what_it_has_alone(direction: str) -> None:
    model = tiny_model(attention_direction=direction, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    packed = random_rows(5, batch=4, length=48, instances=3)
    spans = [(row, number, span) for row in range(4) for number, span in enumerate(instance_spans(packed, row))]
    assert len(spans) > 8
    ids, lengths = np.zeros((len(spans), 1, 48), np.int32), np.zeros((len(spans), 1, 2), np.int32)
    for index, (row, number, (begin, _, end)) in enumerate(spans):
        ids[index, 0, : end - begin] = packed.input_ids[row, begin:end]
        lengths[index, 0] = packed.segment_lengths[row, number]
    alone = on_host(
        Rows,
        input_ids=ids[:, 0],
        segment_lengths=lengths,
        next_sentence_labels=np.zeros((len(spans), 1), np.int32),
        word_starts=np.ones((len(spans), 48), bool),
    )

    def total(params: Any, rows: Any) -> Any:
        hidden = cast(EncoderOutput, BertEncoder(model).apply({"params": params}, encoder_inputs(rows))).hidden
        inside = jnp.arange(48)[None] < rows.segment_lengths.sum((1, 2))[:, None]
        wave = jnp.sin(jnp.arange(32, dtype=jnp.float32))
        return jnp.where(inside[..., None], jnp.tanh(hidden) * wave[None, None], 0).sum(), hidden

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    params = tiny_params()["encoder"]
    (_, together), packed_gradients = run(params, to_device(packed))
    (_, apart), alone_gradients = run(params, to_device(alone))
    for index, (row, _, (begin, _, end)) in enumerate(spans):
        assert_rounded_alike(together[row, begin:end], apart[index, : end - begin], bound=encoder_bound(model))
    # The gradient of a key's bias is 0 but for rounding: softmax does not see it.
    for gradients in (packed_gradients, alone_gradients):
        gradients["layers"]["key"].pop("bias")
    bound = gradient_bound(model, tokens=len(spans) * 48)
    assert_trees_rounded_alike(packed_gradients, alone_gradients, bound=bound)


def test_gather_is_exact_and_its_gradient_adds_up_repeated_positions() -> None:
    hidden = jax.random.normal(jax.random.key(0), (3, 16, 8))
    positions = jnp.array([[0, 3, 3], [15, 0, 7], [2, 2, 2]])
    picked = gather(hidden, positions)
    np.testing.assert_array_equal(picked, np.take_along_axis(np.asarray(hidden), np.asarray(positions)[..., None], 1))
    counts = jax.grad(lambda h: gather(h, positions).sum())(hidden)[..., 0]
    np.testing.assert_array_equal(counts, [np.bincount(row, minlength=16) for row in np.asarray(positions)])


@pytest.mark.parametrize("mean", [0.0, 10.0])
def test_layer_norm_equals_the_formula_in_float64(mean: float) -> None:
    model = tiny_model()
    values = mean + jax.random.normal(jax.random.key(0), (4, 7, 32))
    scale, bias = jax.random.normal(jax.random.key(1), (2, 32))
    result = np.asarray(LayerNorm(model).apply({"params": {"scale": scale, "bias": bias}}, values))
    wide = np.asarray(values, np.float64)
    normal = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + model.layer_norm_eps)
    expected = normal * np.asarray(scale) + np.asarray(bias)
    # One pass loses mean^2 / variance of what the sum of squares is off by.
    bound = 2 * sum_bound(32, size=float(np.abs(expected).max())) * (1 + mean**2)
    assert_rounded_alike(result, expected, bound=bound)


def test_layer_norm_of_equal_values_is_its_bias() -> None:
    bias = jnp.arange(32.0)
    params = {"params": {"scale": jnp.ones(32), "bias": bias}}
    result = np.asarray(LayerNorm(tiny_model()).apply(params, jnp.zeros((1, 1, 32))))
    np.testing.assert_array_equal(result[0, 0], bias)


def test_flops_of_a_large_row_are_the_stated_ones() -> None:
    large = model_preset("large")
    assert train_flops_per_row(large, max_seq_length=128, max_predictions=20) == pytest.approx(241e9, rel=0.01)
    # 6 FLOPs a parameter and token, for the parameters in the layers, is the usual estimate; attention comes on top.
    layers = 24 * (4 * 1024**2 + 2 * 1024 * 4096)
    more = train_flops_per_row(dataclasses.replace(large, vocab_size=1), max_seq_length=128, max_predictions=0)
    assert 6 * layers * 128 < more < 1.05 * 6 * layers * 128


def test_flops_of_a_packed_row_are_those_of_its_instances() -> None:
    large = model_preset("large")
    alone = train_flops_per_row(large, max_seq_length=128, max_predictions=20)
    four = train_flops_per_row(
        large, max_seq_length=512, max_predictions=80, instances=4, attended_share=4 * (1 / 4) ** 2
    )
    assert four == pytest.approx(4 * alone, rel=1e-12)
