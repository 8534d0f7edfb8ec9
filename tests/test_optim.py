"""The optimisers: NumPy transcripts in float64, what decays, stacked layers, clipping."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from bert_jax.config import OptimizerConfig, model_preset
from bert_jax.model.heads import PretrainingModel
from bert_jax.training.optimizers import (
    DECAY_POLICY,
    STACKED_POLICY,
    excess,
    make_optimizer,
    optimizer_rule,
    orthogonalized,
    trust_ratio,
)
from bert_jax.training.policy import apply_policy, parameter_names
from bert_jax.types import EncoderInputs
from tests.rounding import NOTICED, ROUNDINGS_AN_UPDATE, UNIT, assert_rounded_alike, rounded, update_bound

pytestmark = pytest.mark.numerics

STEPS = 20
# Of one update, relative to its size.
UPDATE = rounded(ROUNDINGS_AN_UPDATE)
NAMES = ("bert_adam", "adamw", "lamb", "stable_adamw")

# Name -> shape, whether it decays, number of stacked layers (0: not stacked). One of each kind that a model has.
PARAMETERS: dict[str, tuple[tuple[int, ...], bool, int]] = {
    "encoder/embeddings/word_embeddings": ((11, 6), True, 0),
    "encoder/embeddings/layer_norm/scale": ((6,), False, 0),
    "encoder/layers/query/kernel": ((3, 6, 6), True, 3),
    "encoder/layers/query/bias": ((3, 6), False, 3),
    "encoder/layers/attention_layer_norm/scale": ((3, 6), False, 3),
    "encoder/layers/attention_layer_norm/bias": ((3, 6), False, 3),
    "masked_lm/transform/kernel": ((6, 6), True, 0),
    "masked_lm/layer_norm/bias": ((6,), False, 0),
    "masked_lm/bias": ((11,), False, 0),
    "pooler/dense/kernel": ((6, 6), True, 0),
    "next_sentence/dense/bias": ((2,), False, 0),
}


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries for slash-joined names."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, leaf = name.split("/")
        here = tree
        for group in groups:
            here = here.setdefault(group, {})
        here[leaf] = value
    return tree


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves by slash-joined name, in float64."""
    return {
        name: np.asarray(leaf, np.float64)
        for name, leaf in zip(parameter_names(tree), jax.tree.leaves(tree), strict=True)
    }


