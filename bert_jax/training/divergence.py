"""Divergences of a student's logits from a teacher's (Hinton et al. 2015): both are divided by a temperature.

Each is multiplied by temperature^2, so that gradients keep their size at every temperature.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def softmax_divergence(
    student: Float[Array, "*n C"], teacher: Float[Array, "*n C"], *, temperature: float
) -> Float[Array, "*n"]:
    """Return KL(teacher, student) of the softmaxes. A logit of -1e30 on both sides is a class that does not exist."""
    log_q, log_p = (jax.nn.log_softmax(logits / temperature) for logits in (student, teacher))
    p = jnp.exp(log_p)
    return (p * jnp.where(p > 0, log_p - log_q, 0)).sum(-1) * temperature**2


def sigmoid_divergence(
    student: Float[Array, "*n C"], teacher: Float[Array, "*n C"], *, temperature: float
) -> Float[Array, "*n"]:
    """Return the mean over classes of KL(teacher, student) of the sigmoids."""
    p = jax.nn.sigmoid(teacher / temperature)
    of_student, of_teacher = (
        optax.sigmoid_binary_cross_entropy(logits / temperature, p) for logits in (student, teacher)
    )
    return (of_student - of_teacher).mean(-1) * temperature**2
