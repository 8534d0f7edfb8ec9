"""Metrics as (sum, weight) pairs, until they are printed."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Mean:
    """A sum and its weight. The pairs of the parts of a batch add up to the pair of the whole batch."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    @classmethod
    def of(cls, values: Float[Array, "*n"], *, weights: Float[Array, "*n"]) -> "Mean":
        """Return the weighted sum of `values` and the sum of `weights`."""
        return cls(total=(values * weights).sum(), weight=weights.sum())

    def __add__(self, other: "Mean") -> "Mean":
        """Return the pair of both parts combined."""
        return Mean(total=self.total + other.total, weight=self.weight + other.weight)

    def value(self) -> Float[Array, ""]:
        """Return the mean, or 0 if the weight is 0."""
        return self.total / jnp.maximum(self.weight, 1e-9)


Means = dict[str, Mean]


def add_means(first: Means, second: Means) -> Means:
    """Return the pairs of two parts combined; both must have the same names."""
    return {name: mean + second[name] for name, mean in first.items()}


class MetricWindow:
    """The pairs summed over the steps between two log lines, on the host, in float64.

    Every checkpoint saves it, so a resumed run writes the same log lines as an uninterrupted one.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None):
        """Start empty, or from the value that `to_json` returned."""
        self._sums: dict[str, list[float]] = {name: list(pair) for name, pair in (saved or {}).items()}

    def add(self, means: Means) -> None:
        """Add the pairs of one step; this waits for the device."""
        for name, mean in jax.device_get(means).items():
            pair = self._sums.setdefault(name, [0.0, 0.0])
            pair[0] += float(mean.total)
            pair[1] += float(mean.weight)

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the window."""
        return {name: total / weight if weight else 0.0 for name, (total, weight) in self._sums.items()}

    def clear(self) -> None:
        """Start the next window."""
        self._sums.clear()

    def to_json(self) -> dict[str, list[float]]:
        """Return the sums for the checkpoint."""
        return {name: list(pair) for name, pair in self._sums.items()}
