"""The LayerNorm of every architecture: alone, or fused with the residual connection of a sub-layer."""

from typing import cast

from flax import linen as nn
from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.model.dropout import Dropout
from bert_jax.model.normalization import layer_norm
from bert_jax.model.residual_norm import Sublayer, residual_norm


class LayerNorm(nn.Module):
    """Normalization over the last axis, with a scale and, unless `use_bias` is False, a bias.

    The variance is float32 E[x^2] - E[x]^2: one pass, which TPUs fuse better than two.
    """

    config: ModelConfig
    use_bias: bool = True

    def __call__(self, values: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        """Return the normalized values in `config.dtype`."""
        scale, bias = self.weights(values.shape[-1])
        return layer_norm(values, scale, bias, self.config.layer_norm_eps, self.config.dtype)

    def after(
        self,
        sublayer: Sublayer,
        *,
        hidden: Float[Array, "B T D"],
        dropout: Dropout | None,
        site: int,
    ) -> Float[Array, "B T D"]:
        """Return LayerNorm(hidden + dropout(sub-layer output)), where `hidden` is the sub-layer's input (post-norm)."""
        config = self.config
        scale, bias = self.weights(hidden.shape[-1])
        assert bias is not None, "the kernels after a sub-layer add a bias"
        return residual_norm(
            sublayer,
            hidden=hidden,
            scale=scale,
            bias=bias,
            eps=config.layer_norm_eps,
            dropout=dropout,
            rate=config.hidden_dropout_prob,
            site=site,
            plain=config.attention_implementation == "reference",
        )

    @nn.compact
    def weights(self, size: int) -> tuple[Float[Array, " D"], Float[Array, " D"] | None]:
        """Return scale and bias."""
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), (size,))
        if not self.use_bias:
            return cast(Array, scale), None
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)), (size,))
        return cast(Array, scale), cast(Array, bias)
