"""`embed` equals SentenceTransformer(folder).encode for folders with settings of every kind, on long texts too."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")

from source_helpers import SMALL_TEST, WORDS, random_source  # noqa: E402
from test_embedding import sentence_folder  # noqa: E402

from bert_jax.convert.export_folder import export_folder  # noqa: E402
from bert_jax.convert.sentence_transformers import EmbeddingSettings  # noqa: E402
from bert_jax.prediction.model import load  # noqa: E402
from tests.rounding import PROMISED_EMBEDDINGS, assert_rounded_alike, encoder_bound  # noqa: E402

# The oracle's own warnings are not ours.
pytestmark = [pytest.mark.parity, pytest.mark.numerics, pytest.mark.filterwarnings("default")]
# What is promised, which is less than roundings may come to.
BOUND = min(PROMISED_EMBEDDINGS, encoder_bound(SMALL_TEST))
SETTINGS: dict[str, dict[str, Any]] = {
    "mean": {"pooling": {"pooling_mode_mean_tokens": True}, "modules": (("2_Normalize", "Normalize"),)},
    "cls, 12 tokens": {"pooling": {"pooling_mode_cls_token": True}, "sentence_bert_config": {"max_seq_length": 12}},
    "max and mean": {"pooling": {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}},
    "sqrt": {"pooling": {"pooling_mode_mean_sqrt_len_tokens": True}, "sentence_bert_config": {"max_seq_length": 5}},
    "weighted": {"pooling": {"pooling_mode_weightedmean_tokens": True}},
    "last": {"pooling": {"pooling_mode_lasttoken": True}, "sentence_bert_config": {"max_seq_length": 20}},
    "old layout": {"pooling": {"pooling_mode_cls_token": True}, "inner": "0_Transformer"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_embeddings_are_those_of_sentence_transformers(tmp_path: Path, name: str):
    encoder, settings = tmp_path / "encoder", SETTINGS[name]
    export_folder(random_source("small-test", architecture="BertModel"), out=encoder, report=lambda line: None)
    folder = sentence_folder(encoder, tmp_path / "st", **settings)
    for path, _ in settings.get("modules", ()):
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps({}))
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, size)) for size in (1, 3, 9, 17, 40)]
    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(texts)
    ours = load(folder, report=lambda line: None).embed(texts)
    assert_rounded_alike(ours, theirs, bound=BOUND)


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def test_an_exported_embedder_ranks_as_here_at_every_size_and_with_its_prompts(tmp_path: Path):
    settings = EmbeddingSettings(
        normalize=True, max_seq_length=9, prompts={"query": "the cat ", "document": "it was "}, similarity="dot"
    )
    source = dataclasses.replace(random_source("small-test", architecture="BertModel"), embedding=settings)
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, size)) for size in (1, 3, 5, 9, 17, 40)]
    for size in (0, 4):
        folder = tmp_path / f"st{size}"
        export_folder(source, out=folder, sentence_transformers=True, embedding_size=size, report=lambda line: None)
        peer = library.SentenceTransformer(str(folder), device="cpu")
        assert peer.similarity_fn_name == "dot"
        assert peer.max_seq_length == 9
        ours = load(folder, report=lambda line: None)
        for name, encode in (("", peer.encode), ("query", peer.encode_query), ("document", peer.encode_document)):
            vectors = ours.embed(texts, prompt=name)
            assert vectors.shape[1] == (size or 8)
            assert_rounded_alike(vectors, encode(texts), bound=BOUND, what=name)
            assert_rounded_alike(cosines(vectors), cosines(encode(texts)), bound=BOUND, what=name)
    whole = library.SentenceTransformer(str(tmp_path / "st0"), device="cpu", truncate_dim=4)
    shorter = load(tmp_path / "st0", report=lambda line: None).embed(texts, size=4)
    assert_rounded_alike(cosines(shorter), cosines(whole.encode(texts)), bound=BOUND)


@pytest.mark.parametrize("kind", ["regression", "classification", "multilabel"])
def test_an_exported_cross_encoder_scores_as_pair_does(tmp_path: Path, kind: str):
    labels = {"regression": 1, "classification": 3, "multilabel": 2}[kind]
    source = random_source("small-test", architecture="BertForSequenceClassification", num_labels=labels)
    problem = {"multilabel": "multi_label_classification"}.get(kind, "")
    fields = {**source.label_fields, **({"problem_type": problem} if problem else {})}
    source = dataclasses.replace(source, label_fields=fields)
    folder = tmp_path / "cross"
    export_folder(source, out=folder, cross_encoder=True, report=lambda line: None)
    generator = np.random.default_rng(0)
    pairs = [tuple(" ".join(generator.choice(WORDS, size)) for _ in range(2)) for size in (1, 4, 9)]
    peer = library.CrossEncoder(str(folder), device="cpu")
    theirs = peer.predict(pairs, apply_softmax=kind == "classification")
    rows = [{"text_a": first, "text_b": second} for first, second in pairs]
    answers = list(load(folder, report=lambda line: None).predict("pair", rows))
    if kind == "regression":
        ours = [answer["score"] for answer in answers]
    else:
        ours = [list(answer["probabilities"].values()) for answer in answers]
    assert_rounded_alike(ours, np.reshape(theirs, np.shape(ours)), bound=BOUND)
