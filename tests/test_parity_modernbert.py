"""ModernBERT beside HuggingFace's PyTorch: hidden states of every layer, logits, gradients, at the window's edges."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import plain_inputs, to_device

from bert_jax.config import ModelConfig, model_preset
from bert_jax.model.heads import PretrainingModel
from bert_jax.model.modernbert.encoder import ModernBertEncoder
from bert_jax.model.task_heads import SequenceClassifier, SpanClassifier, TokenClassifier
from bert_jax.types import EncoderInputs, EncoderOutput, PretrainingLogits
from tests.rounding import PROMISED, assert_rounded_alike, huggingface_bound

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")
reference = pytest.importorskip("modernbert_reference")

pytestmark = [pytest.mark.parity, pytest.mark.numerics, pytest.mark.filterwarnings("default")]

EDGES = (63, 64, 65, 66, 127, 128, 129, 130)  # around the window of 64 to each side, and around twice it


def small(**changes: Any) -> ModelConfig:
    """Return four layers (global, two with windows, global) of width 32 in float32."""
    changes = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, **changes}
    return dataclasses.replace(model_preset("modernbert-base"), vocab_size=101, dtype="float32", **changes)


def random_ids(lengths: Sequence[int], *, seed: int = 1) -> np.ndarray:
    """Return rows of random ids, 0 after the length of each."""
    rng = np.random.default_rng(seed)
    at = np.arange(max(lengths))
    return np.where(at < np.array(lengths)[:, None], rng.integers(5, 101, (len(lengths), len(at))), 0)


def inputs_of(ids: np.ndarray, lengths: Sequence[int]) -> EncoderInputs:
    """Return one instance a row."""
    return plain_inputs(ids, lengths=np.array(lengths), token_type_ids=np.zeros_like(ids))


def torch_inputs(ids: np.ndarray, lengths: Sequence[int]) -> dict[str, Any]:
    """Return what HuggingFace's forward pass takes."""
    mask = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask.astype(int))}


def assert_equal_to_huggingface(model: ModelConfig, lengths: Sequence[int]) -> None:
    """Compare hidden states of every layer and logits of every token that is not padding."""
    theirs = reference.make_reference(model)
    ids = random_ids(lengths)
    params = to_device(reference.ours_from(reference.weights(theirs), layers=model.num_hidden_layers))
    inputs = inputs_of(ids, lengths)
    inner: list[Any] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: inner.append(out)) for layer in theirs.model.layers]
    with torch.no_grad():
        logits = theirs(**torch_inputs(ids, lengths)).logits.numpy()
        for hook in hooks:
            hook.remove()
        last = theirs.model(**torch_inputs(ids, lengths)).last_hidden_state.numpy()
        first = theirs.model.embeddings(torch.tensor(ids)).numpy()
    layers = [(out[0] if isinstance(out, tuple) else out).numpy() for out in inner]

    @jax.jit
    def run(tree: Any) -> Any:
        encoder = ModernBertEncoder(model)
        states = cast(EncoderOutput, encoder.apply({"params": tree["encoder"]}, inputs, output_hidden_states=True))
        result = PretrainingModel(model).apply(
            {"params": tree},
            inputs,
            positions=jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape),
            cls_positions=jnp.zeros((len(ids), 1), int),
        )
        return states.all_hidden, states.hidden, cast(PretrainingLogits, result).masked_lm

    states, hidden, masked_lm = run(params)
    real = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
    expected = [first, *layers[:-1], last]
    assert len(states) == len(expected) == model.num_hidden_layers + 1
    for layer, theirs_at in enumerate(expected):
        size = max(1.0, float(np.abs(theirs_at[real]).max()))
        bound = huggingface_bound(model, size=size, length=ids.shape[1])
        assert_rounded_alike(np.asarray(states[layer])[real], theirs_at[real], bound=bound, what=f"layer {layer}")
    np.testing.assert_array_equal(hidden, states[-1])
    assert_rounded_alike(np.asarray(masked_lm)[real], logits[real], bound=huggingface_bound(model, length=ids.shape[1]))
    assert np.abs(logits).max() > 1


def test_states_of_every_layer_and_logits_equal_huggingface_at_the_edges_of_the_window() -> None:
    assert_equal_to_huggingface(small(), EDGES)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        # Two groups of three, two thetas; layers after the last whole group; other distances between global layers.
        {"num_hidden_layers": 7, "num_attention_heads": 2},
        {"num_hidden_layers": 6, "local_rope_theta": 160_000.0},
        {"num_hidden_layers": 5, "global_attn_every_n_layers": 2, "local_attention": 10},
        {"num_hidden_layers": 3, "global_attn_every_n_layers": 1, "hidden_act": "gelu_new"},
    ],
)
def test_shapes_and_patterns_equal_huggingface(changes: dict[str, Any], scan_layers: bool) -> None:
    assert_equal_to_huggingface(small(**changes, scan_layers=scan_layers), (40, 23, 3))


