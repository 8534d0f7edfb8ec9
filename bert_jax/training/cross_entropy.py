"""Cross-entropy of logits against labels, in every form that is needed.

`cross_entropy` reads the logits of a whole vocabulary once. `exact_cross_entropy` needs no bound on the logits, which
matters to the few classes of a fine-tuning head and not to the time of its step. `log_softmax_cross_entropy` differs
from it in the last bit.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# A sum of exp over up to 900,000 classes stays below float32's largest number; BERT's logits stay below 40. Beyond it,
# and where all logits lie below -80, the loss is still finite and the gradient points the right way, but they are no
# longer exact.
MAX_LOGIT = 75.0


@jax.custom_vjp
def cross_entropy(
    logits: Float[Array, "*n C"], labels: Int[Array, "*n"]
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """Return the negative log-likelihood in nats, and whether no other class scores higher.

    Sum, maximum and the label's logit are reductions of one read of the logits; the usual form reads them four times
    (maximum, shifted sum, label, argmax). It subtracts no maximum, so it is exact while the largest logit lies between
    -80 and `MAX_LOGIT`; `exact_cross_entropy` is the form that needs no bound.
    """
    loss, right, _ = _scores(logits, labels)
    return loss, right


def exact_cross_entropy(
    logits: Float[Array, "*n C"], labels: Int[Array, "*n"]
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """Return the same by the textbook: log-sum-exp after the maximum, argmax (of equal logits the first).

    The label's logit is a product with a one-hot vector, whose gradient needs no scatter.
    """
    picked = (jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) * logits).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - picked, jnp.argmax(logits, axis=-1) == labels


def log_softmax_cross_entropy(
    logits: Float[Array, "*n C"], labels: Int[Array, "*n"]
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """Return the same from the logarithm of the softmax: the form that feature-based taggers are trained with.

    With another form their parameters would differ in the last bits from those that workdirs hold results of.
    """
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    return losses, jnp.argmax(logits, axis=-1) == labels


def _scores(logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    total = jnp.exp(jnp.minimum(logits, MAX_LOGIT)).sum(-1)
    log_sum = jnp.log(jnp.maximum(total, jnp.finfo(total.dtype).tiny))
    picked = jnp.where(is_label, logits, 0).sum(-1)
    return log_sum - picked, picked >= logits.max(-1), log_sum


def _forward(logits: Array, labels: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    loss, right, log_sum = _scores(logits, labels)
    return (loss, right), (logits, labels, log_sum)


def _backward(saved: tuple[Array, Array, Array], grads: tuple[Array, Any]) -> tuple[Array, None]:
    logits, labels, log_sum = saved
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    softmax = jnp.exp(jnp.minimum(logits, MAX_LOGIT) - log_sum[..., None])
    return (softmax - is_label.astype(softmax.dtype)) * grads[0][..., None], None


cross_entropy.defvjp(_forward, _backward)
