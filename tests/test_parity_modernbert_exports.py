"""An exported ModernBERT is what transformers' Auto classes make of its folder, and a folder of theirs is ours."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")

from modernbert_reference import make_reference  # noqa: E402
from test_fast_tokenizer import byte_level  # noqa: E402
from test_modernbert import small, small_source  # noqa: E402
from test_parity_exports import assert_same_answers, opened  # noqa: E402

from bert_jax.convert.export_folder import export_folder  # noqa: E402
from bert_jax.convert.huggingface import read_tensors  # noqa: E402
from bert_jax.convert.loading import load_pretrained  # noqa: E402
from bert_jax.data.fast_tokenizer import load_fast_tokenizer  # noqa: E402
from bert_jax.prediction.model import Model  # noqa: E402
from tests.rounding import assert_rounded_alike, huggingface_bound  # noqa: E402

# The oracle's own warnings are not ours.
pytestmark = [pytest.mark.parity, pytest.mark.numerics, pytest.mark.filterwarnings("default")]
CLASSES = {
    "classification": ("ModernBertForSequenceClassification", "AutoModelForSequenceClassification"),
    "tags": ("ModernBertForTokenClassification", "AutoModelForTokenClassification"),
    "span": ("ModernBertForQuestionAnswering", "AutoModelForQuestionAnswering"),
    "choice": ("ModernBertForMultipleChoice", "AutoModelForMultipleChoice"),
}


@pytest.fixture(autouse=True)
def _quiet_oracle() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def exported(huggingface_class: str, folder: Path, **fields: Any) -> Path:
    export_folder(small_source(huggingface_class, **fields), out=folder, report=lambda line: None)
    return folder


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_folder_of_a_task_gives_its_auto_class_our_ids_and_logits(tmp_path: Path, kind: str, pooling: str) -> None:
    if kind not in ("classification", "choice") and pooling == "cls":
        pytest.skip("only classifiers of sequences pool")
    huggingface_class, auto = CLASSES[kind]
    folder = exported(huggingface_class, tmp_path / "out", classifier_pooling=pooling)
    ours, theirs = Model(load_pretrained(folder)), opened(auto, folder)
    assert theirs.config.architectures == [huggingface_class]
    inputs = {"input_ids", "attention_mask"}  # its classes take no token types
    assert_same_answers(ours, theirs, kind=kind, folder=folder, inputs=inputs)


def test_a_pretrained_folder_fills_masks_as_ours(tmp_path: Path) -> None:
    folder = exported("ModernBertForMaskedLM", tmp_path / "out")
    assert type(opened("AutoModel", folder)).__name__ == "ModernBertModel"
    theirs = opened("AutoModelForMaskedLM", folder)
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (2, 3)
    for name, tensor in read_tensors(folder).items():
        assert theirs.state_dict()[name].numpy().tobytes() == np.ascontiguousarray(tensor).tobytes(), name
    text = "the [MASK] sat on the mat"
    filled = transformers.pipeline("fill-mask", model=str(folder), top_k=5)(text)
    mine = Model(load_pretrained(folder)).fill_mask(text, top_k=5)[0]
    assert [item["id"] for item in mine] == [item["token"] for item in filled]
    bound = 2 * huggingface_bound(small(), length=32)  # a probability is off, relatively, by as much as two logits are
    np.testing.assert_allclose([i["probability"] for i in mine], [i["score"] for i in filled], rtol=bound)


@pytest.mark.parametrize("huggingface_class", ["ModernBertForMaskedLM", "ModernBertModel"])
def test_a_folder_that_transformers_wrote_comes_back_bit_for_bit(tmp_path: Path, huggingface_class: str) -> None:
    model = small(vocab_size=330, num_hidden_layers=5, global_attn_every_n_layers=2, local_rope_theta=20_000.0)
    make_reference(model, use=huggingface_class.removeprefix("ModernBert")).save_pretrained(tmp_path / "theirs")
    byte_level(tmp_path / "theirs")
    source = load_pretrained(tmp_path / "theirs")
    assert source.model == dataclasses.replace(model, initializer_range=0.02)
    export_folder(source, out=tmp_path / "out", report=lambda line: None)
    before, after = read_tensors(tmp_path / "theirs"), read_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert np.array_equal(tensor.view(np.uint32), after[name].view(np.uint32)), name


def test_sentence_transformers_embeds_as_ours(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the parity extra: pip install -e '.[parity]'")
    from sentence_transformers import SentenceTransformer

    source = small_source("ModernBertModel")
    export_folder(source, out=tmp_path / "out", sentence_transformers=True, report=lambda line: None)
    texts = ["the cat sat on the mat", "a dog ran", "it was not the red house, it was the blue house!"]
    theirs = SentenceTransformer(str(tmp_path / "out")).encode(texts)
    ours = Model(load_pretrained(tmp_path / "out")).embed(texts)
    assert_rounded_alike(ours, theirs, bound=huggingface_bound(source.model, length=32))


def test_a_byte_level_tokenizer_frames_and_masks_as_in_transformers(tmp_path: Path) -> None:
    ours = load_fast_tokenizer(byte_level(tmp_path / "bpe"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "bpe")
    first, *rest = ours.encode_batch(ours.split_at_masks("the [MASK] sat on the mat."))
    ids = [*first, *(index for part in rest for index in (ours.mask_id, *part))]
    assert ours.special_ids.frame(ids)[0] == theirs("the [MASK] sat on the mat.")["input_ids"]
    assert ours.special_ids.frame(ours.encode("a dog"), ours.encode("ran"))[0] == theirs("a dog", "ran")["input_ids"]
