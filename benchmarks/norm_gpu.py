"""Compare the GPU kernel for bias, dropout, residual and LayerNorm after a sublayer with the plain form by XLA.

    python benchmarks/norm_gpu.py --batch_size=128 --max_seq_length=128 --hidden_size=1024

Prints the errors of output and gradients against the plain form in float32, relative to the largest value, and
microseconds of the forward pass, and of forward and backward pass. Needs a CUDA build of jax.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_timing import microseconds, with_gradients
from bert_jax.model.dropout import Dropout
from bert_jax.model.residual_norm import Sublayer, residual_norm

LENGTH = flags.DEFINE_integer("max_seq_length", 128, "Tokens per sequence.")
BATCH = flags.DEFINE_integer("batch_size", 128, "Sequences.")
WIDTH = flags.DEFINE_integer("hidden_size", 1024, "Features per token.")
RATE = 0.1


def random_arrays() -> list[jax.Array]:
    """Return hidden states, the sublayer's product and its bias, scale and bias of the norm, and a cotangent."""
    tokens, features = (BATCH.value, LENGTH.value, WIDTH.value), (WIDTH.value,)
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = [tokens, tokens, features, features, features, tokens]
    dtypes = [jnp.bfloat16] * 3 + [jnp.float32] * 2 + [jnp.bfloat16]
    return [jax.random.normal(*pair).astype(dtype) for *pair, dtype in zip(keys, shapes, dtypes, strict=True)]


def norm(*, plain: bool) -> Callable[..., jax.Array]:
    """Return the function of hidden states, product, its bias, scale and bias."""
    dropout = Dropout.create(jax.random.key(1), rows=jnp.arange(BATCH.value))

    def call(hidden: jax.Array, product: jax.Array, product_bias: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
        rest = {"eps": 1e-12, "dropout": dropout, "rate": RATE, "site": 2, "plain": plain}
        return residual_norm(Sublayer(product, product_bias), hidden=hidden, scale=scale, bias=bias, **rest)

    return call


def main(argv: list[str]) -> None:
    """Print errors and times of kernel and plain form."""
    del argv
    arrays = random_arrays()
    wide = [array.astype(jnp.float32) for array in arrays]
    expected = jax.tree.leaves(with_gradients(norm(plain=True))(*wide))
    for name, plain in (("kernel", False), ("plain", True)):
        function = norm(plain=plain)
        actual = jax.tree.leaves(with_gradients(function)(*arrays))
        errors = [
            float(jnp.abs(a.astype(jnp.float32) - e).max() / jnp.abs(e).max())
            for a, e in zip(actual, expected, strict=True)
        ]
        forward, both = (
            microseconds(jax.jit(function), arrays[:5], calls=20),
            microseconds(with_gradients(function), arrays, calls=20),
        )
        print(
            f"{name:<8} forward {forward:6.0f} us, with backward {both:6.0f} us; errors", *(f"{e:.4f}" for e in errors)
        )


if __name__ == "__main__":
    app.run(main)
