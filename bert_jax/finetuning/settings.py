"""Hold what differs between the runs of a sweep, as arrays: one compiled step serves them all."""

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
    """Hold one point of the grid, and the seed of its shuffling, its head and its dropout."""

    batch_size: int
    learning_rate: float
    num_epochs: float
    seed: int

    @property
    def name(self) -> str:
        """Return a folder's name."""
        return f"b{self.batch_size}-lr{self.learning_rate:g}-e{self.num_epochs:g}-s{self.seed}"

    @property
    def setting(self) -> str:
        """Return the name without the seed."""
        return self.name.rpartition("-s")[0]


def grid(config: FinetuneConfig, *, sweep: bool, seeds: int) -> list[RunSettings]:
    """Return the runs: one, or the grid of the config; each with `seeds` seeds."""
    train, rate = config.train, config.optimizer.learning_rate
    points: Iterator[tuple[int, float, float]] = iter([(train.batch_size, rate, train.num_epochs)])
    if sweep:
        space = config.sweep
        points = ((b, lr, e) for b in space.batch_size for lr in space.learning_rate for e in space.num_epochs)
    return [RunSettings(b, lr, e, config.seed + s) for b, lr, e in points for s in range(seeds)]


@struct.dataclass
class StepSettings:
    """Hold what a compiled step must be told about its run."""

    key: Key[Array, ""]
    learning_rate: Float[Array, ""]
    warmup_steps: Float[Array, ""]
    num_steps: Float[Array, ""]


def step_settings(run: RunSettings, *, num_steps: int, warmup_fraction: float) -> StepSettings:
    """Return the arrays of a run; the warm-up is rounded to whole steps, as the original rounds it."""
    return StepSettings(
        key=jax.random.key(run.seed),
        learning_rate=jnp.float32(run.learning_rate),
        warmup_steps=jnp.float32(int(num_steps * warmup_fraction)),
        num_steps=jnp.float32(num_steps),
    )


def no_settings() -> StepSettings:
    """Return settings for making optimizer states, which do not depend on them."""
    nothing: Float[Array, ""] = jnp.zeros((), jnp.float32)
    return StepSettings(jax.random.key(0), nothing, nothing, nothing)


def learning_rate(step: Int[Array, ""], *, settings: StepSettings, recipe: str) -> Float[Array, ""]:
    """Return the rate of the update from `step` to `step + 1`: that of `training.schedule`, for traced settings."""
    rate = schedule.learning_rate(
        step, peak=settings.learning_rate, warmup=settings.warmup_steps, total=settings.num_steps, recipe=recipe
    )
    return jnp.maximum(rate, 0)


def make_optimizer(config: FinetuneConfig, *, settings: StepSettings, num_layers: int) -> optax.GradientTransformation:
    """Return the optimizer of a run inside a traced step."""
    fixed = optimizer_config(config)
    rule = optim.optimizer_rule(fixed, recipe=config.recipe)

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        return learning_rate(step, settings=settings, recipe=config.recipe)

    optimizer = optim.make_optimizer(fixed, rule=rule, schedule=rate)
    if config.optimizer.layerwise_lr_decay == 1:
        return optimizer
    return optax.chain(optimizer, layerwise_decay(config.optimizer.layerwise_lr_decay, num_layers=num_layers))


def layerwise_decay(decay: float, *, num_layers: int) -> optax.GradientTransformation:
    """Return the scaling of updates by depth (ELECTRA, `layerwise_lr_decay`): 1 at the head, less below.

    The pooler and the head have the full rate, layer l (from 0) of L `decay ** (L - l)`, the embeddings
    `decay ** (L + 1)`.
    """

    def scale(name: str, update: jax.Array) -> jax.Array:
        if name.startswith(LAYERS):
            powers = decay ** jnp.arange(num_layers, 0, -1, dtype=jnp.float32)
            return update * powers.reshape((-1,) + (1,) * (update.ndim - 1))
        return update * decay ** (num_layers + 1) if name.startswith("encoder/embeddings/") else update

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        del params
        leaves = [scale(n, u) for n, u in zip(parameter_names(updates), jax.tree.leaves(updates), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
