"""The ids that frame segments, mask tokens and pad sequences."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """The special ids of a vocabulary and its size; `Tokenizer.special_ids` makes them."""

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    vocab_size: int  # random replacements are sampled from all of it, special tokens included, as in the original

    def frame(self, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[list[int], int]:
        """Return the ids of `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, and the length of `[CLS] A [SEP]`."""
        ids = [self.cls_id, *first, self.sep_id]
        return (ids if second is None else [*ids, *second, self.sep_id]), len(first) + 2
