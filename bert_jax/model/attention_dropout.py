"""Say which attention probabilities are dropped: a counter hash that four heads share, cheap enough for a kernel.

A mask is a function of (key, layer, site, global row, head, query, key place) alone, like `Dropout`'s. The mixing of
a word costs a TPU's vector unit 14 operations, more than the rest of attention, so four heads of one (query, key) share
one (`dropout.py` says how, and why that is sound); `tests/test_attention_dropout.py` tests layers, rows, heads and
places too.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, UInt32

from bert_jax.model.dropout import SHARED_BY, Dropout, kept, mix, multiplier, word_place


@struct.dataclass
class AttentionDropout:
    """Hold a seed for each row of one attention layer, and the rate; `None` in its place means nothing is dropped."""

    seeds: UInt32[Array, " B"]
    rate: float = struct.field(pytree_node=False)

    @classmethod
    def create(cls, dropout: Dropout | None, *, rate: float, site: int) -> "AttentionDropout | None":
        """Return the attention dropout of a layer, or None where nothing is dropped."""
        return None if dropout is None or rate == 0.0 else cls(seeds=dropout.row_seeds(site), rate=rate)

    def keep(self, heads: Int[Array, " N"], *, length: int) -> Bool[Array, "B N T T"]:
        """Return which probabilities [row, head, query, key] stay; `heads` are the global numbers of the heads."""
        groups, within = heads // SHARED_BY, heads % SHARED_BY
        place = jnp.arange(length, dtype=jnp.uint32)
        indices = (groups[:, None, None], place[None, :, None], place[None, None, :])
        words = mix(word_place(indices, sizes=(1, length, length))[None] ^ self.seeds[:, None, None, None])
        return kept(words * multiplier(within)[None, :, None, None], rate=self.rate)
