"""The loss of a student and all its gradients equal PyTorch's: HuggingFace's models, and the paper's formulas by torch.

Ours reads packed sequences, theirs one text after the other; the teacher is cut after the layer that teaches.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_parity_model import no_dropout
from test_parity_modernbert import small
from tiny_model import SPECIAL, instance_spans, random_rows, tiny_model, to_device, worst_difference

from bert_jax.config import MaskingConfig, ModelConfig
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.convert.pruned_layers import up_to_layer
from bert_jax.pretrain.relation_objective import RelationObjective, TeacherModel
from bert_jax.types import TaughtRows

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")
bert = pytest.importorskip("hf_reference")
modernbert = pytest.importorskip("modernbert_reference")

pytestmark = [pytest.mark.parity, pytest.mark.numerics, pytest.mark.filterwarnings("default")]

# float32 on both sides, sums in other orders through two models of up to three layers.
TOLERANCE = 1e-4
LENGTH, HEADS, LAYER = 32, 4, 2
NARROW, WIDE = {"hidden_size": 32, "num_hidden_layers": 2}, {"hidden_size": 64, "num_hidden_layers": 3}
ROWS = random_rows(3, batch=4, length=LENGTH, instances=3)


def bert_model(**shape: Any) -> ModelConfig:
    return no_dropout(tiny_model(**shape), hidden_act="gelu")


def modern_model(**shape: Any) -> ModelConfig:
    return small(**shape, local_attention=8, global_attn_every_n_layers=2)


def torch_vectors(theirs: Any, ids: np.ndarray, types: np.ndarray, *, layer: int) -> list[Any]:
    """Return queries, keys and values of a layer, from 1, for one text: what its linear maps give."""
    seen: list[Any] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        seen.append(output[0])

    inputs = {"input_ids": torch.tensor(ids)[None]}
    if hasattr(theirs, "bert"):
        attention = theirs.bert.encoder.layer[layer - 1].attention.self
        hooks = [getattr(attention, name).register_forward_hook(keep) for name in ("query", "key", "value")]
        inputs["token_type_ids"] = torch.tensor(types)[None]
    else:
        hooks = [theirs.model.layers[layer - 1].attn.Wqkv.register_forward_hook(keep)]
    theirs(**inputs)
    for hook in hooks:
        hook.remove()
    return seen if len(seen) == 3 else list(seen[0].chunk(3, dim=-1))


def torch_loss(student: Any, teacher: Any, *, last: int) -> Any:
    """Return the mean over texts of the sum over kinds of 1 / (A |x|) sum KL."""
    total, texts = torch.zeros(()), 0
    for row in range(len(ROWS.input_ids)):
        for begin, middle, end in instance_spans(ROWS, row):
            ids = np.asarray(ROWS.input_ids)[row, begin:end]
            types = (np.arange(begin, end) >= middle).astype(int)
            with torch.no_grad():
                given = torch_vectors(teacher, ids, types, layer=LAYER)
            for own, true in zip(torch_vectors(student, ids, types, layer=last), given, strict=True):
                learned, expected = (
                    torch.log_softmax(heads @ heads.transpose(1, 2) / heads.shape[2] ** 0.5, dim=-1)
                    for heads in (vectors.view(len(ids), HEADS, -1).transpose(0, 1) for vectors in (own, true))
                )
                divergence = torch.nn.functional.kl_div(learned, expected, reduction="sum", log_target=True)
                total = total + divergence / (HEADS * len(ids))
            texts += 1
    return total / texts


def gradients(theirs: Any, *, side: Any, layers: int) -> Any:
    """Return PyTorch's gradients as our tree, 0 where there is none."""
    for parameter in theirs.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return side.ours_from(side.weight_gradients(theirs), layers=layers)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (bert_model(**NARROW), bert_model(**WIDE)),
        (bert_model(**NARROW), modern_model(**WIDE)),
        (modern_model(**NARROW), bert_model(**WIDE)),
    ],
    ids=["bert from bert", "bert from modernbert", "modernbert from bert"],
)
def test_loss_and_gradients_equal_pytorchs(student: ModelConfig, teacher: ModelConfig) -> None:
    models = student, teacher
    sides = [bert if model.architecture == "bert" else modernbert for model in models]
    theirs = [
        side.make_reference(model, seed=seed) for seed, (side, model) in enumerate(zip(sides, models, strict=True))
    ]
    expected = torch_loss(*theirs, last=student.num_hidden_layers)
    expected.backward()
    trees = [
        side.ours_from(side.weights(reference), layers=model.num_hidden_layers)
        for side, reference, model in zip(sides, theirs, models, strict=True)
    ]
    whole = PretrainedModel(Path(), "huggingface", teacher, "", {"encoder": trees[1]["encoder"]}, "float32", None)
    cut = up_to_layer(whole, number=LAYER)
    objective = RelationObjective(
        model=student,
        masking=MaskingConfig(mask_share=0.0, random_share=0.0, same_share=1.0),
        special=SPECIAL,
        max_predictions=5,
        next_sentence=False,
        teacher=TeacherModel(cut.model),
        relation_heads=HEADS,
        pretraining_weight=0.0,
    )

    @jax.jit
    def loss_and_gradients(params: Any, taught: Any) -> Any:
        batch = objective.prepare(taught, key=jax.random.key(0))
        weights = objective.weights(batch)
        return jax.value_and_grad(lambda p: objective.loss(p, batch=batch, weights=weights, key=None)[0])(params)

    params = to_device(trees[0])
    loss, actual = loss_and_gradients(
        params, TaughtRows(**vars(to_device(ROWS)), teacher=to_device(cut.params["encoder"]))
    )
    assert float(loss) == pytest.approx(expected.item(), rel=TOLERANCE)
    assert float(loss) > 1e-3
    assert worst_difference(actual, gradients(theirs[0], side=sides[0], layers=student.num_hidden_layers)) < TOLERANCE
