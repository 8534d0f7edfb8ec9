"""Tag words from frozen features with a BiLSTM (paper section 5.3, Table 7)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from bert_jax.model.dropout import Dropout

_INPUT, _OUTPUT = range(2)  # places that drop


class Lstm(nn.Module):
    """Read a sequence in one direction (Hochreiter & Schmidhuber 1997, with a forget gate whose bias begins at 1)."""

    hidden_size: int
    reverse: bool

    @nn.compact
    def __call__(self, inputs: Float[Array, "B W F"], *, mask: Bool[Array, "B W"]) -> Float[Array, "B W H"]:
        """Return the hidden state at every word; padding leaves the state as it is."""
        size = self.hidden_size
        init = nn.initializers.lecun_normal()
        into = self.param("input_kernel", init, (inputs.shape[-1], 4 * size))
        onto = self.param("hidden_kernel", nn.initializers.orthogonal(), (size, 4 * size))
        bias = self.param("bias", lambda key, shape: jnp.zeros(shape).at[size : 2 * size].set(1.0), (4 * size,))

        def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            cell, hidden = carry
            projected, real = now
            entry, forget, candidate, out = jnp.split(projected + hidden @ onto, 4, axis=-1)
            new_cell = nn.sigmoid(forget) * cell + nn.sigmoid(entry) * jnp.tanh(candidate)
            new_hidden = nn.sigmoid(out) * jnp.tanh(new_cell)
            keep = real[:, None]
            carry = jnp.where(keep, new_cell, cell), jnp.where(keep, new_hidden, hidden)
            return carry, carry[1]

        zeros = jnp.zeros((inputs.shape[0], size), inputs.dtype)
        by_word = (inputs @ into + bias).swapaxes(0, 1), mask.swapaxes(0, 1)
        _, states = jax.lax.scan(step, (zeros, zeros), by_word, reverse=self.reverse)
        return states.swapaxes(0, 1)


class FeatureTagger(nn.Module):
    """Combine the layers of frozen features, read them with a BiLSTM, classify every word."""

    features: str
    hidden_size: int
    num_layers: int
    num_labels: int
    dropout_rate: float = 0.5  # the paper does not say; usual for BiLSTM taggers (Ma & Hovy 2016)

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B W K D"], *, lengths: Int[Array, " B"], dropout: Dropout | None = None
    ) -> Float[Array, "B W C"]:
        """Return float32 logits; `hidden` holds the K layers of `feature_layers`."""
        if self.features.startswith("sum"):
            # "bias": it begins at 0 and does not decay (training/optimizers.py).
            shares = nn.softmax(self.param("mixture_bias", nn.initializers.zeros, (hidden.shape[2],)))
            words = jnp.einsum("BWKD,K->BWD", hidden, shares)
        else:
            words = hidden.reshape(*hidden.shape[:2], -1)
        mask = jnp.arange(hidden.shape[1])[None, :] < lengths[:, None]
        if dropout is not None:
            words = dropout.apply(words, rate=self.dropout_rate, site=_INPUT)
        for layer in range(self.num_layers):
            ahead = Lstm(self.hidden_size, reverse=False, name=f"forward_{layer}")(words, mask=mask)
            back = Lstm(self.hidden_size, reverse=True, name=f"backward_{layer}")(words, mask=mask)
            words = jnp.concatenate([ahead, back], axis=-1)
        if dropout is not None:
            words = dropout.apply(words, rate=self.dropout_rate, site=_OUTPUT)
        return nn.Dense(self.num_labels, name="classifier")(words)
