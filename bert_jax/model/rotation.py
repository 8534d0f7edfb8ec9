"""Rotary position embeddings (Su et al. 2021): queries and keys are rotated by angles proportional to the position."""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int


@struct.dataclass
class Rotation:
    """Cosines and sines of h = K / 2 angles per position; the halves of a head are the two coordinates (GPT-NeoX)."""

    cosines: Float[Array, "B T h"]
    sines: Float[Array, "B T h"]

    @classmethod
    def create(cls, position_ids: Int[Array, "B T"], *, head_size: int, base: float) -> "Rotation":
        """Return the rotation by the angles position * base^(-2i / head_size), in float32."""
        # Rounded once: at position 8,192 an angle is off by 8,192 times the error of its frequency.
        frequencies = jnp.asarray(base ** (-np.arange(0, head_size, 2) / head_size), jnp.float32)
        angles = position_ids[..., None].astype(jnp.float32) * frequencies[None, None]
        return cls(cosines=jnp.cos(angles), sines=jnp.sin(angles))

    def __call__(self, values: Float[Array, "B T N K"]) -> Float[Array, "B T N K"]:
        """Return the rotated values in their dtype; the products are float32."""
        first, second = jnp.split(values.astype(jnp.float32), 2, axis=-1)
        cosines, sines = self.cosines[:, :, None], self.sines[:, :, None]
        rotated = jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
        return rotated.astype(values.dtype)
