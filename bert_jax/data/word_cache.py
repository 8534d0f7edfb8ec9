"""A cache of results by word that keeps frequent words."""

from collections.abc import Callable
from typing import TypeVar

_MAX_CACHED_CHARS = 32  # a longer "word" is a line of Chinese, an address or noise, and rarely occurs again
_Value = TypeVar("_Value")


class WordCache(dict[str, _Value]):
    """Cache of `compute(word)` for the last `size` to `2 * size` words; `cache[word]` computes missing values.

    It has two generations: when the young one is full it becomes the old one, and a hit in the old one moves the word
    back to the young one. Frequent words stay cached and cost one dictionary lookup each.
    """

    def __init__(self, compute: Callable[[str], _Value], *, size: int):
        """Create an empty cache."""
        super().__init__()
        self._compute = compute
        self._size = size
        self._old: dict[str, _Value] = {}

    def __missing__(self, word: str) -> _Value:
        value = self._old.pop(word, None)
        if value is None:
            value = self._compute(word)
        if len(word) <= _MAX_CACHED_CHARS:
            if len(self) >= self._size:
                self._old = dict(self)
                self.clear()
            self[word] = value
        return value
