"""The causal loss and its gradients next to those of HuggingFace's `BertLMHeadModel(is_decoder=True)`."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from source_helpers import random_source
from tiny_model import SPECIAL, on_host, plain_inputs, tiny_model, to_device

from bert_jax.config import MaskingConfig
from bert_jax.convert.export_folder import export_folder
from bert_jax.model.parts import apply_parts
from bert_jax.pretrain.causal import CausalObjective
from bert_jax.types import Rows
from tests.rounding import PROMISED, assert_rounded_alike, huggingface_bound

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")
reference = pytest.importorskip("hf_reference")

pytestmark = [pytest.mark.parity, pytest.mark.numerics]

LENGTH = 16


def make_rows(lengths: list[tuple[int, int]], *, vocab_size: int) -> Rows:
    """Return a pair of segments per sequence, of these lengths, padded."""
    rng = np.random.default_rng(0)
    ids = np.zeros((len(lengths), LENGTH), np.int32)
    for row, (first, second) in enumerate(lengths):
        ids[row, : first + second] = rng.integers(5, vocab_size, first + second)
        ids[row, [0, first - 1, first + second - 1]] = SPECIAL.cls_id, SPECIAL.sep_id, SPECIAL.sep_id
    return on_host(
        Rows,
        input_ids=ids,
        segment_lengths=np.array(lengths, np.int32)[:, None],
        next_sentence_labels=np.zeros((len(lengths), 1), np.int32),
        word_starts=np.ones_like(ids, bool),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_loss_and_gradients_equal_those_of_the_decoder() -> None:
    model = tiny_model(
        attention_direction="left_to_right",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        hidden_act="gelu",
    )
    whole = reference.make_reference(model)
    theirs = transformers.BertLMHeadModel(whole.config).eval()
    missing, unexpected = theirs.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith(("bert.pooler", "cls.seq_relationship")) for name in unexpected)
    rows = make_rows([(9, 7), (5, 4), (3, 0)], vocab_size=model.vocab_size)
    lengths = rows.segment_lengths.sum((1, 2))
    place = np.arange(LENGTH)
    types = (place >= rows.segment_lengths[:, 0, :1]) & (place < lengths[:, None])
    labels = np.where(place < lengths[:, None], rows.input_ids, -100)
    out = theirs(
        input_ids=torch.tensor(np.asarray(rows.input_ids), dtype=torch.long),
        token_type_ids=torch.tensor(types.astype(np.int64)),
        attention_mask=torch.tensor((place < lengths[:, None]).astype(np.int64)),
        labels=torch.tensor(labels, dtype=torch.long),
    )
    out.loss.backward()
    objective = CausalObjective(
        model=model, masking=MaskingConfig(), special=SPECIAL, max_predictions=LENGTH, next_sentence=False
    )
    params = to_device(reference.ours_from(reference.weights(whole), layers=model.num_hidden_layers))

    def loss(tree: Any) -> Any:
        batch = objective.prepare(to_device(rows), key=jax.random.key(0))
        return objective.loss(tree, batch=batch, weights=objective.weights(batch), key=None)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert_rounded_alike(float(value), float(out.loss), bound=huggingface_bound(model))
    whole.zero_grad()
    for name, parameter in theirs.named_parameters():
        whole.get_parameter(name).grad = parameter.grad
    expected = reference.ours_from(reference.weight_gradients(whole), layers=model.num_hidden_layers)
    for part in ("encoder", "masked_lm"):
        found, named = (jax.tree_util.tree_leaves_with_path(tree[part]) for tree in (gradients, expected))
        whole = np.sqrt(sum((leaf**2).sum() for _, leaf in named))
        for (path, ours), (_, hers) in zip(found, named, strict=True):
            name = jax.tree_util.keystr(path)
            # A key's bias has gradient 0 but for rounding; every other tensor must be right by itself.
            scale = whole if "['key']['bias']" in name else np.linalg.norm(hers)
            assert np.linalg.norm(ours - hers) <= PROMISED * scale, name
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients["pooler"]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_an_exported_causal_model_computes_the_same_in_transformers(tmp_path: Path) -> None:
    source = random_source("small-test", architecture="BertLMHeadModel", attention_direction="left_to_right")
    export_folder(source, out=tmp_path / "out", report=lambda line: None)
    theirs = transformers.BertLMHeadModel.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert theirs.config.is_decoder
    rng = np.random.default_rng(1)
    ids = rng.integers(5, source.model.vocab_size, (2, LENGTH))
    lengths = np.array([LENGTH, 9])
    mask = np.arange(LENGTH) < lengths[:, None]
    types = (np.arange(LENGTH) >= 5) & mask
    with torch.no_grad():
        logits = theirs(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            token_type_ids=torch.tensor(types.astype(np.int64)),
        ).logits.numpy()
    inputs = plain_inputs(ids, lengths=lengths, token_type_ids=types)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), ids.shape)
    ours = jax.jit(lambda p: apply_parts(p, inputs, model=source.model, positions=positions).masked_lm)(source.params)
    bound = huggingface_bound(source.model, size=float(np.abs(logits).max()))
    assert_rounded_alike(np.asarray(ours)[mask], logits[mask], bound=bound)