def random_tree(seed: int, *, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return float32 values of every parameter."""
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, (shape, _, _) in PARAMETERS.items()}


def rate_at(step: Any) -> Any:
    """Return a rate that differs in every step; the first is 0, as in the original's warm-up."""
    return 0.01 * step / (1 + step)


def transcript(
    name: str, *, config: OptimizerConfig, params: dict[str, np.ndarray], grads: Callable[[int], dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Return the parameters after each step, in float64, by the papers' and the original's formulas."""
    p = {key: value.astype(np.float64) for key, value in params.items()}
    m = {key: np.zeros_like(value) for key, value in p.items()}
    v = {key: np.zeros_like(value) for key, value in p.items()}
    history = []
    for step in range(STEPS):
        g = {key: value.astype(np.float64) for key, value in grads(step).items()}
        norm = math.sqrt(sum(float((value**2).sum()) for value in g.values()))
        factor = min(1.0, config.max_grad_norm / norm)
        for key, (_, decays, layers) in PARAMETERS.items():
            gradient = g[key] * factor
            m[key] = config.beta1 * m[key] + (1 - config.beta1) * gradient
            v[key] = config.beta2 * v[key] + (1 - config.beta2) * gradient**2
            mean, variance = m[key], v[key]
            if name != "bert_adam":
                mean = mean / (1 - config.beta1 ** (step + 1))
                variance = variance / (1 - config.beta2 ** (step + 1))
            update = mean / (np.sqrt(variance) + config.epsilon)
            if decays:
                update = update + config.weight_decay * p[key]
            if name == "lamb" and decays:
                tensors = [(p[key], update)] if not layers else list(zip(p[key], update, strict=True))
                ratios = [np.linalg.norm(a) / np.linalg.norm(b) for a, b in tensors]
                update = update * np.reshape(ratios, (layers,) + (1,) * (update.ndim - 1) if layers else ())
            if name == "stable_adamw":
                ratio = gradient**2 / np.maximum(variance, config.epsilon**2)
                axes = tuple(range(1, ratio.ndim)) if layers else None
                update = update / np.maximum(1, np.sqrt(ratio.mean(axes, keepdims=True)))
            p[key] = p[key] - rate_at(step) * update
        history.append(dict(p))
    return history


def run(
    name: str, *, config: OptimizerConfig, params: dict[str, np.ndarray], grads: Callable[[int], dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Return the parameters after each step of ours."""
    rule = optimizer_rule(dataclasses.replace(config, name=name), recipe="modern")
    optimizer = make_optimizer(config, rule=rule, schedule=rate_at)

    @jax.jit
    def step(p: Any, state: Any, g: Any) -> Any:
        updates, state = optimizer.update(g, state, p)
        return optax.apply_updates(p, updates), state

    p = jax.tree.map(jnp.asarray, nest(params))
    state, history = optimizer.init(p), []
    for index in range(STEPS):
        p, state = step(p, state, nest(grads(index)))
        history.append(flat(p))
    return history


# Gradients as in training, small ones, ones that are clipped twentyfold, and some that are exactly 0 at times.
@pytest.mark.parametrize("scale", [0.05, 1e-4, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_equal_a_transcript_in_float64(name: str, scale: float) -> None:
    config = OptimizerConfig(weight_decay=0.1)
    params = random_tree(0, scale=0.5)

    def grads(step: int) -> dict[str, np.ndarray]:
        values = random_tree(100 + step, scale=scale)
        values["encoder/embeddings/word_embeddings"][step % 11] = 0  # a word that the batch does not hold
        return values

    expected = transcript(name, config=config, params=params, grads=grads)
    history = run(name, config=config, params=params, grads=grads)
    moved = {key: np.abs(expected[-1][key] - params[key]).max() for key in params}
    for step in range(STEPS):
        for key, value in expected[step].items():
            bound = update_bound(step + 1, rate=0.01, size=float(np.abs(value).max()))
            assert np.abs(history[step][key] - value).max() <= bound, (step, key)
            assert bound < NOTICED * moved[key]  # of the movement, not only of what stands still


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999])
def test_the_first_corrected_update_is_the_sign_of_the_gradient(beta: float) -> None:
    # With bias correction m / sqrt(v) is g / |g|; float32's 1 - beta^n would be wrong in the fifth digit.
    config = OptimizerConfig(beta1=beta, beta2=beta, epsilon=1e-12, weight_decay=0.0, max_grad_norm=1e9)
    rule = optimizer_rule(dataclasses.replace(config, name="adamw"), recipe="modern")
    optimizer = make_optimizer(config, rule=rule, schedule=lambda step: jnp.ones(()))
    params = {"pooler": {"kernel": jnp.ones(5)}}
    grads = {"pooler": {"kernel": jnp.array([3.0, -0.5, 0.01, -7.0, 1.0])}}
    updates = cast(Any, optimizer.update(grads, optimizer.init(params), params)[0])
    assert_rounded_alike(updates["pooler"]["kernel"], -np.sign(grads["pooler"]["kernel"]), bound=UPDATE)
    assert UPDATE < 1e-5  # the fifth digit


def test_lamb_of_stacked_layers_equals_lamb_of_each_layer_alone() -> None:
    config = OptimizerConfig(weight_decay=0.1)
    optimizer = make_optimizer(
        config, rule=optimizer_rule(OptimizerConfig(name="lamb"), recipe="modern"), schedule=lambda step: jnp.ones(())
    )
    keys = jax.random.split(jax.random.key(0), 3)
    # Layers of very unlike size: one ratio for all would show.
    layers = [10.0**i * jax.random.normal(key, (5, 7)) for i, key in enumerate(keys)]
    grads = [0.01 * jax.random.normal(key, (5, 7)) for key in jax.random.split(jax.random.key(1), 3)]
    stacked = {"encoder": {"layers": {"output": {"kernel": jnp.stack(layers)}}}}
    stacked_grads = {"encoder": {"layers": {"output": {"kernel": jnp.stack(grads)}}}}
    apart = {"encoder": {f"layer_{i}": {"kernel": layer} for i, layer in enumerate(layers)}}
    apart_grads = {"encoder": {f"layer_{i}": {"kernel": grad} for i, grad in enumerate(grads)}}
    together = cast(Any, optimizer.update(stacked_grads, optimizer.init(stacked), stacked)[0])
    alone = cast(Any, optimizer.update(apart_grads, optimizer.init(apart), apart)[0])
    for index in range(3):
        expected = alone["encoder"][f"layer_{index}"]["kernel"]
        bound = UPDATE * float(np.abs(expected).max())
        assert_rounded_alike(together["encoder"]["layers"]["output"]["kernel"][index], expected, bound=bound)


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6)])
def test_muon_equals_optax_on_one_matrix(shape: tuple[int, int]) -> None:
    config = OptimizerConfig(name="muon", beta1=0.95, weight_decay=0.0, max_grad_norm=0.0)
    ours = make_optimizer(config, rule=optimizer_rule(config, recipe="modern"), schedule=lambda step: jnp.ones(()))
    reference = optax.contrib.scale_by_muon(beta=0.95)
    # In optax 0.2.5 this rule scales by the width; later versions do that in a rule of its own.
    is_scaled = "weight_dimension_numbers" not in inspect.signature(optax.contrib.scale_by_muon).parameters
    width = np.sqrt(max(1.0, shape[1] / shape[0])) if is_scaled else 1.0
    matrix = jax.random.normal(jax.random.key(0), shape)
    params = {"encoder": {"layers": {"query": {"kernel": jnp.stack([matrix, 3 * matrix])}}}}
    state, theirs = ours.init(params), reference.init(matrix)
    for step in range(3):
        grad = jax.random.normal(jax.random.key(1 + step), shape)
        grads = {"encoder": {"layers": {"query": {"kernel": jnp.stack([grad, -grad])}}}}
        updates, state = ours.update(grads, state, params)
        expected, theirs = reference.update(grad, theirs)
        scaled = -0.2 * np.sqrt(max(shape)) * np.asarray(expected) / width
        both = cast(Any, updates)["encoder"]["layers"]["query"]["kernel"]
        # The quintic multiplies what rounding moved by up to 3.4, five times.
        np.testing.assert_allclose(both, [scaled, -scaled], rtol=0, atol=3.5**5 * UNIT * 4)


