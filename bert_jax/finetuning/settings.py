"""The settings in which the runs of a sweep differ, as arrays, so that one compiled step serves all runs."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from bert_jax.config.finetuning import FinetuneConfig, optimizer_config
from bert_jax.training import optimizers as optim
from bert_jax.training import schedule
from bert_jax.training.policy import parameter_names
from bert_jax.types import LAYERS


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """One point of the grid, and the seed of shuffling, head initialization and dropout."""

    batch_size: int
    learning_rate: float
    num_epochs: float
    seed: int

    @property
    def name(self) -> str:
        """Return the name of the run's folder."""
        return f"b{self.batch_size}-lr{self.learning_rate:g}-e{self.num_epochs:g}-s{self.seed}"

    @property
    def setting(self) -> str:
        """Return the name without the seed."""
        return self.name.rpartition("-s")[0]


def grid(config: FinetuneConfig, *, sweep: bool, seeds: int) -> list[RunSettings]:
    """Return the runs: one, or with `sweep` the grid in the config; each with `seeds` seeds."""
    train, rate = config.train, config.optimizer.learning_rate
    points: Iterator[tuple[int, float, float]] = iter([(train.batch_size, rate, train.num_epochs)])
    if sweep:
        space = config.sweep
        points = ((b, lr, e) for b in space.batch_size for lr in space.learning_rate for e in space.num_epochs)
    return [RunSettings(b, lr, e, config.seed + s) for b, lr, e in points for s in range(seeds)]


@struct.dataclass
class StepSettings:
    """The inputs of a compiled step that depend on the run."""

    key: Key[Array, ""]
    learning_rate: Float[Array, ""]
    warmup_steps: Float[Array, ""]
    num_steps: Float[Array, ""]


def step_settings(run: RunSettings, *, num_steps: int, warmup_fraction: float) -> StepSettings:
    """Return the arrays of a run. Warmup steps are rounded down, as in the original."""
    return StepSettings(
        key=jax.random.key(run.seed),
        learning_rate=jnp.float32(run.learning_rate),
        warmup_steps=jnp.float32(int(num_steps * warmup_fraction)),
        num_steps=jnp.float32(num_steps),
    )


def no_settings() -> StepSettings:
    """Return placeholder settings, for optimizer states, which do not depend on them."""
    zero: Float[Array, ""] = jnp.zeros((), jnp.float32)
    return StepSettings(jax.random.key(0), zero, zero, zero)


def learning_rate(step: Int[Array, ""], *, settings: StepSettings, recipe: str) -> Float[Array, ""]:
    """Return the learning rate of the update from `step` to `step + 1`: `training.schedule` with traced settings."""
    rate = schedule.learning_rate(
        step, peak=settings.learning_rate, warmup=settings.warmup_steps, total=settings.num_steps, recipe=recipe
    )
    return jnp.maximum(rate, 0)


def make_optimizer(config: FinetuneConfig, *, settings: StepSettings, num_layers: int) -> optax.GradientTransformation:
    """Return the optimizer of a run, inside a traced step."""
    fixed = optimizer_config(config)
    rule = optim.optimizer_rule(fixed, recipe=config.recipe)

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        return learning_rate(step, settings=settings, recipe=config.recipe)

    untrained = ("encoder",) if config.model.frozen_encoder else ()
    optimizer = optim.make_optimizer(fixed, rule=rule, schedule=rate, untrained=untrained)
    if config.optimizer.layerwise_lr_decay == 1:
        return optimizer
    return optax.chain(optimizer, layerwise_decay(config.optimizer.layerwise_lr_decay, num_layers=num_layers))


def layerwise_decay(decay: float, *, num_layers: int) -> optax.GradientTransformation:
    """Return layer-wise learning rate decay (ELECTRA, `layerwise_lr_decay`): updates are scaled by depth.

    The scale is 1 for pooler and head, `decay ** (L - l)` for layer l (from 0) of L, `decay ** (L + 1)` for embeddings.
    """

    def scale(name: str, update: jax.Array) -> jax.Array:
        if name.startswith(LAYERS):
            # A parameter that the first layers lack is stacked over the others.
            powers = decay ** jnp.arange(len(update), 0, -1, dtype=jnp.float32)
            return update * powers.reshape((-1,) + (1,) * (update.ndim - 1))
        return update * decay ** (num_layers + 1) if name.startswith("encoder/embeddings/") else update

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        del params
        leaves = [scale(n, u) for n, u in zip(parameter_names(updates), jax.tree.leaves(updates), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
