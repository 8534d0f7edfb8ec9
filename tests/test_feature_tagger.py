"""The BiLSTM over frozen features: PyTorch's LSTM on every sentence alone, whatever padding follows it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model.feature_tagger import FeatureTagger

HIDDEN, LABELS, FEATURES = 5, 3, 7
# float32 sums of at most 15 terms of order 1, through two layers and up to 9 steps.
TOLERANCE = 1e-5


def tagger_params(module: FeatureTagger, hidden: jax.Array, lengths: jax.Array) -> Any:
    """Return parameters none of which is at its initial value."""
    params = module.init(jax.random.key(0), hidden, lengths=lengths)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(0, 0.3, leaf.shape).astype(np.float32), params)


def torch_gates(params: Any) -> dict[str, np.ndarray]:
    """Return one direction's weights as PyTorch has them: input, forget, candidate and output gate below each other."""
    bias = np.concatenate([params[f"h{gate}"]["bias"] for gate in "ifgo"])
    return {
        "weight_ih": np.concatenate([params[f"i{gate}"]["kernel"].T for gate in "ifgo"]),
        "weight_hh": np.concatenate([params[f"h{gate}"]["kernel"].T for gate in "ifgo"]),
        "bias_ih": bias,
        "bias_hh": np.zeros_like(bias),
    }


@pytest.mark.parity
def test_every_sentence_gets_the_logits_of_pytorchs_lstm_whatever_padding_follows() -> None:
    torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(4, 9, 1, FEATURES)), jnp.float32)  # padding holds numbers too
    lengths = jnp.array([9, 4, 1, 6])
    module = FeatureTagger("last", HIDDEN, 2, LABELS)
    params = tagger_params(module, hidden, lengths)
    logits = np.asarray(jax.jit(module.apply)({"params": params}, hidden, lengths=lengths))

    lstm = torch.nn.LSTM(FEATURES, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for layer in range(2):
            for direction, suffix in (("forward", ""), ("backward", "_reverse")):
                for name, value in torch_gates(params[f"{direction}_{layer}"]).items():
                    getattr(lstm, f"{name}_l{layer}{suffix}").copy_(torch.from_numpy(np.array(value)))
        for row, length in enumerate(lengths.tolist()):
            states = lstm(torch.from_numpy(np.array(hidden[row : row + 1, :length, 0])))[0][0].numpy()
            expected = states @ params["classifier"]["kernel"] + params["classifier"]["bias"]
            np.testing.assert_allclose(logits[row, :length], expected, atol=TOLERANCE)
