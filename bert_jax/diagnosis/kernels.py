"""Check `kernels`: each Pallas kernel that this chip runs, forward and backward, compared with its plain form.

Kernels get bfloat16; the plain form gets the same values in float32 with its matmuls at the highest precision, on the
same device. Which probabilities are dropped is compared exactly. A CPU runs no kernel: there the source of the TPU's
kernels is interpreted.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.diagnosis import rounding
from bert_jax.diagnosis.results import CheckResult, Context, failed, ok, skipped
from bert_jax.model import attention, residual_norm
from bert_jax.model.attention import AttentionMask, Projected
from bert_jax.model.attention_dropout import AttentionDropout
from bert_jax.model.chip import uses_tpu_norm_kernels
from bert_jax.model.dropout import Dropout
from bert_jax.model.kernel_notices import kernel_notices
from bert_jax.model.kernels.fused_residual_norm import fused_residual_norm

RATE, EPS = 0.1, 1e-12
_HEAD_SIZE = 64
# In a program's text, the call of a kernel.
_MARKS = {"tpu": "tpu_custom_call", "gpu": "triton"}
_SITE, _SEED = 1, 6
_OUTPUTS = (
    "output",
    *(f"gradient of {name}" for part in ("query", "key", "value") for name in (f"the {part}", f"the {part} bias")),
)
_NORM_OUTPUTS = (
    "output",
    *(f"gradient of the {name}" for name in ("input", "product", "product's bias", "scale", "bias")),
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The largest error of a kernel as a fraction of its bound, the plain form's in bfloat16, and what is wrong."""

    name: str
    fraction: float = 0.0
    plain_fraction: float = 0.0
    array: str = ""  # which was the worst
    wrong: str = ""
    has_kernel: bool = True

    def line(self) -> str:
        """Return the comparison as a line of the report."""
        if self.wrong:
            return f"{self.name}: WRONG, {self.wrong}"
        if not self.has_kernel:
            return f"{self.name}: no kernel on this chip, the plain form computes"
        plain = f"the plain form's {self.plain_fraction:.2f}"
        return f"{self.name}: largest error {self.fraction:.2f} of what rounding allows ({self.array}), {plain}"


def check(context: Context) -> CheckResult:
    """Compare on the first device of each host."""
    del context
    platform = jax.default_backend()
    notices = kernel_notices(dtype="bfloat16", implementation="auto")
    if platform not in ("cpu", *_MARKS):
        return skipped(f"no kernels for {platform}: plain forms only")
    with jax.default_device(jax.local_devices()[0]):
        comparisons = [make() for make in cases(platform)]
    lines = [*notices, *(comparison.line() for comparison in comparisons)]
    wrong = [comparison for comparison in comparisons if comparison.wrong]
    compared = [comparison for comparison in comparisons if comparison.has_kernel]
    if wrong:
        return failed(f"{wrong[0].name}: {wrong[0].wrong}", lines)
    if not compared:
        return skipped("plain forms only on this chip: nothing to compare", lines)
    largest = max(comparison.fraction for comparison in compared)
    how = "; interpreted, for a CPU has no kernels of its own" if platform == "cpu" else ""
    return ok(
        f"{len(compared)} of {len(comparisons)} compared, errors up to {largest:.2f} of what rounding allows{how}",
        lines,
    )


def cases(platform: str) -> list[Callable[[], Comparison]]:
    """Return the comparisons of a platform; where kernels are interpreted, of the least shapes that they take."""
    if platform == "cpu":
        return [
            functools.partial(compare_attention, 128, batch=1, heads=2, packed=True, platform=platform),
            functools.partial(compare_norm, 128, batch=1, length=64, platform=platform),
        ]
    shapes = [(128, False), (128, True), (512, False), (512, True)]
    return [
        *(functools.partial(compare_attention, n, batch=4, heads=8, packed=p, platform=platform) for n, p in shapes),
        functools.partial(compare_norm, 768, batch=4, length=128, platform=platform),
        functools.partial(compare_norm, 1024, batch=4, length=512, platform=platform),
    ]


def compare_attention(length: int, *, batch: int, heads: int, packed: bool, platform: str) -> Comparison:
    """Compare attention with dropout; `packed` sequences hold three instances and padding."""
    name = f"attention with dropout, {length} tokens{', packed' if packed else ''}"
    mask, dropout = _mask(batch, length, packed=packed), Dropout.create(jax.random.key(_SEED), rows=jnp.arange(batch))
    shapes = [(batch, length, heads, _HEAD_SIZE), (heads, _HEAD_SIZE)] * 3 + [(batch, length, heads, _HEAD_SIZE)]
    # Small queries and keys: probabilities near each other, none of which rounds to nothing.
    arrays = _random(shapes, scales=[0.5, 0.5, 0.5, 0.5, 1, 1, 1])
    implementation = "pallas" if platform == "cpu" else "auto"

    def attend(implementation: str, *values: jax.Array) -> jax.Array:
        query, key, value = (Projected(values[at], values[at + 1]) for at in (0, 2, 4))
        rest = {"dropout": dropout, "rate": RATE, "site": _SITE, "implementation": implementation}
        return attention.attend(query, key=key, value=value, mask=mask, **rest)

    kernel = functools.partial(attend, implementation)
    if not _has_kernel(kernel, arrays[:-1], platform=platform):
        return Comparison(name, has_kernel=False)
    plain = functools.partial(attend, "reference")
    bounds = functools.partial(rounding.attention_bounds, allowed=np.asarray(mask.dense()), rate=RATE)
    result = _compare(name, kernel, plain=plain, arrays=arrays, bounds=bounds, outputs=_OUTPUTS)
    if result.wrong:
        return result
    differing = _differing_drops(kernel, arrays, mask=mask, dropout=dropout)
    return dataclasses.replace(result, wrong=f"{differing} probabilities dropped otherwise") if differing else result


