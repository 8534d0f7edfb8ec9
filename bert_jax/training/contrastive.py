"""Losses of text embeddings: InfoNCE with in-batch and hard negatives, CoSENT, each at several sizes (Matryoshka).

Every loss takes the examples of one replica and those of all replicas, and returns the losses of the replica's own
examples, so that their mean over all replicas is the loss of the whole batch.

Axes: n examples of the replica, N of all replicas, G texts per example, D the embedding.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

_MASKED = -1e30  # finite: its exponential is 0, and it has no gradient that is not a number
_EXACT = jax.lax.Precision.HIGHEST  # float32 products on TPUs too: logits are similarities times 20


@struct.dataclass
class Examples:
    """The embeddings of examples: a first text, the text that belongs to it, and hard negatives."""

    embeddings: Float[Array, "n G D"]
    texts: Int[Array, "n G"]  # equal texts have equal numbers; 0: no text
    labels: Float[Array, " n"]  # the similarity of the first two texts, for CoSENT
    weights: Float[Array, " n"]  # 1 for an example, 0 for an empty slot
    numbers: Int[Array, " n"]  # distinct in the batch


@struct.dataclass
class Contrast:
    """The loss of each example, and whether its second text is the most similar to its first one."""

    losses: Float[Array, " n"]
    correct: Float[Array, " n"] | None


Loss = Callable[[Examples, Examples], Contrast]


def normalized(vectors: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """Return vectors of length 1; a vector of zeros stays one, with a finite gradient."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(-1, keepdims=True), 1e-24))


def info_nce(
    own: Examples, every: Examples, *, temperature: float, symmetric: bool, is_cosine: bool = True
) -> Contrast:
    """Return the cross-entropy of choosing each example's second text among all second texts and all hard negatives.

    With `symmetric` it is the mean of that and the cross-entropy of choosing its first text among all first texts.

    Texts that are known to belong together are not negatives of each other: a candidate is left out if it equals the
    text to choose or the given text, or if it is the counterpart of a text equal to the given one. Without equal texts
    this is MultipleNegativesRankingLoss of sentence-transformers; with `symmetric`, in the directions "query_to_doc"
    and "doc_to_query", a partition each.
    """
    first, second = (_scaled(own, is_cosine)[:, text] for text in (0, 1))
    firsts, seconds, *negatives = jnp.moveaxis(_scaled(every, is_cosine), 1, 0)
    positive = (first * second).sum(-1) / temperature
    is_own = own.numbers[:, None] == every.numbers[None, :]
    exists = (every.weights > 0)[None, :]
    same_first, same_second = _equal(own, 0, every, 0), _equal(own, 1, every, 1)
    cross = _equal(own, 0, every, 1), _equal(own, 1, every, 0)

    def others(anchors: Array, candidates: Array, allowed: Bool[Array, "n N"]) -> Float[Array, "n N"]:
        logits = jnp.matmul(anchors, candidates.T, precision=_EXACT) / temperature
        return jnp.where(allowed & exists, logits, _MASKED)

    logits = [others(first, seconds, ~(is_own | same_first | same_second | cross[0]))]
    for number, candidates in enumerate(negatives, start=2):
        known = _equal(own, 0, every, number) | _equal(own, 1, every, number)
        logits.append(others(first, candidates, ~known & (every.texts[:, number] != 0)[None, :]))
    losses, correct = _choice(positive, jnp.concatenate(logits, axis=1))
    if symmetric:
        backward, _ = _choice(positive, others(second, firsts, ~(is_own | same_first | same_second | cross[1])))
        losses = (losses + backward) / 2
    return Contrast(losses, correct)


def cosent(own: Examples, every: Examples, *, temperature: float, is_cosine: bool = True) -> Contrast:
    """Return the loss of all pairs of examples that are ordered the wrong way, the same for every example.

    log(1 + sum of exp((s_i - s_j) / temperature)) over the pairs whose label i is below label j, where s is the
    similarity of an example's two texts: CoSENTLoss of sentence-transformers.
    """
    scaled = _scaled(every, is_cosine)
    scores = (scaled[:, 0] * scaled[:, 1]).sum(-1) / temperature
    is_below = every.labels[:, None] < every.labels[None, :]
    counts = is_below & (every.weights[:, None] > 0) & (every.weights[None, :] > 0)
    differences = jnp.where(counts, scores[:, None] - scores[None, :], _MASKED)
    loss = jax.nn.logsumexp(jnp.append(differences.reshape(-1), 0.0))
    return Contrast(jnp.broadcast_to(loss, own.weights.shape), None)


def matryoshka(loss: Loss, *, dimensions: tuple[int, ...]) -> Loss:
    """Return the sum of `loss` of whole embeddings and of those truncated to each of `dimensions`."""

    def total(own: Examples, every: Examples) -> Contrast:
        whole = loss(own, every)
        losses = whole.losses
        for size in dimensions:
            if size < own.embeddings.shape[-1]:
                losses = losses + loss(_truncated(own, size), _truncated(every, size)).losses
        return dataclasses.replace(whole, losses=losses)

    return total


def _truncated(examples: Examples, size: int) -> Examples:
    return dataclasses.replace(examples, embeddings=examples.embeddings[..., :size])


def _scaled(examples: Examples, is_cosine: bool) -> Float[Array, "n G D"]:
    return normalized(examples.embeddings) if is_cosine else examples.embeddings


def _equal(own: Examples, text: int, every: Examples, other: int) -> Bool[Array, "n N"]:
    return own.texts[:, text][:, None] == every.texts[:, other][None, :]


def _choice(positive: Float[Array, " n"], others: Float[Array, "n m"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Return the cross-entropy of choosing the positive, and whether it has the largest logit."""
    total = jax.nn.logsumexp(jnp.concatenate([positive[:, None], others], axis=1), axis=1)
    return total - positive, (positive >= others.max(1)).astype(jnp.float32)
