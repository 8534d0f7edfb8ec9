"""Scores of sentences next to HuggingFace's PyTorch models of the same weights: masked, by word, and left to right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_helpers import SMALL_TEST, flat, random_source

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")

import dataclasses  # noqa: E402
import math  # noqa: E402

from bert_jax.convert.export_folder import export_folder  # noqa: E402
from bert_jax.convert.pretrained import PretrainedModel  # noqa: E402
from bert_jax.model.parameter_names import nest  # noqa: E402
from bert_jax.prediction.engine import Engine  # noqa: E402
from bert_jax.prediction.likelihood import SentenceLikelihood  # noqa: E402
from tests.rounding import PROMISED, assert_rounded_alike, encoder_bound  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.numerics, pytest.mark.filterwarnings("default")]
# Sums of up to 20 log-probabilities, whose errors are independent: what is promised, or less.
ATOL = min(PROMISED, math.sqrt(20) * encoder_bound(SMALL_TEST, size=math.sqrt(8)))
SENTENCES = ["the cat sat .", "dogs ran", "the dog was not in the blue house !", "a", "kittens of catty dogs"]
SENTENCES.append("it ran .")


@pytest.fixture(scope="module")
def source() -> PretrainedModel:
    """Return random weights whose log-probabilities differ by whole nats."""
    source = random_source("small-test", seed=3)
    scaled = {name: array * (10 if name.endswith("word_embeddings") else 1) for name, array in flat(source).items()}
    return dataclasses.replace(source, params=nest(scaled))


@pytest.fixture(scope="module")
def folder(source: PretrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("likelihood") / "model"
    export_folder(source, out=out, report=lambda line: None)
    return out


def ours(source: PretrainedModel, **options: Any) -> list[float]:
    tokenizer = source.require_tokenizer()
    task = SentenceLikelihood(source.model, tokenizer=tokenizer, **options)
    engine = Engine(source.params, pad_id=tokenizer.pad_id, max_length=task.max_length)
    return [score["log_likelihood"] for score in engine.predict(task, [{"text": text} for text in SENTENCES])]


@pytest.mark.parametrize("scoring", ["word_l2r", "token"])
def test_pseudo_log_likelihoods_are_those_of_bert_for_masked_lm(source: PretrainedModel, folder: Path, scoring: str):
    model = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = []
    for text in SENTENCES:
        encoded = tokenizer(text, return_tensors="pt")
        words, ids, total = encoded.word_ids(), encoded["input_ids"], 0.0
        for position, word in enumerate(words):
            if word is None:
                continue
            masked = ids.clone()
            for other in range(position, len(words)):
                if other == position or (scoring == "word_l2r" and words[other] == word):
                    masked[0, other] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(input_ids=masked, attention_mask=encoded["attention_mask"]).logits
            total += float(torch.log_softmax(logits[0, position], -1)[ids[0, position]])
        expected.append(total)
    assert_rounded_alike(ours(source, scoring=scoring), expected, bound=ATOL)
    assert np.std(expected) > 1


def test_likelihoods_from_left_to_right_are_those_of_a_decoder(source: PretrainedModel, folder: Path):
    model = transformers.BertLMHeadModel.from_pretrained(folder, is_decoder=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = []
    for text in SENTENCES:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=ids).logits[0], -1)
        expected.append(sum(float(log_probs[i - 1, ids[0, i]]) for i in range(1, ids.shape[1] - 1)))
    causal = dataclasses.replace(source.model, attention_direction="left_to_right")
    assert_rounded_alike(ours(dataclasses.replace(source, model=causal)), expected, bound=ATOL)
    assert np.std(expected) > 1
