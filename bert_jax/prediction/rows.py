"""Token sequences built from rows (JSON objects)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.data.tokenizer import MASK, Tokenizer
from bert_jax.rows.truncation import truncate_pair, truncate_single, windows


class RowError(Exception):
    """An error in one row. The other rows are still predicted."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One sequence."""

    ids: Sequence[int]
    first_length: int  # the number of tokens in the first segment
    positions: Sequence[int] = ()  # of the tokens to predict
    is_cut: bool = False  # part of the text is not read


def text_of(row: Mapping[str, Any], name: str) -> str:
    """Return the text in field `name`.

    Raises:
      RowError: if it is missing or not a text.
    """
    value = row.get(name)
    if not isinstance(value, str):
        names = ", ".join(sorted(map(str, row))[:8]) or "none"
        raise RowError(f"the field {name!r} must be a text (the fields are: {names})")
    return value


def single(row: Mapping[str, Any], *, tokenizer: Tokenizer, max_length: int, truncation: str = "head") -> Example:
    """Return `[CLS] text [SEP]`, truncated to `max_length` tokens."""
    ids = tokenizer.encode(text_of(row, "text"))
    tokens = truncate_single(ids, limit=max_length - 2, truncation=truncation)
    return Example(*tokenizer.special_ids.frame(tokens), is_cut=len(tokens) < len(ids))


def text_windows(row: Mapping[str, Any], *, tokenizer: Tokenizer, max_length: int) -> list[Example]:
    """Return the windows of a text, `[CLS] window [SEP]` each, as in fine-tuning."""
    parts = windows(tokenizer.encode(text_of(row, "text")), limit=max_length - 2)
    return [Example(*tokenizer.special_ids.frame(part)) for part in parts]


def pair(first: str, second: str, *, tokenizer: Tokenizer, max_length: int, truncation: str = "head") -> Example:
    """Return `[CLS] A [SEP] B [SEP]`, truncated as in fine-tuning."""
    a, b = tokenizer.encode_batch([first, second])
    segments = truncate_pair(a, b, limit=max_length - 3, truncation=truncation)
    return Example(*tokenizer.special_ids.frame(*segments), is_cut=sum(map(len, segments)) < len(a) + len(b))


def masked(row: Mapping[str, Any], *, tokenizer: Tokenizer, max_length: int) -> Example:
    """Return `[CLS] text [SEP]` with the mask token's id for each [MASK] in the text.

    Raises:
      RowError: if the text has no [MASK] or is too long. It is not truncated, because that could remove a [MASK].
    """
    parts = tokenizer.encode_batch(tokenizer.split_at_masks(text_of(row, "text")))
    if len(parts) == 1:
        raise RowError(f"the text has no {MASK}")
    ids, positions = [tokenizer.cls_id, *parts[0]], []
    for part in parts[1:]:
        positions.append(len(ids))
        ids += [tokenizer.mask_id, *part]
    ids.append(tokenizer.sep_id)
    if len(ids) > max_length:
        raise RowError(f"the text has {len(ids)} tokens, the model reads at most {max_length}: shorten it")
    return Example(ids, len(ids), positions)
