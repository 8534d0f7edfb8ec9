"""Losses and gradients of text embeddings equal those of sentence-transformers from the same weights and texts."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")

from sentence_transformers.sentence_transformer import losses  # noqa: E402

from bert_jax.convert.export_folder import export_folder  # noqa: E402
from bert_jax.convert.huggingface import to_tensors  # noqa: E402
from bert_jax.convert.loading import load_pretrained  # noqa: E402
from bert_jax.convert.pretrained import PretrainedModel  # noqa: E402
from tests.embed_data import embed_config, loss_and_gradients, open_embedder, write_embed_data  # noqa: E402
from tests.finetune_data import tiny_model, tiny_source  # noqa: E402
from tests.rounding import PROMISED_EMBEDDINGS, assert_rounded_alike, gradient_bound  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.numerics, pytest.mark.filterwarnings("default")]
COUNT = 12
# What is promised, which is less than roundings may come to with similarities times 20.
CLOSE = min(PROMISED_EMBEDDINGS, gradient_bound(tiny_model(), tokens=COUNT * 32))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PretrainedModel:
    """Return random weights, in a folder of sentence-transformers with mean pooling."""
    folder = tmp_path_factory.mktemp("source") / "model"
    export_folder(tiny_source(folder), out=folder, sentence_transformers=True, report=lambda line: None)
    return load_pretrained(folder)


def direction(model: Any, **options: Any) -> Any:
    """Return InfoNCE of both directions."""
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    return losses.MultipleNegativesRankingLoss(model, **both, **options)


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], Any]] = {
    "pairs": ("pairs", {}, {}, lambda model: losses.MultipleNegativesRankingLoss(model)),
    "negatives": ("triplets", {"temperature": 0.1}, {}, lambda m: losses.MultipleNegativesRankingLoss(m, scale=10.0)),
    "symmetric": ("triplets", {"symmetric": True}, {}, direction),
    "cached": (
        "triplets",
        {},
        {"gradient_accumulation_steps": 4},
        lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=5),
    ),
    "matryoshka": (
        "triplets",
        {"dimensions": (8, 16)},
        {},
        lambda m: losses.MatryoshkaLoss(m, losses.MultipleNegativesRankingLoss(m), matryoshka_dims=[8, 16, 32]),
    ),
    "scores": ("scores", {}, {}, losses.CoSENTLoss),
    "cached scores at sizes": (
        "scores",
        {"dimensions": (8,)},
        {"gradient_accumulation_steps": 2},
        lambda model: losses.MatryoshkaLoss(model, losses.CoSENTLoss(model), matryoshka_dims=[8, 32]),
    ),
    "cls": ("pairs", {"pooling": "cls"}, {}, lambda model: losses.MultipleNegativesRankingLoss(model)),
}


def magnified(embeddings: list[Any]) -> float:
    """Return how much larger than their own the rounding of nearly parallel embeddings is in a gradient.

    The gradient of a normalized vector is what is left of a sum of the others without its part along the vector: the
    sine of the angle between them, which is small for the [CLS] of random weights.
    """
    vectors = torch.nn.functional.normalize(torch.cat(embeddings), dim=-1)
    cosines = vectors @ vectors.T
    count = len(vectors)
    mean = (cosines.sum() - count) / (count * (count - 1))
    return float(1 / torch.sqrt(1 - mean**2).clamp(min=1e-3))


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_sentence_transformers(tmp_path: Path, source: PretrainedModel, name: str):
    form, options, train, make_loss = CASES[name]
    folder = write_embed_data(tmp_path / "data", form=form, count=COUNT)
    config = embed_config(folder, form=form, embed={"form": form, **options}, train={"batch_size": COUNT, **train})
    program, split = open_embedder(config, source)
    loss, gradients = loss_and_gradients(program, split, source.params)

    peer = library.SentenceTransformer(str(source.path), device="cpu").train()  # the source has no dropout
    if options.get("pooling"):
        peer[1].pooling_mode = options["pooling"]
    columns = list(zip(*(example.texts for example in split.examples), strict=True))
    inputs = [peer.preprocess(list(column)) for column in columns]
    labels = torch.tensor([example.score or 0.0 for example in split.examples])
    expected = make_loss(peer)(inputs, labels)
    expected.backward()
    assert_rounded_alike(loss, float(expected.detach()), bound=CLOSE * float(expected.detach()))
    ours = to_tensors(
        PretrainedModel(**{**vars(source), "params": gradients, "architecture": "BertModel"}), dtype="float32"
    )
    theirs = dict(peer[0].auto_model.named_parameters())
    with torch.no_grad():
        close = CLOSE * max(1.0, magnified([peer(one)["sentence_embedding"] for one in inputs]))
    scale = max(float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None)
    for key, gradient in ours.items():
        np.testing.assert_allclose(
            gradient / scale, theirs[key.removeprefix("bert.")].grad.numpy() / scale, rtol=0, atol=close, err_msg=key
        )