@pytest.mark.slow
def test_the_smallest_published_shape_equals_huggingface() -> None:
    model = dataclasses.replace(model_preset("ettin-17m"), dtype="float32", vocab_size=1000)
    assert_equal_to_huggingface(model, (130, 66))


@pytest.mark.parametrize("lengths", [(66, 130), (64, 9)])
def test_gradients_equal_huggingface(lengths: Sequence[int]) -> None:
    model = small()
    theirs = reference.make_reference(model)
    ids = random_ids(lengths)
    labels = np.where(np.arange(ids.shape[1]) < np.array(lengths)[:, None], random_ids(lengths, seed=2), -100)
    labels[:, ::3] = -100
    theirs(**torch_inputs(ids, lengths), labels=torch.tensor(labels)).loss.backward()
    expected = reference.ours_from(reference.weight_gradients(theirs), layers=model.num_hidden_layers)
    inputs = inputs_of(ids, lengths)
    weights = jnp.asarray(labels >= 0, jnp.float32)

    @jax.jit
    @jax.grad
    def gradients(tree: Any) -> jax.Array:
        every = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        cls = jnp.zeros((len(ids), 1), int)
        logits: Any = PretrainingModel(model).apply({"params": tree}, inputs, positions=every, cls_positions=cls)
        scores = jax.nn.log_softmax(logits.masked_lm)
        chosen = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        return -(chosen * weights).sum() / weights.sum()

    actual = gradients(to_device(reference.ours_from(reference.weights(theirs), layers=model.num_hidden_layers)))
    for (path, mine), other in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert np.abs(other).max() > 0
        size = float(np.abs(other).max())
        np.testing.assert_allclose(mine, other, rtol=0, atol=PROMISED * size, err_msg=jax.tree_util.keystr(path))


def test_a_packed_row_equals_huggingface_on_each_instance_alone() -> None:
    model = small()
    theirs = reference.make_reference(model)
    lengths = (66, 130, 3, 65)
    ids = random_ids(lengths)
    row = np.concatenate([ids[number, :length] for number, length in enumerate(lengths)])[None]
    segments = np.repeat(np.arange(1, 5), lengths)[None]
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    packed = EncoderInputs(*map(jnp.asarray, (row, np.zeros_like(row), positions, segments)))
    params = to_device(reference.ours_from(reference.weights(theirs), layers=model.num_hidden_layers))
    encoder = jax.jit(lambda tree: cast(Any, ModernBertEncoder(model).apply({"params": tree}, packed)).hidden)
    hidden = encoder(params["encoder"])
    for number, length in enumerate(lengths):
        with torch.no_grad():
            alone = theirs.model(torch.tensor(ids[number : number + 1, :length])).last_hidden_state.numpy()
        bound = huggingface_bound(model, length=length)
        assert_rounded_alike(np.asarray(hidden)[segments == number + 1], alone[0], bound=bound)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_classifiers_of_sequences_equal_huggingface(pooling: str) -> None:
    model = small(classifier_pooling=pooling)
    theirs = reference.make_reference(model, use="ForSequenceClassification", num_labels=3)
    lengths = (66, 9)
    ids = random_ids(lengths)
    with torch.no_grad():
        expected = theirs(**torch_inputs(ids, lengths)).logits.numpy()
    params = to_device(reference.ours_from(reference.weights(theirs), layers=model.num_hidden_layers))
    cls = jnp.zeros((2, 1), jnp.int32)
    logits = SequenceClassifier(model, 3).apply({"params": params}, inputs_of(ids, lengths), pooled_positions=cls)
    assert_rounded_alike(np.asarray(logits)[:, 0], expected, bound=huggingface_bound(model, length=ids.shape[1]))


def test_classifiers_of_tokens_and_spans_equal_huggingface() -> None:
    model, lengths = small(), (66, 9)
    ids = random_ids(lengths)
    real = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
    cls = jnp.zeros((2, 1), jnp.int32)
    for use, module, part in (
        ("ForTokenClassification", TokenClassifier(model, 2), "classifier"),
        ("ForQuestionAnswering", SpanClassifier(model), "qa_outputs"),
    ):
        theirs = reference.make_reference(model, use=use, num_labels=2)
        tree = reference.ours_from(reference.weights(theirs), layers=model.num_hidden_layers)
        tree[part] = tree.pop("classifier")
        with torch.no_grad():
            out = theirs(**torch_inputs(ids, lengths))
        is_span = use == "ForQuestionAnswering"
        expected = torch.stack([out.start_logits, out.end_logits], -1) if is_span else out.logits
        logits = module.apply({"params": to_device(tree)}, inputs_of(ids, lengths), pooled_positions=cls)
        bound = huggingface_bound(model, length=ids.shape[1])
        assert_rounded_alike(np.asarray(logits)[real], expected.numpy()[real], bound=bound)
