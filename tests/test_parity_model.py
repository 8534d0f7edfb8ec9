"""The model beside HuggingFace's PyTorch BERT: hidden states of every layer, logits, gradients, one optimizer step."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import SPECIAL, on_host, plain_inputs, tiny_model, to_device

from bert_jax.config import MaskingConfig, ModelConfig, OptimizerConfig, model_preset
from bert_jax.model.bert.encoder import BertEncoder
from bert_jax.model.bert.heads import Pooler
from bert_jax.model.heads import PretrainingModel
from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.training.optimizers import make_optimizer, optimizer_rule
from bert_jax.types import EncoderOutput, PretrainingBatch, PretrainingLogits
from tests.rounding import NOTICED, PROMISED, assert_rounded_alike, huggingface_bound

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")
reference = pytest.importorskip("hf_reference")

pytestmark = [pytest.mark.parity, pytest.mark.numerics]

LENGTH, SLOTS = 32, 5


@dataclasses.dataclass(frozen=True)
class Example:
    """Hold padded rows with two token types, and what to predict."""

    ids: np.ndarray
    types: np.ndarray
    lengths: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    next_sentence: np.ndarray


def make_example(model: ModelConfig, *, batch: int = 3, seed: int = 1) -> Example:
    """Return rows of length 32, 21 and 3, with up to five predictions each."""
    rng = np.random.default_rng(seed)
    lengths = np.array([LENGTH, 21, 3, 17, 32, 9])[:batch]
    place = np.arange(LENGTH)
    ids = np.where(place < lengths[:, None], rng.integers(5, model.vocab_size, (batch, LENGTH)), 0)
    types = ((place >= lengths[:, None] // 2) & (place < lengths[:, None])).astype(int)
    counts = np.minimum(lengths - 2, SLOTS)
    positions, labels, weights = np.zeros((3, batch, SLOTS), int)
    for row, count in enumerate(counts):
        positions[row, :count] = np.sort(rng.choice(np.arange(1, lengths[row] - 1), count, replace=False))
        labels[row, :count] = rng.integers(0, model.vocab_size, count)
        weights[row, :count] = 1
    return Example(ids, types, lengths, positions, labels, weights, rng.integers(0, 2, batch))


def torch_arguments(example: Example) -> dict[str, Any]:
    """Return what HuggingFace's forward pass takes."""
    mask = np.arange(LENGTH) < example.lengths[:, None]
    return {
        "input_ids": torch.tensor(example.ids),
        "token_type_ids": torch.tensor(example.types),
        "attention_mask": torch.tensor(mask.astype(int)),
    }


def no_dropout(model: ModelConfig, **changes: Any) -> ModelConfig:
    """Return the model in float32 without dropout."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dtype": "float32"}
    return dataclasses.replace(model, **{**still, **changes})


def assert_outputs_equal(model: ModelConfig) -> None:
    """Compare hidden states of every layer, pooled output and both logits, padding included."""
    theirs = reference.make_reference(model)
    example = make_example(model)
    params = to_device(reference.ours_from(reference.weights(theirs), layers=model.num_hidden_layers))
    inputs = plain_inputs(example.ids, lengths=example.lengths, token_type_ids=example.types)
    with torch.no_grad():
        expected = theirs(**torch_arguments(example), output_hidden_states=True)
        pooled = theirs.bert(**torch_arguments(example)).pooler_output

    @jax.jit
    def run(tree: Any) -> Any:
        states = cast(
            EncoderOutput, BertEncoder(model).apply({"params": tree["encoder"]}, inputs, output_hidden_states=True)
        )
        result = PretrainingModel(model).apply(
            {"params": tree},
            inputs,
            positions=jnp.broadcast_to(jnp.arange(LENGTH), example.ids.shape),
            cls_positions=jnp.zeros((len(example.ids), 1), int),
        )
        logits = cast(PretrainingLogits, result)
        assert logits.next_sentence is not None
        at_cls = cast(jax.Array, Pooler(model).apply({"params": tree["pooler"]}, states.hidden[:, :1]))
        return states.all_hidden, at_cls[:, 0], logits.masked_lm, logits.next_sentence[:, 0]

    states, at_cls, masked_lm, next_sentence = run(params)
    bound = huggingface_bound(model)
    assert len(states) == len(expected.hidden_states) == model.num_hidden_layers + 1
    for layer, hidden in enumerate(expected.hidden_states):
        assert_rounded_alike(states[layer], hidden.numpy(), bound=bound, what=f"layer {layer}")
    assert_rounded_alike(at_cls, pooled.numpy(), bound=bound)
    assert_rounded_alike(masked_lm, expected.prediction_logits.numpy(), bound=bound)
    assert_rounded_alike(next_sentence, expected.seq_relationship_logits.numpy(), bound=bound)
    assert np.abs(expected.prediction_logits.numpy()).max() > 1


@pytest.mark.parametrize("hidden_act", ["gelu_new", "gelu", "relu"])
def test_tiny_equals_huggingface_with_every_activation(hidden_act: str) -> None:
    assert_outputs_equal(no_dropout(model_preset("tiny"), vocab_size=1000, hidden_act=hidden_act))


@pytest.mark.parametrize("preset", ["mini", "small", "medium"])
def test_small_models_equal_huggingface(preset: str) -> None:
    assert_outputs_equal(no_dropout(model_preset(preset), vocab_size=1000))


def test_base_equals_huggingface() -> None:
    assert_outputs_equal(no_dropout(model_preset("base"), hidden_act="gelu"))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_left_to_right_equals_huggingfaces_decoder(scan_layers: bool) -> None:
    assert_outputs_equal(
        no_dropout(model_preset("tiny"), vocab_size=1000, attention_direction="left_to_right", scan_layers=scan_layers)
    )


def their_loss(theirs: Any, example: Example) -> Any:
    """Return HuggingFace's pre-training loss, -100 where nothing is predicted."""
    labels = np.full(example.ids.shape, -100)
    for row in range(len(labels)):
        count = int(example.weights[row].sum())
        labels[row, example.positions[row, :count]] = example.labels[row, :count]
    return theirs(
        **torch_arguments(example),
        labels=torch.tensor(labels),
        next_sentence_label=torch.tensor(example.next_sentence),
    ).loss