def compare_norm(width: int, *, batch: int, length: int, platform: str) -> Comparison:
    """Compare dropout, residual and norm after a sub-layer."""
    name = f"dropout, residual and norm, {length} tokens of {width}"
    dropout = Dropout.create(jax.random.key(_SEED), rows=jnp.arange(batch))
    tokens = (batch, length, width)
    arrays = _random([tokens, tokens, (width,), (width,), (width,), tokens])
    arrays[3:5] = [array.astype(jnp.float32) for array in arrays[3:5]]

    def norm(hidden: jax.Array, product: jax.Array, *weights: jax.Array, plain: bool) -> jax.Array:
        product_bias, scale, bias = weights
        if platform == "cpu" and not plain:
            seeds = dropout.row_seeds(_SITE)
            inputs = (hidden, product, *weights)
            return fused_residual_norm(inputs, eps=EPS, seeds=seeds, rate=RATE, fuse_forward=True, interpret=True)
        rest: dict[str, Any] = {"eps": EPS, "dropout": dropout, "rate": RATE, "site": _SITE, "plain": plain}
        sublayer = residual_norm.Sublayer(product, product_bias)
        return residual_norm.residual_norm(sublayer, hidden=hidden, scale=scale, bias=bias, **rest)

    kernel = functools.partial(norm, plain=False)
    if platform == "tpu" and not uses_tpu_norm_kernels():
        return Comparison(name, has_kernel=False)
    if not _has_kernel(kernel, arrays[:-1], platform=platform):
        return Comparison(name, has_kernel=False)
    bounds = functools.partial(rounding.norm_bounds, rate=RATE, eps=EPS)
    plain = functools.partial(norm, plain=True)
    return _compare(name, kernel, plain=plain, arrays=arrays, bounds=bounds, outputs=_NORM_OUTPUTS)


def _compare(
    name: str, kernel: Callable, *, plain: Callable, arrays: list[jax.Array], bounds: Callable, outputs: tuple[str, ...]
) -> Comparison:
    """Compare values and gradients with the plain form's in float32."""
    exact = [array.astype(jnp.float32) for array in arrays]
    with jax.default_matmul_precision("highest"):
        expected = _with_gradients(plain, exact)
    limits = bounds([np.asarray(array) for array in exact], expected=expected)
    fractions, by_plain = (
        rounding.worst(_with_gradients(form, arrays), expected=expected, bounds=limits) for form in (kernel, plain)
    )
    largest = max(fractions)
    array = outputs[fractions.index(largest)]
    wrong = f"{array} is off by {largest:.3g} times what rounding allows" if largest > 1 else ""
    return Comparison(name, fraction=largest, plain_fraction=max(by_plain), array=array, wrong=wrong)


def _with_gradients(function: Callable[..., jax.Array], arrays: list[jax.Array]) -> list[np.ndarray]:
    def both(values: list[jax.Array], d_out: jax.Array) -> list[jax.Array]:
        result, pull = jax.vjp(function, *values)
        return [result, *pull(d_out)]

    return [np.asarray(array.astype(jnp.float32)) for array in jax.jit(both)(arrays[:-1], arrays[-1])]


def _differing_drops(kernel: Callable, arrays: list[jax.Array], *, mask: AttentionMask, dropout: Dropout) -> int:
    """Return how many probabilities the kernel drops and `attention_dropout` keeps, or the other way around.

    With the identity for 64 of the values, the output is the probabilities of their keys: 0 where dropped.
    """
    query, q_bias, key, k_bias, value, v_bias, _ = arrays
    batch, length, heads, size = query.shape
    dropping = AttentionDropout.create(dropout, rate=RATE, site=_SITE)
    assert dropping is not None
    expected = np.asarray(dropping.keep(jnp.arange(heads), length=length)) & np.asarray(mask.dense())
    differing = 0
    run = jax.jit(kernel)
    for first in range(0, length, size):
        identity = jnp.eye(length, dtype=value.dtype)[:, first : first + size]
        values = jnp.broadcast_to(identity[None, :, None, :], (batch, length, heads, size))
        shown = np.asarray(run(query, q_bias, key, k_bias, values, jnp.zeros_like(v_bias)).astype(jnp.float32) != 0)
        differing += int((shown.transpose(0, 2, 1, 3) != expected[..., first : first + size]).sum())
    return differing


def _has_kernel(function: Callable[..., jax.Array], arrays: list[jax.Array], *, platform: str) -> bool:
    """Return whether what this chip runs of `function` calls a kernel."""
    return platform == "cpu" or _MARKS[platform] in jax.jit(function).lower(*arrays).as_text()


def _mask(batch: int, length: int, *, packed: bool) -> AttentionMask:
    """Return the mask of whole sequences, or of three instances of unequal lengths and padding."""
    ends = np.array([length // 2, length * 3 // 4, length - 5]) if packed else np.array([length])
    index = np.arange(length)
    segments = np.where(index < ends[-1], 1 + (index[:, None] >= ends[:-1]).sum(1), 0)
    starts = np.concatenate([[0], ends[:-1]])
    positions = np.where(segments > 0, index - starts[segments - 1], 0)
    whole: list[Any] = [jnp.broadcast_to(jnp.asarray(array), (batch, length)) for array in (segments, positions)]
    return AttentionMask(*whole, direction="bidirectional")


def _random(shapes: list[tuple[int, ...]], *, scales: list[float] | None = None) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(8), len(shapes))
    pairs = zip(keys, shapes, scales or [1.0] * len(shapes), strict=True)
    return [(scale * jax.random.normal(key, shape)).astype(jnp.bfloat16) for key, shape, scale in pairs]
