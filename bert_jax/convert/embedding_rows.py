"""New rows in the tables of a model's vocabulary: word embeddings and masked-LM bias."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.data.tokenization import Tokenizer
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import flatten, nest


def with_mean_rows(
    source: PretrainedModel,
    *,
    tokenizer: Tokenizer,
    vocab_size: int,
    new_ids: Sequence[int],
    old_ids: Sequence[Sequence[int]],
) -> PretrainedModel:
    """Return `source` with another tokenizer, tables of `vocab_size` rows, and in row `new_ids[i]` the mean of rows.

    They are the rows `old_ids[i]`, the tokens into which the new token was split before; all rows if it had none.
    """
    flat = flatten(source.params)
    for entry in architecture_of(source.model).names.of(source.parts):
        if entry.axes[0] == "V":
            flat[entry.flax] = _extended(flat[entry.flax], vocab_size, new_ids, old_ids)
    return dataclasses.replace(
        source,
        params=nest(flat),
        model=dataclasses.replace(source.model, vocab_size=vocab_size),
        tokenizer=tokenizer,
    )


def _extended(
    rows: np.ndarray, vocab_size: int, new_ids: Sequence[int], old_ids: Sequence[Sequence[int]]
) -> np.ndarray:
    extended = np.concatenate([rows, np.zeros((vocab_size - len(rows), *rows.shape[1:]), rows.dtype)])
    for index, ids in zip(new_ids, old_ids, strict=True):
        extended[index] = (rows[list(ids)] if len(ids) else rows).mean(0)
    return extended
