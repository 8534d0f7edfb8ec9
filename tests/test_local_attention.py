"""Attention to a window in blocks equals the reference, with packing, dropout and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import assert_attention_rounded_alike
from tiny_model import random_rows, to_device

from bert_jax.model.attention import AttentionMask, Projected, attend
from bert_jax.model.dropout import Dropout
from bert_jax.model.local_attention import is_worthwhile
from bert_jax.rows.layout import encoder_inputs

pytestmark = pytest.mark.numerics


# Whole blocks, a part of one, a window of odd size, and one instance of the whole length.
@pytest.mark.parametrize(("length", "window", "instances"), [(64, 8, 3), (53, 4, 2), (50, 5, 1), (130, 16, 4)])
@pytest.mark.parametrize("direction", ["bidirectional", "left_to_right"])
def test_blocks_equal_the_reference(length: int, window: int, instances: int, direction: str) -> None:
    rate, heads, size = 0.1, 5, 4
    assert is_worthwhile(length=length, window=window)
    inputs = encoder_inputs(to_device(random_rows(length, batch=3, length=length, instances=instances)))
    mask = AttentionMask(inputs.segment_ids, inputs.position_ids, direction=direction, window=window)
    keys = jax.random.split(jax.random.key(window), 4)
    query, key, value, outer = (jax.random.normal(k, (3, length, heads, size)) for k in keys)
    outer *= (inputs.segment_ids > 0)[:, :, None, None]  # nothing reads the output of padding
    dropout = Dropout.create(jax.random.key(1), rows=jnp.arange(3))

    def run(implementation: str) -> Any:
        def total(query: Any, key: Any, value: Any) -> Any:
            out = attend(
                Projected(query),
                key=Projected(key),
                value=Projected(value),
                mask=mask,
                dropout=dropout,
                rate=rate,
                site=1,
                implementation=implementation,
            )
            return (out * outer).sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(query, key, value)
        return out * (inputs.segment_ids > 0)[:, :, None, None], *gradients

    zeros = jnp.zeros((heads, size))
    arrays = [query, zeros, key, zeros, value, zeros, outer]
    results = []
    for implementation in ("auto", "reference"):
        out, *gradients = run(implementation)
        results.append([out, *(array for grad in gradients for array in (grad, grad.sum((0, 1))))])
    blocks, reference = results
    assert_attention_rounded_alike(blocks, reference, arrays=arrays, mask=mask, rate=rate)
    assert all(np.abs(np.asarray(array)).max() > 0.1 for array in reference[:2])


def test_a_short_sequence_is_not_worth_blocks() -> None:
    assert not is_worthwhile(length=256, window=64)
    assert is_worthwhile(length=257, window=64)
