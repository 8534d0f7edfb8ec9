"""ModernBERT: layers, names, config.json, FLOPs and export. `test_parity_modernbert.py` compares it with PyTorch."""

import dataclasses
import json
import math
import runpy
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from source_helpers import assert_same_params, random_source
from tiny_model import SPECIAL, random_rows, to_device

from bert_jax.config import (
    Config,
    MaskingConfig,
    ModelConfig,
    PhaseConfig,
    from_config_dict,
    model_at,
    model_preset,
    validate,
)
from bert_jax.config.presets import NAMES as PRESETS
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.folder_config import read_config
from bert_jax.convert.huggingface import read_tensors
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.finetuning.settings import layerwise_decay
from bert_jax.model.attention import AttentionMask
from bert_jax.model.heads import pool_instances
from bert_jax.model.modernbert.architecture import MODERNBERT
from bert_jax.model.modernbert.flops import train_flops_per_row
from bert_jax.model.parameter_names import flatten
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.evaluation_program import init_params
from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.rows.layout import cls_positions, encoder_inputs
from bert_jax.training.optimizers import DECAY_POLICY, STACKED_POLICY
from bert_jax.training.policy import apply_policy
from tests.rounding import NOTICED, assert_trees_rounded_alike, gradient_bound, sum_bound
from tests.runs import ROOT
from tests.test_configs import load


def small(**changes: Any) -> ModelConfig:
    """Return eight layers (two groups of three after layer 0, and one more) of width 32, with a window of 4."""
    shape = {"num_hidden_layers": 8, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    fields = {**shape, "vocab_size": 101, "dtype": "float32", "local_attention": 8, "initializer_range": 0.2, **changes}
    return dataclasses.replace(model_preset("modernbert-base"), **fields)


def small_source(huggingface_class: str, **fields: Any) -> PretrainedModel:
    """Return a model of a class with random weights and a vocabulary."""
    shape = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    labels = 1 if huggingface_class.endswith("MultipleChoice") else 3
    return random_source("ettin-17m", architecture=huggingface_class, num_labels=labels, **{**shape, **fields})


def initial_params(model: ModelConfig) -> Any:
    """Return the parameters with which pre-training starts."""
    return jax.jit(lambda: nn.meta.unbox(init_params(model, key=jax.random.key(0))))()


@pytest.mark.numerics
@pytest.mark.slow
def test_scanned_groups_equal_unrolled_layers_with_dropout_and_rematerialization() -> None:
    rows = to_device(random_rows(3, batch=2, length=32, instances=2))
    params = initial_params(small())

    def loss_and_gradients(**changes: Any) -> Any:
        model = small(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **changes)
        task = PretrainingObjective(model, MaskingConfig(), SPECIAL, max_predictions=8, next_sentence=False)
        batch = task.prepare(rows, key=jax.random.key(1))

        def loss(params: Any) -> jax.Array:
            return task.loss(params, batch=batch, weights=task.weights(batch), key=jax.random.key(2))[0]

        return jax.jit(jax.value_and_grad(loss))(params)

    scanned, unrolled = loss_and_gradients(remat="full"), loss_and_gradients(scan_layers=False)
    assert_trees_rounded_alike(scanned, unrolled, bound=gradient_bound(small(), tokens=2 * 32, length=32))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(scanned))


def test_a_window_reaches_as_far_to_each_side_inside_an_instance_and_padding_is_not_seen() -> None:
    segments = jnp.array([[1] * 6 + [2] * 5 + [0] * 2])
    positions = jnp.array([[*range(6), *range(5), 11, 12]])
    allowed = np.asarray(AttentionMask(segments, positions, direction="bidirectional", window=2).dense())[0, 0]
    for query in range(11):
        for key in range(13):
            same = bool(segments[0, query] == segments[0, key])
            assert allowed[query, key] == (same and abs(query - key) <= 2), (query, key)
    assert allowed[11].tolist() == [True] * 11 + [False] * 2


