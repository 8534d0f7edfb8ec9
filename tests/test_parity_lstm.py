"""LSTMs next to PyTorch's `nn.LSTM`: on top of an encoder, and as language models; packed, padded, both directions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from rounding import assert_rounded_alike, lstm_bound
from tiny_model import instance_spans, random_rows, tiny_model, to_device
from torch_lstm import copy_to_torch

from bert_jax.model.bilstm import BiLSTM
from bert_jax.model.lstm.encoder import LstmEncoder
from bert_jax.rows.layout import encoder_inputs

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")

pytestmark = [pytest.mark.parity, pytest.mark.numerics]

LENGTH, WIDTH, HIDDEN, LAYERS = 24, 6, 5, 2


def spread(tree: Any) -> Any:
    """Return parameters none of which is at its initial value."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(0, 0.3, leaf.shape).astype(np.float32), tree)


def test_every_packed_instance_gets_the_states_of_pytorchs_bidirectional_lstm() -> None:
    rows = random_rows(4, batch=5, length=LENGTH, instances=3, empty_rows=1)
    segment_ids = encoder_inputs(to_device(rows)).segment_ids
    values = jnp.asarray(np.random.default_rng(0).normal(size=(5, LENGTH, WIDTH)), jnp.float32)  # padding too
    module = BiLSTM(HIDDEN, LAYERS)
    params = spread(module.init(jax.random.key(0), values, segment_ids=segment_ids)["params"])
    states = np.asarray(jax.jit(module.apply)({"params": params}, values, segment_ids=segment_ids))
    lstm = torch.nn.LSTM(WIDTH, HIDDEN, num_layers=LAYERS, bidirectional=True, batch_first=True)
    copy_to_torch(params, lstm)
    compared = 0
    with torch.no_grad():
        for row in range(5):
            for begin, _, end in instance_spans(rows, row):
                alone = torch.from_numpy(np.array(values[row : row + 1, begin:end]))
                bound = lstm_bound(WIDTH + 2 * HIDDEN, steps=LENGTH, layers=LAYERS)
                assert_rounded_alike(states[row, begin:end], lstm(alone)[0][0].numpy(), bound=bound)
                compared += 1
    assert compared > 6


@pytest.mark.parametrize("direction", ["left_to_right", "right_to_left"])
def test_a_language_models_states_are_pytorchs(direction: str) -> None:
    model = tiny_model(architecture="lstm", attention_direction=direction, hidden_size=8, num_attention_heads=1)
    rows = random_rows(4, batch=3, length=LENGTH, instances=3)
    inputs = encoder_inputs(to_device(rows))
    encoder = LstmEncoder(model)
    params = spread(nn.meta.unbox(jax.jit(encoder.init)(jax.random.key(0), inputs)["params"]))
    output = jax.jit(lambda p: encoder.apply({"params": p}, inputs, output_hidden_states=True))(params)
    lstm = torch.nn.LSTM(8, 8, num_layers=LAYERS, batch_first=True)
    layers = {
        f"forward_{layer}": jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"]["lstm"])
        for layer in range(LAYERS)
    }
    copy_to_torch(layers, lstm)
    step = 1 if direction == "left_to_right" else -1
    with torch.no_grad():
        for row in range(3):
            for begin, _, end in instance_spans(rows, row):
                words = params["word_embeddings"][np.asarray(rows.input_ids)[row, begin:end]]
                theirs = lstm(torch.from_numpy(np.ascontiguousarray(words[None, ::step])))[0][0].numpy()[::step]
                bound = lstm_bound(16, steps=LENGTH, layers=LAYERS)
                assert_rounded_alike(output.hidden[row, begin:end], theirs, bound=bound)
                np.testing.assert_array_equal(output.all_hidden[0][row, begin:end], words)
    assert len(output.all_hidden) == LAYERS + 1
