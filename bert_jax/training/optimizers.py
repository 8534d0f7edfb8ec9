"""Optimizers: BERT's Adam, AdamW, LAMB, StableAdamW and Muon, each tested against a transcript of its reference.

BERT's Adam (optimization.py of google-research/bert) has no bias correction and adds the decay to the update. AdamW
(Loshchilov & Hutter 2019) is the same with bias correction. LAMB (You et al. 2020, algorithm 2) scales the AdamW update
of each tensor by |parameter| / |update|. StableAdamW (Wortsman et al. 2023, algorithm 2; the form of ModernBERT's) is
AdamW that lowers the rate of a tensor whose gradients outgrow their second moment. Muon (Jordan et al. 2024) makes the
momentum of a matrix orthogonal; it is used for the matrices of the layers, AdamW for the rest. Its update is scaled by
0.2 sqrt(max(rows, columns)), so that AdamW's learning rate and decay suit it (Liu et al. 2025, section 2.2). A
parameter stacked over layers counts as one tensor per layer.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bert_jax.config import OptimizerConfig
from bert_jax.training.policy import Policy, apply_policy
from bert_jax.types import LAYERS

# The original decays every kernel and table and excludes "LayerNorm", "layer_norm" and "bias" by name. LAMB applies
# no trust ratio to the same parameters: the paper does not say, but the implementations that trained BERT do so.
DECAY_POLICY: Policy[bool] = (
    (r".*layer_norm/(scale|bias)", False),
    (r".*bias", False),
    (r".*(kernel|embeddings)", True),
)


def decay_policy(*, untrained: Sequence[str] = ()) -> Policy[bool]:
    """Return which parameters decay. Those of the parts `untrained`, which no loss reaches, keep their values."""
    return (*((rf"{part}/.*", False) for part in untrained), *DECAY_POLICY)


# What Muon updates.
ORTHOGONAL_POLICY: Policy[bool] = ((rf"(.*/)?{LAYERS}.*kernel", True), (r".*", False))
# Parameters with a leading axis of layers.
STACKED_POLICY: Policy[bool] = ((rf"(.*/)?{LAYERS}.*", True), (r".*", False))
# Newton-Schulz iteration of Muon: the quintic's coefficients, and its steps.
_QUINTIC, _QUINTIC_STEPS = (3.4445, -4.7750, 2.0315), 5
_MUON_SCALE = 0.2  # the root mean square of AdamW's updates, as measured by Liu et al. 2025


class AdamState(NamedTuple):
    """The moments and the number of updates."""

    count: Int[Array, ""]
    mu: Any
    nu: Any


@dataclasses.dataclass(frozen=True)
class OptimizerRule:
    """The differences between the optimizers, after the config's `auto` is resolved."""

    name: str
    bias_correction: bool
    trust_ratio: bool
    update_clipping: bool = False
    orthogonal: bool = False


def optimizer_rule(config: OptimizerConfig, *, recipe: str) -> OptimizerRule:
    """Return the rule that the config names; `auto` follows the recipe."""
    name = config.name
    if name == "auto":
        name = "bert_adam" if recipe == "original" else "adamw"
    return OptimizerRule(
        name=name,
        bias_correction=name != "bert_adam",
        trust_ratio=name == "lamb",
        update_clipping=name == "stable_adamw",
        orthogonal=name == "muon",
    )