@pytest.mark.numerics
def test_the_mean_of_an_instance_is_that_of_its_own_tokens() -> None:
    rows = to_device(random_rows(5, batch=3, length=32, instances=3))
    inputs = encoder_inputs(rows)
    hidden = jax.random.normal(jax.random.key(0), (3, 32, 4))
    where = cls_positions(rows)
    pooled = pool_instances(hidden, cls_positions=where, segment_ids=inputs.segment_ids, pooling="mean")
    size = float(np.abs(hidden).max())
    assert sum_bound(32, size=size) < NOTICED * float(np.abs(pooled).max())
    for row in range(3):
        for number in range(3):
            own = np.asarray(hidden)[row, np.asarray(inputs.segment_ids)[row] == number + 1]
            expected = own.mean(0) if len(own) else np.zeros(4)
            np.testing.assert_allclose(pooled[row, number], expected, rtol=0, atol=sum_bound(32, size=size))


def test_weights_are_initialized_as_published() -> None:
    model = small(hidden_size=64, intermediate_size=256, vocab_size=512, initializer_range=0.02)
    flat = flatten(initial_params(model))
    scaled = 0.02 / math.sqrt(2 * model.num_hidden_layers)
    cut = 0.8796  # the standard deviation of a normal distribution cut at two of its own
    for name, values in flat.items():
        if name.endswith("scale"):
            assert (values == 1).all(), name
        elif name.endswith("bias"):
            assert (values == 0).all(), name
        else:
            small_output = name.endswith(("/output/kernel", "attention_output/kernel", "transform/dense/kernel"))
            stddev = scaled if small_output else 0.02
            assert float(jnp.std(values)) == pytest.approx(cut * stddev, rel=0.05), name
            assert float(jnp.abs(values).max()) <= 2 * stddev * 1.0001, name
    assert flat["encoder/layers/attention_layer_norm/scale"].shape == (model.num_hidden_layers - 1, 64)


def test_policies_of_training_know_every_parameter_of_it() -> None:
    params = jax.eval_shape(lambda: initial_params(small()))
    stacked = flatten(apply_policy(STACKED_POLICY, params=params))
    decays = flatten(apply_policy(DECAY_POLICY, params=params))
    assert {name for name, value in stacked.items() if value} == {n for n in stacked if n.startswith("encoder/layers/")}
    assert {name for name, value in decays.items() if not value} == {
        name for name in decays if name.endswith(("scale", "bias"))
    }


def test_layerwise_decay_gives_a_norm_that_layer_0_lacks_the_rate_of_its_layer() -> None:
    params = jax.tree.map(jnp.ones_like, initial_params(small()))
    scaled, _ = layerwise_decay(0.5, num_layers=8).update(params, None, params)  # type: ignore[arg-type]
    flat = flatten(cast(Any, scaled))
    norm, matrix = (flat[f"encoder/layers/{name}"] for name in ("attention_layer_norm/scale", "query/kernel"))
    np.testing.assert_array_equal(norm[:, 0], matrix[1:, 0, 0])
    assert float(matrix[-1, 0, 0]) == 0.5


@pytest.mark.parametrize(
    ("length", "instances", "reach"), [(40, 1, 4), (40, 4, 4), (12, 1, 64), (130, 1, 64), (130, 2, 64)]
)
def test_flops_count_the_pairs_that_attend(length: int, instances: int, reach: int) -> None:
    model = small(local_attention=2 * reach)
    one, heads = length // instances, model.hidden_size
    place = np.arange(one)
    near = instances * int((np.abs(place[:, None] - place) <= reach).sum())
    pairs = instances * one**2
    weights = 8 * (4 * heads**2 + 3 * heads * model.intermediate_size)
    # Layers 0, 3 and 6 of 8 are global.
    expected = 6 * length * weights + 12 * heads * (3 * pairs + 5 * near)
    expected += 6 * 7 * (model.vocab_size * heads + heads**2)
    actual = train_flops_per_row(
        model, max_seq_length=length, max_predictions=7, instances=instances, attended_share=pairs / length**2
    )
    assert actual == pytest.approx(expected, rel=1e-12)


