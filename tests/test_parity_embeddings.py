"""`embed` equals SentenceTransformer(folder).encode for folders with settings of every kind, on long texts too."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")

from source_helpers import WORDS, random_source  # noqa: E402
from test_embedding import sentence_folder  # noqa: E402

from bert_jax.convert.export_folder import export_folder  # noqa: E402
from bert_jax.prediction.model import load  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]  # the oracle's own warnings are not ours
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
    # float32 on both sides, two layers of width 8, values of order 1
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