def test_muon_is_for_the_matrices_of_the_layers_and_adamw_for_the_rest() -> None:
    params = random_tree(0)
    config = OptimizerConfig(weight_decay=0.1, max_grad_norm=0.0)
    muon, adamw = (
        run(name, config=config, params=params, grads=lambda step: random_tree(step + 1)) for name in ("muon", "adamw")
    )
    differ = {key for key in params if not np.array_equal(muon[-1][key], adamw[-1][key])}
    assert differ == {"encoder/layers/query/kernel"}


@pytest.mark.parametrize("shape", [(4, 8), (8, 4), (16, 16)])
def test_an_orthogonalized_matrix_keeps_its_directions_and_loses_its_sizes(shape: tuple[int, int]) -> None:
    matrix = np.asarray(jax.random.normal(jax.random.key(2), shape))
    left, sizes, right = np.linalg.svd(np.asarray(orthogonalized(jnp.asarray(matrix))), full_matrices=False)
    assert sizes.min() > 0.3
    assert sizes.max() < 1.3
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    cosines = np.sum((left @ right) * (u @ v)) / min(shape)
    assert cosines > 0.999  # the nearest orthogonal matrix is the same


def test_stable_adamw_lowers_the_rate_of_a_tensor_whose_gradient_jumps_and_of_no_other() -> None:
    config = OptimizerConfig(name="stable_adamw", max_grad_norm=0.0)
    grad, second = jnp.stack([jnp.full(4, 10.0), jnp.ones(4)]), jnp.ones((2, 4))
    np.testing.assert_allclose(
        excess(grad, second_moment=second, epsilon=config.epsilon, stacked=True), [[10.0], [1.0]], rtol=UPDATE
    )
    whole = excess(grad, second_moment=second, epsilon=config.epsilon, stacked=False)
    np.testing.assert_allclose(whole, [[np.sqrt(50.5)]], rtol=UPDATE)