def test_flops_of_base_at_8192_are_those_of_a_hand_count() -> None:
    model = dataclasses.replace(model_preset("modernbert-base"), vocab_size=50_000)
    # Per token and layer: 4 x 768^2 for q, k, v and output, 3 x 768 x 1152 for input, gate and output of the GeGLU.
    weights = 22 * (2_359_296 + 2_654_208)
    # Layers 0, 3, ..., 21 see 8192^2 pairs; the other 14 have 129 keys per query, but 64 x 65 fewer at the two ends.
    pairs = 8 * 67_108_864 + 14 * (8192 * 129 - 4_160)
    head = 1_229 * (50_000 * 768 + 589_824)
    actual = train_flops_per_row(model, max_seq_length=8192, max_predictions=1_229)
    assert actual == 6 * 8192 * weights + 12 * 768 * pairs + 6 * head
    assert actual == pytest.approx(10.79e12, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("modernbert-base", 149),
        ("modernbert-large", 395),
        ("ettin-17m", 17),
        ("ettin-32m", 32),
        ("ettin-68m", 68),
        ("ettin-150m", 149),
        ("ettin-400m", 395),
        ("ettin-1b", 1031),
    ],
)
def test_presets_have_as_many_parameters_as_published(name: str, millions: int) -> None:
    model = dataclasses.replace(model_preset(name), vocab_size=50368)
    parts = MODERNBERT.huggingface.classes["ModernBertForMaskedLM"]
    count = sum(math.prod(entry.shape(model)) for entry in MODERNBERT.names.of(parts))
    assert round(count / 1e6) == pytest.approx(millions, abs=1)
    assert name in PRESETS


@pytest.mark.parametrize("huggingface_class", list(MODERNBERT.huggingface.classes))
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_export_is_compared_with_the_reference_and_comes_back_bit_for_bit(
    tmp_path: Path, huggingface_class: str, pooling: str
) -> None:
    source = small_source(huggingface_class, classifier_pooling=pooling)
    done = export_folder(source, out=tmp_path / "out", report=lambda line: None)
    assert 0 < done.largest_difference < 1e-5
    loaded = load_pretrained(tmp_path / "out")
    assert_same_params(source, loaded)
    assert loaded.architecture == huggingface_class
    prefix = "" if huggingface_class == "ModernBertModel" else "model."
    tensors = read_tensors(tmp_path / "out")
    assert tensors[f"{prefix}layers.1.attn.Wqkv.weight"].shape == (48, 16)
    assert f"{prefix}layers.0.attn_norm.weight" not in tensors
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (fields["model_type"], fields["cls_token_id"], fields["eos_token_id"]) == ("modernbert", 2, 3)
    again = export_folder(loaded, out=tmp_path / "again", report=lambda line: None)
    first, second = (Path(folder) / "model.safetensors" for folder in (tmp_path / "out", again.folder))
    assert first.read_bytes() == second.read_bytes()


def folder_with(tmp_path: Path, **changes: Any) -> Path:
    """Return a folder whose config.json has `changes`; None removes a field."""
    out = tmp_path / "out"
    if not out.exists():
        export_folder(small_source("ModernBertForMaskedLM"), out=out, report=lambda line: None)
    fields = json.loads((out / "config.json").read_text()) | changes
    kept = {name: value for name, value in fields.items() if value != "absent"}
    (out / "config.json").write_text(json.dumps(kept))
    return out


def test_the_fields_that_transformers_5_writes_are_read(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}, "sliding_attention": {"rope_theta": 2e4}}
    old = dict.fromkeys(("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"), "absent")
    model = read_config(folder_with(tmp_path, layer_types=kinds, rope_parameters=rope, **old)).model
    assert (model.global_attn_every_n_layers, model.global_rope_theta, model.local_rope_theta) == (2, 5e5, 2e4)


