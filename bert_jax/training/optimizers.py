"""Optimizers: BERT's Adam, AdamW and LAMB, each tested against a NumPy transcript of its reference.

BERT's Adam (optimization.py of google-research/bert) has no bias correction and adds the decay to the update. AdamW
(Loshchilov & Hutter 2019) is the same with bias correction. LAMB (You et al. 2020, algorithm 2) scales the AdamW update
of each tensor by |parameter| / |update|. A parameter stacked over layers counts as one tensor per layer.
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


# Parameters with a leading axis of layers.
STACKED_POLICY: Policy[bool] = ((rf"(.*/)?{LAYERS}.*", True), (r".*", False))


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


def optimizer_rule(config: OptimizerConfig, *, recipe: str) -> OptimizerRule:
    """Return the rule that the config names; `auto` follows the recipe."""
    name = config.name
    if name == "auto":
        name = "bert_adam" if recipe == "original" else "adamw"
    return OptimizerRule(name=name, bias_correction=name != "bert_adam", trust_ratio=name == "lamb")


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
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.clip_replicas == 1 else optax.identity()
    return optax.chain(
        clip, _adam_family(config, rule=rule, schedule=schedule, policy=decay_policy(untrained=untrained))
    )


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

        def step(m: Array, v: Array, p: Array, decays: bool, stacked: bool) -> Array:
            delta = (m * mu_scale) / (jnp.sqrt(v * nu_scale) + config.epsilon)
            if decays:
                delta += config.weight_decay * p
            if decays and rule.trust_ratio:
                delta *= trust_ratio(p, update=delta, stacked=stacked)
            return -rate * delta

        decays = apply_policy(policy, params=params)
        stacked = apply_policy(STACKED_POLICY, params=params)
        return jax.tree.map(step, mu, nu, params, decays, stacked), AdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def trust_ratio(param: Float[Array, "*n"], *, update: Float[Array, "*n"], stacked: bool) -> Float[Array, "*n"]:
    """Return |param| / |update| over the tensor, or per layer of a stacked one; 1 where either norm is 0."""
    axes = tuple(range(1, param.ndim)) if stacked else None
    param_norm = jnp.sqrt(jnp.square(param).sum(axes, keepdims=True))
    update_norm = jnp.sqrt(jnp.square(update).sum(axes, keepdims=True))
    defined = (param_norm > 0) & (update_norm > 0)
    return jnp.where(defined, param_norm / jnp.where(defined, update_norm, 1), 1.0)
