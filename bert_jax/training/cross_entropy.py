"""Cross-entropy of logits against labels, in three forms.

`cross_entropy` reads the logits of a whole vocabulary once. `exact_cross_entropy` needs no bound on the logits; it
serves the few classes of a fine-tuning head, where speed does not matter. `log_softmax_cross_entropy` differs from
`exact_cross_entropy` in the last bit.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# With logits up to here, a sum of exp over up to 900,000 classes stays below float32's largest number; BERT's logits
# stay below 40. Beyond this bound, and where all logits are below -80, the loss stays finite and the gradient points in
# the right direction, but neither is exact.
MAX_LOGIT = 75.0


@jax.custom_vjp
def cross_entropy(
    logits: Float[Array, "*n C"], labels: Int[Array, "*n"]
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """Return the negative log-likelihood in nats, and whether no other class scores higher.

    One read of the logits gives the sum, the maximum and the label's logit; the usual form reads them four times
    (maximum, shifted sum, label, argmax). The maximum is not subtracted, so the result is exact only while the largest
    logit is between -80 and `MAX_LOGIT`. `exact_cross_entropy` needs no bound.
    """
    loss, correct, _ = _scores(logits, labels)
    return loss, correct


def exact_cross_entropy(
    logits: Float[Array, "*n C"], labels: Int[Array, "*n"]
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """Return the same by the textbook form: log-sum-exp with the maximum subtracted; argmax takes the first of equals.

    The label's logit is a product with a one-hot vector, whose gradient needs no scatter.
    """
    label_logit = (jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) * logits).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - label_logit, jnp.argmax(logits, axis=-1) == labels


def log_softmax_cross_entropy(
    logits: Float[Array, "*n C"], labels: Int[Array, "*n"]
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """Return the same from the log-softmax, the form that feature-based taggers are trained with.

    Another form would change the last bits of their parameters, and existing workdirs could not be reproduced.
    """
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    return losses, jnp.argmax(logits, axis=-1) == labels


def _scores(logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    total = jnp.exp(jnp.minimum(logits, MAX_LOGIT)).sum(-1)
    log_sum = jnp.log(jnp.maximum(total, jnp.finfo(total.dtype).tiny))
    label_logit = jnp.where(is_label, logits, 0).sum(-1)
    return log_sum - label_logit, label_logit >= logits.max(-1), log_sum


def _forward(logits: Array, labels: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    loss, correct, log_sum = _scores(logits, labels)
    return (loss, correct), (logits, labels, log_sum)


def _backward(residuals: tuple[Array, Array, Array], grads: tuple[Array, Any]) -> tuple[Array, None]:
    logits, labels, log_sum = residuals
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    softmax = jnp.exp(jnp.minimum(logits, MAX_LOGIT) - log_sum[..., None])
    return (softmax - is_label.astype(softmax.dtype)) * grads[0][..., None], None


cross_entropy.defvjp(_forward, _backward)