def test_a_local_theta_of_null_is_the_global_one(tmp_path: Path) -> None:
    model = read_config(folder_with(tmp_path, local_rope_theta=None, global_rope_theta=3e4)).model
    assert model.local_rope_theta == model.global_rope_theta == 3e4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_bias": True}, "norm_bias is 'True': only False is supported"),
        ({"classifier_activation": "relu"}, "classifier_activation is 'relu': only that of hidden_activation"),
        ({"classifier_pooling": "max"}, "classifier_pooling is 'max': write cls or mean"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types must have full_attention in every n-th of 4 layers"),
        ({"global_rope_theta": "big"}, "global_rope_theta is 'big': write a number above 0"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            r"rope_parameters\.full_attention is .*yarn.*: only the rope_type default",
        ),
        ({"local_attention": 0}, "local_attention is 0: write a whole number"),
    ],
)
def test_a_folder_that_computes_something_else_is_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {message}"):
        read_config(folder_with(tmp_path, **changes))


def test_a_left_to_right_model_is_not_exported(tmp_path: Path) -> None:
    source = small_source("ModernBertForMaskedLM", attention_direction="left_to_right")
    with pytest.raises(UserError, match="HuggingFace's ModernBERT encoder is bidirectional"):
        export_folder(source, out=tmp_path / "out", report=lambda line: None)


def test_fields_of_another_architecture_are_refused() -> None:
    with pytest.raises(UserError, match=r"config\.model\.local_attention=64: a field of .*architecture=modernbert"):
        validate(Config(model=ModelConfig(local_attention=64)))
    with pytest.raises(UserError, match=r"config\.model\.type_vocab_size=1: a field of .*architecture=bert"):
        validate(Config(model=dataclasses.replace(model_preset("modernbert-base"), type_vocab_size=1)))


def test_next_sentences_are_refused_before_anything_is_built() -> None:
    config = dataclasses.replace(load("tiny_cpu"), model=small())
    with pytest.raises(UserError, match=r"architecture=modernbert has no next-sentence head: set config\.data\.obj"):
        PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh))


def test_a_phase_sets_theta_and_window_from_then_on() -> None:
    phases = (
        PhaseConfig(fraction=0.5),
        PhaseConfig(fraction=0.25, global_rope_theta=5e5, local_attention=32),
        PhaseConfig(fraction=0.25, local_attention=64),
    )
    model = small(global_rope_theta=1e4, local_attention=16)
    config = dataclasses.replace(load("base_tpu:modernbert-base"), model=model)
    train = dataclasses.replace(config.train, phases=phases, num_steps=100)
    config = dataclasses.replace(config, train=train, optimizer=dataclasses.replace(config.optimizer, warmup_steps=10))
    program = PretrainingProgram(validate(config), mesh=meshes.make_mesh(config.mesh))
    objectives = [program.objective(phase, special=SPECIAL) for phase in program.phases]
    expected = [(1e4, 16), (5e5, 32), (5e5, 64)]
    assert [(o.model.global_rope_theta, o.model.local_attention) for o in objectives] == expected
    for step, index in ((0, 0), (50, 0), (51, 1), (75, 1), (76, 2), (100, 2), (120, 2)):
        at_step = model_at(model, phases=phases, num_steps=100, step=step)
        assert (at_step.global_rope_theta, at_step.local_attention) == expected[index], step


def test_bert_has_no_theta_to_change() -> None:
    config = load("tiny_cpu")
    phases = (PhaseConfig(max_seq_length=64, global_rope_theta=5e5),)
    with pytest.raises(UserError, match=r"phases\[0\]\.global_rope_theta=500000\.0: BERT has no such field"):
        validate(dataclasses.replace(config, train=dataclasses.replace(config.train, phases=phases)))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_config_of_base_tpu(name: str) -> None:
    get_config = runpy.run_path(str(ROOT / "configs" / "base_tpu.py"))["get_config"]
    config = from_config_dict(get_config(name))
    has_no_nsp = config.model.architecture == "modernbert"
    assert (config.data.objective == "mlm", config.recipe == "modern") == (has_no_nsp, has_no_nsp)
