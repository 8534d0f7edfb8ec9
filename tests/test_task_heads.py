"""Every head gives a packed instance what it gives it alone, and what HuggingFace's class gives it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bert_jax.finetuning.objective import PackedRows, TaskObjective
from bert_jax.finetuning.packing import RowShape, packed_batch
from bert_jax.kinds.base import OutputKind
from bert_jax.kinds.table import KINDS
from bert_jax.model.architectures import ARCHITECTURES
from bert_jax.model.parameter_names import flatten, to_external
from bert_jax.tasks.interface import Instances
from bert_jax.types import EncoderInputs
from tests.finetune_data import tiny_model
from tests.rounding import assert_rounded_alike, encoder_bound, gradient_bound, huggingface_bound
from tests.tiny_model import on_host

pytestmark = pytest.mark.numerics

LABELS = 3
HUGGINGFACE = ARCHITECTURES["bert"].huggingface
LENGTH = 96  # of packed rows
BOUND, PARITY = encoder_bound(tiny_model(), length=LENGTH), huggingface_bound(tiny_model())


def sized(kind: str) -> OutputKind:
    """Return a kind with the sizes of `random_features`."""
    return KINDS[kind](num_labels=LABELS, group=4 if kind == "choice" else 1)


def random_features(kind: str, *, seed: int = 0, examples: int = 6) -> Instances:
    """Return instances of 5 to 20 tokens with random targets."""
    rng = np.random.default_rng(seed)
    group = 4 if kind == "choice" else 1
    ids, firsts, targets = [], [], []
    for _ in range(examples * group):
        length = int(rng.integers(5, 21))
        ids.append(rng.integers(5, 50, length).astype(np.int32))
        firsts.append(int(rng.integers(2, length + 1)))
    for example in range(examples):
        length = len(ids[example * group])
        start = int(rng.integers(0, length))
        targets.append(
            {
                "classification": int(rng.integers(LABELS)),
                "regression": float(rng.normal()),
                "choice": int(rng.integers(group)),
                "tags": rng.integers(-1, LABELS, length).astype(np.int32),
                "span": (start, int(rng.integers(start, length))),
                "multilabel": rng.integers(0, 2, LABELS).astype(np.float32),
            }[kind]
        )
    return Instances(ids, np.array(firsts, np.int32), targets, group=group)


def params_of(kind: str) -> Any:
    one = jnp.zeros((1, 1), jnp.int32)
    model = sized(kind).model(tiny_model())
    params = jax.jit(lambda: model.init(jax.random.key(1), EncoderInputs(one, one, one, one), pooled_positions=one))()
    rng = np.random.default_rng(2)  # biases that are not zero, scales that are not one
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.normal(0, 0.05, leaf.shape).astype(np.float32),
        nn.meta.unbox(params["params"]),
    )


def rows_of(features: Instances, examples: list[int], *, kind: str, length: int, per_row: int) -> PackedRows:
    shape = RowShape(length, slots=per_row * features.group, group=features.group)
    return on_host(PackedRows, **packed_batch(features, examples, shape=shape, kind=sized(kind)).arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_the_loss_and_gradient_of_each_example_alone(kind: str):
    features, params = random_features(kind), params_of(kind)
    objective = TaskObjective(tiny_model(), kind=sized(kind))

    @jax.jit
    def step(params: Any, rows: PackedRows, weight: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            batch = objective.prepare(rows, key=jax.random.key(0))
            return objective.loss(params, batch=batch, weights={"examples": weight}, key=None)[0]

        return jax.value_and_grad(loss)(params)

    examples = list(range(features.num_examples))
    packed = rows_of(features, examples, kind=kind, length=LENGTH, per_row=4)
    assert packed.input_ids.shape[0] < len(examples)  # rows are shared
    scored = packed.targets >= 0 if kind == "tags" else packed.weights
    weight = jnp.float32(scored.sum())
    value, grads = step(params, packed, weight)
    parts = [step(params, rows_of(features, [e], kind=kind, length=LENGTH, per_row=1), weight) for e in examples]
    expected = sum(float(part[0]) for part in parts)
    assert_rounded_alike(float(value), expected, bound=BOUND * max(1.0, expected))
    bound = gradient_bound(tiny_model(), tokens=len(examples) * LENGTH, length=LENGTH)
    for leaf, *leaves in zip(*(jax.tree.leaves(tree) for tree in (grads, *(part[1] for part in parts))), strict=True):
        whole = np.asarray(leaf)
        limit = bound * max(1.0, np.abs(whole).max())
        np.testing.assert_allclose(whole, np.sum(leaves, axis=0), rtol=0, atol=limit)


def outputs_of(objective: TaskObjective, params: Any, features: Instances) -> list[np.ndarray]:
    """Return the output of each example, out of rows that several share."""
    shape = RowShape(LENGTH, slots=4 * features.group, group=features.group)
    batch = packed_batch(features, range(features.num_examples), shape=shape, kind=objective.kind)
    rows = np.asarray(jax.jit(objective.predict)(params, on_host(PackedRows, **batch.arrays)))
    outputs = [np.zeros(0)] * features.num_examples
    for b, examples in enumerate(batch.order):
        start = 0
        for slot, example in enumerate(examples[examples >= 0]):
            length = int(features.lengths[example])
            outputs[example] = objective.kind.unpack(rows[b], slot=slot, start=start, length=length)
            start += length
    return outputs


def huggingface(kind: str, params: Any) -> Any:
    torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")
    names = ARCHITECTURES["bert"].names
    classes = {
        "classification": transformers.BertForSequenceClassification,
        "multilabel": transformers.BertForSequenceClassification,
        "regression": transformers.BertForSequenceClassification,
        "choice": transformers.BertForMultipleChoice,
        "tags": transformers.BertForTokenClassification,
        "span": transformers.BertForQuestionAnswering,
    }
    ours = tiny_model()
    config = transformers.BertConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        num_hidden_layers=ours.num_hidden_layers,
        num_attention_heads=ours.num_attention_heads,
        intermediate_size=ours.intermediate_size,
        max_position_embeddings=ours.max_position_embeddings,
        hidden_act="gelu_new",
        num_labels=1 if kind == "regression" else LABELS if kind != "span" else 2,
        problem_type=KINDS[kind].problem_type or None,
    )
    config._attn_implementation = "eager"
    model = classes[kind](config).eval()
    flat = flatten(jax.tree.map(np.asarray, params))
    state = {}
    for entry in names.of(tuple(params)):
        for name, array in to_external(entry, flat[entry.flax], side="huggingface"):
            state[name] = torch.from_numpy(np.ascontiguousarray(array))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("position_ids" in name for name in missing)
    return torch, model


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_loss_equal_huggingfaces(kind: str):
    features, params = random_features(kind, seed=3), params_of(kind)
    torch, model = huggingface(kind, params)
    objective = TaskObjective(tiny_model(), kind=sized(kind))
    examples = list(range(features.num_examples))
    packed = rows_of(features, examples, kind=kind, length=LENGTH, per_row=4)

    @jax.jit
    def loss_of(params: Any, rows: PackedRows) -> jax.Array:
        batch = objective.prepare(rows, key=jax.random.key(0))
        return objective.loss(params, batch=batch, weights=objective.weights(batch), key=None)[0]

    loss = loss_of(params, packed)
    outputs = outputs_of(objective, params, features)
    longest = max(len(ids) for ids in features.ids)
    ids = np.zeros((len(features.ids), longest), np.int64)
    mask, types = ids.copy(), ids.copy()
    for i, instance in enumerate(features.ids):
        ids[i, : len(instance)], mask[i, : len(instance)] = instance, 1
        types[i, features.first_lengths[i] : len(instance)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    if kind == "choice":
        inputs = {name: value.reshape(-1, 4, longest) for name, value in inputs.items()}
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    targets: Any = features.targets
    if kind == "tags":
        padded = np.full(ids.shape, -100)
        for i, tags in enumerate(targets):
            padded[i, : len(tags)] = np.where(tags < 0, -100, tags)
        tensors["labels"] = torch.from_numpy(padded)
    elif kind == "span":
        # HuggingFace's softmax runs over padding too: one window a call has none.
        losses = []
        for i, (start, end) in enumerate(targets):
            size = len(features.ids[i])
            one = {name: value[i : i + 1, :size] for name, value in tensors.items()}
            with torch.no_grad():
                out = model(**one, start_positions=torch.tensor([start]), end_positions=torch.tensor([end]))
            losses.append(float(out.loss))
            theirs = np.stack([out.start_logits.numpy()[0], out.end_logits.numpy()[0]], axis=-1)
            np.testing.assert_allclose(outputs[i], theirs, atol=PARITY)
        assert float(loss) == pytest.approx(np.mean(losses), abs=PARITY)
        return
    else:
        dtype = torch.float32 if KINDS[kind].target_dtype is np.float32 else torch.int64
        tensors["labels"] = torch.tensor(np.array(targets), dtype=dtype)
    with torch.no_grad():
        out = model(**tensors)
    assert float(loss) == pytest.approx(float(out.loss), abs=PARITY)
    for ours, theirs in zip(outputs, out.logits.numpy(), strict=True):
        np.testing.assert_allclose(ours, theirs[: len(ours)], atol=PARITY)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_have_the_names_that_export_knows(kind: str):

    params = params_of(kind)
    assert set(params) == set(HUGGINGFACE.classes[HUGGINGFACE.class_for(KINDS[kind].huggingface_class)])
    assert KINDS[kind].head in params


def test_dropout_drops_in_the_head_and_not_at_evaluation():
    features, params = random_features("tags"), params_of("tags")
    model = tiny_model(hidden_dropout_prob=0.5)
    objective = TaskObjective(model, kind=sized("tags"))
    rows = rows_of(features, [0, 1, 2], kind="tags", length=LENGTH, per_row=4)

    @jax.jit
    def loss_of(params: Any, rows: PackedRows, key: jax.Array | None) -> jax.Array:
        batch = objective.prepare(rows, key=jax.random.key(0))
        return objective.loss(params, batch=batch, weights=objective.weights(batch), key=key)[0]

    first, again, other = (float(loss_of(params, rows, jax.random.key(number))) for number in (1, 1, 2))
    assert first == again != other
    assert float(loss_of(params, rows, None)) not in (first, other)
