"""Say which attention probabilities are dropped: a counter hash that four heads share, cheap enough for a kernel.

A mask is a function of (key, layer, site, global row, head, query, key place) alone, like `Dropout`'s. The hash of
`Dropout` costs a TPU's vector unit 14 operations a probability, more than the rest of attention. Here four heads of one
(query, key) share a word, mixed by all but the last step of MurmurHash3's finaliser; each head multiplies it by an odd
constant of its own and drops where the product, read as a signed number, lies below a threshold: 4 operations. As the
mixing permutes all 32-bit words, and so does each product, the rate is exact to 2^-32. The upper bits of the four
products are unrelated: joint rates of pairs, triples and all four lie within 0.1 % of independent ones
(`tests/test_attention_dropout.py`, which tests layers, rows, heads and places too).
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, UInt32

from bert_jax.model.dropout import Dropout

HEADS_PER_WORD = 4
# The primes of xxHash32 and the second factor of MurmurHash3's finaliser: odd, with well-spread bits.
_MULTIPLIERS = (0xC2B2AE35, 0x85EBCA77, 0x27D4EB2F, 0x165667B1)
_PLACE = 0x9E3779B1  # 2^32 / golden ratio: neighbouring places differ in many bits


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
        groups, within = heads // HEADS_PER_WORD, heads % HEADS_PER_WORD
        place = jnp.arange(length, dtype=jnp.uint32)
        offsets = word_place(groups[:, None, None], query=place[:, None], key=place, length=length)
        words = mix(offsets ^ self.seeds[:, None, None, None])
        return kept(words * multiplier(within)[:, None, None], rate=self.rate)


def word_place(group: Array, *, query: Array, key: Array, length: int) -> UInt32[Array, "..."]:
    """Return the counter of a group of heads, a query and a key (arrays that broadcast), the input of `mix`."""
    strides = [jnp.uint32(stride * _PLACE & 0xFFFFFFFF) for stride in (length * length, length, 1)]
    return (group.astype(jnp.uint32) * strides[0] + query * strides[1]) + key * strides[2]


def mix(values: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Mix 32 bits by MurmurHash3's finaliser up to its last factor, which `multiplier` takes the place of."""
    values = values ^ (values >> 16)
    values = values * jnp.uint32(0x85EBCA6B)
    return values ^ (values >> 13)


def multiplier(head: Int[Array, "..."]) -> UInt32[Array, "..."]:
    """Return the factor of a head, counted within its group."""
    choices = [jnp.uint32(choice) for choice in _MULTIPLIERS]
    low = jnp.where(head == 0, choices[0], choices[1])
    return jnp.where(head < 2, low, jnp.where(head == 2, choices[2], choices[3]))


def kept(products: UInt32[Array, "..."], *, rate: float) -> Bool[Array, "..."]:
    """Return where to keep, given words times their factors; the comparison is signed, as a TPU's are."""
    threshold = jnp.int32(round(rate * 2**32) - 2**31)
    return jax.lax.bitcast_convert_type(products, jnp.int32) >= threshold
