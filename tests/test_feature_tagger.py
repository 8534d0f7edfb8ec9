"""The BiLSTM over frozen features: PyTorch's LSTM on every sentence alone, whatever padding follows it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.finetuning.tagger import TaggerObjective, WordRows
from bert_jax.model.feature_tagger import FeatureTagger
from bert_jax.training.state import TrainState
from bert_jax.training.steps import TrainStep
from tests.rounding import assert_rounded_alike, assert_trees_rounded_alike, lstm_bound, sum_bound
from tests.torch_lstm import copy_to_torch

pytestmark = pytest.mark.numerics

HIDDEN, LABELS, FEATURES = 5, 3, 7
# Of a step: the features, or both directions of the layer before, the state and a bias.
TERMS = max(FEATURES, 2 * HIDDEN) + HIDDEN + 1


def tagger_params(module: FeatureTagger, hidden: jax.Array, lengths: jax.Array) -> Any:
    """Return parameters none of which is at its initial value."""
    params = module.init(jax.random.key(0), hidden, lengths=lengths)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(0, 0.3, leaf.shape).astype(np.float32), params)


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
    copy_to_torch(params, lstm)
    with torch.no_grad():
        for row, length in enumerate(lengths.tolist()):
            states = lstm(torch.from_numpy(np.array(hidden[row : row + 1, :length, 0])))[0][0].numpy()
            expected = states @ params["classifier"]["kernel"] + params["classifier"]["bias"]
            size = float(np.abs(params["classifier"]["kernel"]).sum(0).max())  # what a logit makes of errors of states
            bound = lstm_bound(TERMS, steps=9, layers=2) * size
            assert_rounded_alike(logits[row, :length], expected, bound=bound)


@pytest.mark.slow
def test_loss_and_gradients_do_not_depend_on_gradient_accumulation() -> None:
    rng = np.random.default_rng(2)
    rows = WordRows(
        hidden=jnp.asarray(rng.normal(size=(8, 6, 2, FEATURES)), jnp.float32),
        lengths=jnp.asarray(rng.integers(1, 7, 8), jnp.int32),
        targets=jnp.asarray(rng.integers(-1, LABELS, (8, 6)), jnp.int32),
    )
    tagger = FeatureTagger("sum_all", HIDDEN, 1, LABELS)
    params = tagger_params(tagger, rows.hidden, rows.lengths)

    def stepped(parts: int) -> tuple[float, Any]:
        step = TrainStep(
            TaggerObjective(tagger),
            optimizer=optax.sgd(1.0),
            key=jax.random.key(3),
            gradient_accumulation_steps=parts,
        )
        state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optax.sgd(1.0).init(params))
        new, output = jax.jit(step)(state, rows)
        return float(output.means["loss"].value()), new.params

    whole, parts = stepped(1), stepped(4)
    # The way back has two sums for each of the way forward; a gradient is a sum over words, and the rate is 1. The same
    # words are dropped, or loss and gradients would differ in the first digit.
    bound = 3 * lstm_bound(TERMS, steps=6, layers=1) + sum_bound(8 * 6)
    assert_rounded_alike(parts[0], whole[0], bound=bound)
    assert_trees_rounded_alike(parts[1], whole[1], bound=bound)