def make_optimizer(
    config: OptimizerConfig,
    *,
    rule: OptimizerRule,
    schedule: Callable[[Int[Array, ""]], Float[Array, ""]],
    untrained: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Return global-norm clipping followed by the optimizer that `rule` describes.

    Parameters of the parts `untrained` are not decayed. With `clip_replicas` above 1 the step clips each micro-batch
    itself, so there is no clipping here.
    """
    clips = config.clip_replicas == 1 and config.max_grad_norm > 0
    clip = optax.clip_by_global_norm(config.max_grad_norm) if clips else optax.identity()
    policy = decay_policy(untrained=untrained)
    return optax.chain(clip, _adam_family(config, rule=rule, schedule=schedule, policy=policy))


def _adam_family(
    config: OptimizerConfig,
    *,
    rule: OptimizerRule,
    schedule: Callable[[Int[Array, ""]], Float[Array, ""]],
    policy: Policy[bool],
) -> optax.GradientTransformation:
    def init(params: Any) -> AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(count=jnp.zeros((), jnp.int32), mu=zeros, nu=jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        mu = jax.tree.map(lambda m, g: config.beta1 * m + (1 - config.beta1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: config.beta2 * v + (1 - config.beta2) * jnp.square(g), state.nu, updates)
        number = (state.count + 1).astype(jnp.float32)
        # 1 - beta^n as -expm1(n log beta): in float32, 1 - 0.999 itself has lost four digits.
        mu_scale = -1 / jnp.expm1(number * math.log(config.beta1)) if rule.bias_correction and config.beta1 else 1.0
        nu_scale = -1 / jnp.expm1(number * math.log(config.beta2)) if rule.bias_correction and config.beta2 else 1.0
        rate = schedule(state.count)

        def step(g: Array, m: Array, v: Array, p: Array, decays: bool, stacked: bool, orthogonal: bool) -> Array:
            if orthogonal:
                delta = muon_update(g, momentum=m, beta=config.beta1, number=number)
            else:
                delta = (m * mu_scale) / (jnp.sqrt(v * nu_scale) + config.epsilon)
            if decays:
                delta += config.weight_decay * p
            if decays and rule.trust_ratio:
                delta *= trust_ratio(p, update=delta, stacked=stacked)
            if rule.update_clipping:
                delta /= excess(g, second_moment=v * nu_scale, epsilon=config.epsilon, stacked=stacked)
            return -rate * delta

        decays = apply_policy(policy, params=params)
        stacked = apply_policy(STACKED_POLICY, params=params)
        orthogonal = jax.tree.map(
            lambda matrix: matrix and rule.orthogonal, apply_policy(ORTHOGONAL_POLICY, params=params)
        )
        deltas = jax.tree.map(step, updates, mu, nu, params, decays, stacked, orthogonal)
        return deltas, AdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def trust_ratio(param: Float[Array, "*n"], *, update: Float[Array, "*n"], stacked: bool) -> Float[Array, "*n"]:
    """Return |param| / |update| over the tensor, or per layer of a stacked one; 1 where either norm is 0."""
    axes = tuple(range(1, param.ndim)) if stacked else None
    param_norm = jnp.sqrt(jnp.square(param).sum(axes, keepdims=True))
    update_norm = jnp.sqrt(jnp.square(update).sum(axes, keepdims=True))
    defined = (param_norm > 0) & (update_norm > 0)
    return jnp.where(defined, param_norm / jnp.where(defined, update_norm, 1), 1.0)


def excess(
    grad: Float[Array, "*n"], *, second_moment: Float[Array, "*n"], epsilon: float, stacked: bool
) -> Float[Array, "*m"]:
    """Return max(1, RMS(g / sqrt(v))) over the tensor, or per layer of a stacked one: what StableAdamW divides by."""
    axes = tuple(range(1, grad.ndim)) if stacked else None
    ratio = jnp.square(grad) / jnp.maximum(second_moment, epsilon**2)
    return jnp.maximum(1.0, jnp.sqrt(ratio.mean(axes, keepdims=True)))


def muon_update(
    grad: Float[Array, "*l m n"], *, momentum: Float[Array, "*l m n"], beta: float, number: Float[Array, ""]
) -> Float[Array, "*l m n"]:
    """Return Muon's update of matrices; `momentum` includes `grad`, and `number` counts updates from 1."""
    # Nesterov's momentum with both terms corrected for their bias, as in optax. Only their proportion matters.
    corrected = momentum / (1 - beta ** (number + 1)), grad / (1 - beta**number)
    rows, columns = grad.shape[-2:]
    return _MUON_SCALE * math.sqrt(max(rows, columns)) * orthogonalized(beta * corrected[0] + (1 - beta) * corrected[1])


def orthogonalized(matrices: Float[Array, "*l m n"]) -> Float[Array, "*l m n"]:
    """Return U V^T of the singular value decomposition, roughly: singular values between about 0.7 and 1.2."""
    a, b, c = _QUINTIC
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x /= jnp.sqrt(jnp.square(x).sum((-2, -1), keepdims=True)) + 1e-8
    for _ in range(_QUINTIC_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