def our_gradients(model: ModelConfig, params: Any, example: Example) -> tuple[float, Any]:
    """Return our pre-training loss and gradients."""
    objective = PretrainingObjective(
        model=model, masking=MaskingConfig(), special=SPECIAL, max_predictions=SLOTS, next_sentence=True
    )
    batch = to_device(
        on_host(
            PretrainingBatch,
            inputs=plain_inputs(example.ids, lengths=example.lengths, token_type_ids=example.types),
            rows=np.arange(len(example.ids)),
            positions=example.positions,
            labels=example.labels,
            weights=example.weights.astype(np.float32),
            cls_positions=np.zeros((len(example.ids), 1), np.int32),
            next_sentence_labels=example.next_sentence[:, None],
            next_sentence_weights=np.ones((len(example.ids), 1), np.float32),
        )
    )

    def loss(tree: Any) -> Any:
        return objective.loss(tree, batch=batch, weights=objective.weights(batch), key=None)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    return float(value), jax.device_get(gradients)


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves by path."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("hidden_act", ["gelu_new", "gelu"])
def test_gradients_and_one_step_of_adamw_equal_pytorchs(hidden_act: str) -> None:
    model = no_dropout(tiny_model(hidden_act=hidden_act, num_hidden_layers=3))
    theirs = reference.make_reference(model)
    params = to_device(reference.ours_from(reference.weights(theirs), layers=3))
    example = make_example(model, batch=6)
    loss = their_loss(theirs, example)
    loss.backward()
    value, gradients = our_gradients(model, params, example)
    assert_rounded_alike(value, loss.item(), bound=huggingface_bound(model))
    expected = named_leaves(reference.ours_from(reference.weight_gradients(theirs), layers=3))
    ours = named_leaves(gradients)
    assert ours.keys() == expected.keys()
    whole = np.sqrt(sum((leaf**2).sum() for leaf in expected.values()))
    for name, leaf in expected.items():
        # A key's bias has gradient 0 but for rounding; every other tensor must be right by itself.
        scale = whole if "['key']['bias']" in name else np.linalg.norm(leaf)
        assert np.linalg.norm(ours[name] - leaf) < PROMISED * scale, name

    config = OptimizerConfig(name="adamw", weight_decay=0.01, max_grad_norm=1.0)
    rate = 1e-3
    optimizer = make_optimizer(
        config, rule=optimizer_rule(config, recipe="modern"), schedule=lambda step: jnp.asarray(rate)
    )
    updates, _ = jax.jit(optimizer.update)(to_device(gradients), optimizer.init(params), params)
    torch_step(theirs, rate=rate, config=config)
    after = named_leaves(reference.ours_from(reference.weights(theirs), layers=3))
    before, moved = named_leaves(params), named_leaves(updates)
    assert NOTICED * rate < PROMISED
    for name, leaf in after.items():
        if "['key']['bias']" in name:
            continue  # Adam makes steps of full length from gradients that are rounding alone
        # Adam divides each gradient by its size, so what is rounding in a tiny gradient shows in full: of the others a
        # step is right to one per cent, which is within what is promised of a parameter.
        solid = np.abs(expected[name]) > 1e-3 * np.abs(expected[name]).max()
        np.testing.assert_allclose(
            (before[name] + moved[name])[solid], leaf[solid], rtol=0, atol=NOTICED * rate, err_msg=name
        )


def torch_step(theirs: Any, *, rate: float, config: OptimizerConfig) -> None:
    """Clip and take one step of PyTorch's AdamW; vectors do not decay."""
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), config.max_grad_norm)
    parameters = list(theirs.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=rate, betas=(config.beta1, config.beta2), eps=config.epsilon).step()
