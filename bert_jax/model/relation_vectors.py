"""The queries, keys and values of an encoder's last layer, whose relations a student learns from a teacher."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.errors import UserError
from bert_jax.model.architectures import architecture_of
from bert_jax.model.layers import unstack
from bert_jax.types import Projections


def check_has_relations(model: ModelConfig, *, name: str) -> None:
    """Check that a model, the `name` of an error, has self-attention in both directions.

    Raises:
      UserError: if it does not.
    """
    if architecture_of(model).projections is None or model.attention_direction != "bidirectional":
        raise UserError(
            f"{name} is a {model.attention_direction} {architecture_of(model).title}: relations are those of attention "
            "in both directions, so give a bidirectional BERT or ModernBERT"
        )


def relation_vectors(
    params: Mapping[str, Any], all_hidden: Float[Array, "n B T D"], *, model: ModelConfig
) -> Projections:
    """Return the projections of the last layer of an encoder with `params`.

    `all_hidden` are the states of every layer, the embeddings first: those before the last go into the last layer.
    """
    projections = architecture_of(model).projections
    assert projections is not None, "check_has_relations"
    return projections.compute(model, unstack(params["layers"], model.num_hidden_layers)[-1], all_hidden[-2])
