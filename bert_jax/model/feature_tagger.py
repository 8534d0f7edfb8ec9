"""A BiLSTM tagger on frozen features (paper section 5.3, Table 7)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.model.bilstm import BiLSTM
from bert_jax.model.dropout import Dropout

_INPUT, _OUTPUT = range(2)  # dropout sites


class FeatureTagger(nn.Module):
    """A mix or concatenation of frozen layers, a BiLSTM, and a classifier of every word."""

    features: str
    hidden_size: int
    num_layers: int
    num_labels: int
    dropout_rate: float = 0.5  # not in the paper; usual for BiLSTM taggers (Ma & Hovy 2016)

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B W K D"], *, lengths: Int[Array, " B"], dropout: Dropout | None = None
    ) -> Float[Array, "B W C"]:
        """Return float32 logits; `hidden` has the K layers of `feature_layers`."""
        if self.features.startswith("sum"):
            # The name ends in "bias": initialized to 0, no weight decay (training/optimizers.py).
            mixture = nn.softmax(self.param("mixture_bias", nn.initializers.zeros, (hidden.shape[2],)))
            words = jnp.einsum("BWKD,K->BWD", hidden, mixture)
        else:
            words = hidden.reshape(*hidden.shape[:2], -1)
        if dropout is not None:
            words = dropout.apply(words, rate=self.dropout_rate, site=_INPUT)
        segment_ids = (jnp.arange(words.shape[1])[None] < lengths[:, None]).astype(jnp.int32)
        bilstm = BiLSTM(self.hidden_size, self.num_layers)
        nn.share_scope(self, bilstm)  # its parameters are the tagger's own, as they always were
        words = bilstm(words, segment_ids=segment_ids)
        if dropout is not None:
            words = dropout.apply(words, rate=self.dropout_rate, site=_OUTPUT)
        return nn.Dense(self.num_labels, name="classifier")(words)
