"""Dropout of attention probabilities by a counter hash that is cheap enough for a kernel.

As in `Dropout`, a mask depends only on (PRNG key, layer, site, global sequence index, head, query position, key
position). Mixing a word takes 14 operations of a TPU's vector unit, more than the rest of attention, so four heads of
one (query, key) pair share a word (`dropout.py` explains how, and why that is sound). `tests/test_attention_dropout.py`
tests the independence of layers, sequences, heads and positions.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, UInt32

from bert_jax.model.dropout import SHARED_BY, Dropout, is_kept, mix, multiplier, word_counter

Integers = Int[Array, "..."] | UInt32[Array, "..."]


@struct.dataclass
class AttentionDropout:
    """The seed of each sequence in one attention layer, and the rate; `None` instead of it means no dropout."""

    seeds: UInt32[Array, " B"]
    rate: float = struct.field(pytree_node=False)

    @classmethod
    def create(cls, dropout: Dropout | None, *, rate: float, site: int) -> "AttentionDropout | None":
        """Return the attention dropout of a layer, or None without dropout."""
        return None if dropout is None or rate == 0.0 else cls(seeds=dropout.row_seeds(site), rate=rate)

    def keep(self, heads: Int[Array, " N"], *, length: int) -> Bool[Array, "B N T T"]:
        """Return which probabilities [sequence, head, query, key] are kept; `heads` are the global head numbers."""
        position = jnp.arange(length, dtype=jnp.uint32)
        return self.keep_pairs(heads, queries=position[:, None], keys=position[None, :], length=length)

    def keep_pairs(
        self, heads: Int[Array, " N"], *, queries: Integers, keys: Integers, length: int
    ) -> Bool[Array, "B *c N q k"]:
        """Return which probabilities are kept of the pairs that `queries` [*c, q, 1] and `keys` [*c, 1, k] form."""
        queries, keys = queries[..., None, :, :], keys[..., None, :, :]

        def of_heads(values: Array) -> Array:
            return jax.lax.broadcast_to_rank(values[:, None, None], queries.ndim)

        groups, within = of_heads(heads // SHARED_BY), of_heads(heads % SHARED_BY)
        seeds = self.seeds.reshape((-1,) + (1,) * queries.ndim)
        words = mix(word_counter((groups, queries, keys), sizes=(1, length, length))[None] ^ seeds)
        return is_kept(words * multiplier(within)[None], rate=self.rate)