def test_no_clipping_where_the_norm_is_0() -> None:
    config = OptimizerConfig(max_grad_norm=0.0)
    optimizer = make_optimizer(
        config, rule=optimizer_rule(OptimizerConfig(), recipe="modern"), schedule=lambda step: jnp.ones(())
    )
    params = {"a": {"bias": jnp.ones(1)}}
    _, state = optimizer.update({"a": {"bias": jnp.array([100.0])}}, optimizer.init(params), params)
    moments = next(s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")).mu
    np.testing.assert_allclose(moments["a"]["bias"], [10.0], rtol=UPDATE)


def test_the_trust_ratio_is_one_where_a_norm_is_zero() -> None:
    zero, one = jnp.zeros((2, 3)), jnp.ones((2, 3))
    mixed = jnp.stack([jnp.zeros(3), jnp.full(3, 2.0)])
    assert float(trust_ratio(zero, update=one, stacked=False).squeeze()) == 1.0
    assert float(trust_ratio(one, update=zero, stacked=False).squeeze()) == 1.0
    np.testing.assert_allclose(trust_ratio(mixed, update=one, stacked=True), [[1.0], [2.0]])


def shapes(preset: str) -> Any:
    """Return the shapes of a preset's parameters."""

    def init() -> Any:
        sample = jnp.zeros((1, 1), jnp.int32)
        inputs = EncoderInputs(sample, sample, sample, sample)
        model = PretrainingModel(model_preset(preset))
        return nn.meta.unbox(model.init(jax.random.key(0), inputs, positions=sample, cls_positions=sample)["params"])

    return jax.eval_shape(init)


@pytest.mark.parametrize("preset", ["tiny", "mini", "small", "medium", "base", "large"])
def test_every_parameter_is_matched_and_decays_as_in_the_original(preset: str) -> None:
    tree = shapes(preset)
    layers = model_preset(preset).num_hidden_layers
    policies = [jax.tree.leaves(apply_policy(policy, params=tree)) for policy in (DECAY_POLICY, STACKED_POLICY)]
    for name, leaf, decay, is_stacked in zip(parameter_names(tree), jax.tree.leaves(tree), *policies, strict=True):
        # The original excludes what has "LayerNorm", "layer_norm" or "bias" in its name: vectors. All matrices decay.
        assert decay == (leaf.ndim - is_stacked == 2), name
        assert not is_stacked or leaf.shape[0] == layers, name
        assert is_stacked == name.startswith("encoder/layers/"), name


def test_a_parameter_that_no_policy_knows_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="head/novelty"):
        apply_policy(DECAY_POLICY, params={"head": {"novelty": jnp.ones(2)}})


def test_the_first_match_of_a_policy_wins() -> None:
    policy = ((r"a/.*", 1), (r".*", 2))
    assert apply_policy(policy, params={"a": {"x": 0}, "b": {"a": {"x": 0}}}) == {"a": {"x": 1}, "b": {"a": {"x": 2}}}


@pytest.mark.parametrize(
    ("recipe", "name", "expected"),
    [
        ("original", "auto", ("bert_adam", False, False)),
        ("modern", "auto", ("adamw", True, False)),
        ("original", "lamb", ("lamb", True, True)),
        ("modern", "bert_adam", ("bert_adam", False, False)),
    ],
)
def test_auto_follows_the_recipe(recipe: str, name: str, expected: tuple[str, bool, bool]) -> None:
    rule = optimizer_rule(OptimizerConfig(name=name), recipe=recipe)
    assert (rule.name, rule.bias_correction, rule.trust_ratio) == expected


def test_gradients_are_clipped_by_their_global_norm_and_small_ones_are_not() -> None:
    config = OptimizerConfig(max_grad_norm=1.0)
    optimizer = make_optimizer(
        config, rule=optimizer_rule(OptimizerConfig(), recipe="modern"), schedule=lambda step: jnp.ones(())
    )
    params = {"a": {"kernel": jnp.ones(2)}, "b": {"bias": jnp.ones(1)}}
    for factor, clipped in ((0.1, 0.1), (10.0, 1.0)):
        grads = {"a": {"kernel": factor * jnp.array([0.0, 0.6])}, "b": {"bias": factor * jnp.array([0.8])}}
        _, state = optimizer.update(grads, optimizer.init(params), params)
        moments = next(s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")).mu
        np.testing.assert_allclose(moments["a"]["kernel"], [0.0, 0.06 * clipped], rtol=UPDATE)
        np.testing.assert_allclose(moments["b"]["bias"], [0.08 * clipped], rtol=UPDATE)
