"""Parity with HuggingFace PyTorch, on genuine weights and on random ones: outputs, gradients, folders, tokenizers."""

import dataclasses
import os
import re
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from source_helpers import flat, minilm, random_source, vocabulary

from bert_jax.config import model_preset
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.huggingface import to_tensors
from bert_jax.convert.loading import load_pretrained
from bert_jax.data.vocabulary import load_vocabulary, save_vocabulary
from bert_jax.model.architectures import ARCHITECTURES
from bert_jax.model.heads import PretrainingModel
from bert_jax.model.parameter_names import nest
from bert_jax.model.parts import apply_parts, to_device
from bert_jax.prediction.model import Model, load
from bert_jax.types import EncoderInputs, PretrainingLogits
from tests.rounding import PROMISED, PROMISED_EMBEDDINGS, assert_rounded_alike, huggingface_bound

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")

pytestmark = [
    pytest.mark.parity,
    # What the oracles themselves warn of is not ours to mend.
    pytest.mark.filterwarnings("default"),
]

LENGTHS = (17, 40, 5)

CLASSES = ARCHITECTURES["bert"].huggingface.classes


@pytest.fixture(autouse=True)
def _quiet_oracle():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(2)


def sample(model, *, seed: int = 0):
    generator = np.random.default_rng(seed)
    width = max(LENGTHS)
    ids = generator.integers(1, model.vocab_size, (len(LENGTHS), width))
    mask = (np.arange(width) < np.array(LENGTHS)[:, None]).astype(np.int64)
    types = (np.arange(width) >= np.array(LENGTHS)[:, None] // 2).astype(np.int64) * mask
    return ids * mask, types, mask


def encoder_inputs(ids, types, mask) -> EncoderInputs:
    place_ = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return EncoderInputs(*(jnp.asarray(array, jnp.int32) for array in (ids, types, place_, mask)))


def oracle(folder, architecture):
    return getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager").eval()


def torch_inputs(ids, types, mask):
    arrays = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    return {name: torch.tensor(array) for name, array in arrays.items()}


def write_oracle(folder, model, architecture, *, num_labels: int = 3):
    """Write a folder as transformers does, with random weights everywhere (biases too)."""
    torch.manual_seed(0)
    fields = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = transformers.BertConfig(
        **{name: getattr(model, name) for name in (*fields, "max_position_embeddings")}, hidden_act=model.hidden_act
    )
    if "Classification" in architecture:
        config.num_labels = num_labels
    made = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    made.save_pretrained(folder)
    save_vocabulary(vocabulary(), directory=folder)
    return made


def assert_close(ours, theirs, *, bound, rows=None):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    if rows is not None:
        ours, theirs = ours[rows], theirs[rows]
    assert_rounded_alike(ours, theirs, bound=bound)


def check_outputs(source, theirs):
    ids, types, mask = sample(source.model)
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    run = jax.jit(
        lambda params, inputs: apply_parts(
            params, inputs, model=source.model, positions=jnp.asarray(positions), output_hidden_states=True
        )
    )
    ours = run(to_device(source.params), encoder_inputs(ids, types, mask))
    with torch.no_grad():
        expected = theirs(**torch_inputs(ids, types, mask), output_hidden_states=True)
    real, bound = mask.astype(bool), huggingface_bound(source.model)
    assert len(expected.hidden_states) == source.model.num_hidden_layers + 1
    for layer, states in enumerate(expected.hidden_states):
        assert_close(ours.all_hidden[layer], states, bound=bound, rows=real)
    pairs = {
        "pooler_output": ours.pooled,
        "prediction_logits": ours.masked_lm,
        "seq_relationship_logits": ours.next_sentence,
    }
    for name, mine in pairs.items():
        if name in expected:
            assert_close(mine, expected[name], bound=bound, rows=real if name == "prediction_logits" else None)
    if source.architecture == "BertForMaskedLM":
        assert_close(ours.masked_lm, expected.logits, bound=bound, rows=real)
    if source.architecture in ("BertForSequenceClassification", "BertForNextSentencePrediction"):
        assert_close(ours.classifier if source.num_labels else ours.next_sentence, expected.logits, bound=bound)
    if source.architecture == "BertForTokenClassification":
        assert_close(ours.classifier, expected.logits, bound=bound, rows=real)
    if source.architecture == "BertForQuestionAnswering":
        assert_close(ours.qa_outputs[..., 0], expected.start_logits, bound=bound, rows=real)
        assert_close(ours.qa_outputs[..., 1], expected.end_logits, bound=bound, rows=real)
    return expected


@pytest.mark.numerics
@pytest.mark.parametrize("architecture", [name for name in CLASSES if name != "BertForMultipleChoice"])
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
def test_folders_of_every_class_come_in_with_equal_outputs(tmp_path, architecture, hidden_act):
    model = dataclasses.replace(
        model_preset("L-3_H-32_A-4"), vocab_size=vocabulary().size, max_position_embeddings=64, hidden_act=hidden_act
    )
    write_oracle(tmp_path, model, architecture)
    source = load_pretrained(tmp_path)
    assert source.architecture == architecture
    check_outputs(source, oracle(tmp_path, architecture))
    # And out again: the same tensors bit for bit, and the class finds nothing missing or unexpected.
    export_folder(source, out=tmp_path / "again", report=lambda line: None)
    safetensors = pytest.importorskip("safetensors.numpy")
    first = safetensors.load_file(tmp_path / "model.safetensors")
    second = safetensors.load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    _, info = getattr(transformers, architecture).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.numerics
@pytest.mark.parametrize("preset", ["tiny", "mini"])
def test_random_weights_of_the_small_sizes_give_equal_outputs(tmp_path, preset):
    check_size(tmp_path, preset)


@pytest.mark.soak
@pytest.mark.numerics
@pytest.mark.parametrize("preset", ["small", "medium", "base", "large"])
def test_random_weights_of_the_large_sizes_give_equal_outputs(tmp_path, preset):
    check_size(tmp_path, preset)


def check_size(folder, preset):
    model = model_preset(preset)  # with the released vocabulary's 30,522 rows
    write_oracle(folder, model, "BertForPreTraining")
    check_outputs(load_pretrained(folder), oracle(folder, "BertForPreTraining"))


@pytest.mark.numerics
def test_genuine_weights_give_equal_hidden_states_and_logits(tmp_path):
    folder = minilm()
    check_outputs(load_pretrained(folder), oracle(folder, "BertModel"))
    # With heads drawn here, exported, and read there.
    source = load_pretrained(folder, init_missing=["masked_lm", "next_sentence"])
    export_folder(source, out=tmp_path / "out", report=lambda line: None)
    expected = check_outputs(source, oracle(tmp_path / "out", "BertForPreTraining"))
    assert expected.prediction_logits.shape[-1] == 30522


@pytest.mark.numerics
@pytest.mark.parametrize("which", ["random", "genuine"])
def test_gradients_of_the_pretraining_loss_are_equal(tmp_path, which):
    if which == "genuine":
        source = load_pretrained(minilm(), init_missing=["masked_lm", "next_sentence"])
    else:
        source = random_source()
    export_folder(source, out=tmp_path / "out", report=lambda line: None)
    theirs = oracle(tmp_path / "out", "BertForPreTraining")
    ids, types, mask = sample(source.model)
    generator = np.random.default_rng(1)
    positions = np.stack([generator.permutation(length)[:4] for length in LENGTHS])
    labels = generator.integers(0, source.model.vocab_size, positions.shape)
    next_labels = np.array([0, 1, 0])

    @jax.jit
    def gradients(params):
        def loss(tree):
            result = PretrainingModel(source.model).apply(
                {"params": tree},
                encoder_inputs(ids, types, mask),
                positions=jnp.asarray(positions, jnp.int32),
                cls_positions=jnp.zeros((3, 1), jnp.int32),
            )
            logits = cast(PretrainingLogits, result)
            assert logits.next_sentence is not None
            words = jax.nn.log_softmax(logits.masked_lm)
            follows = jax.nn.log_softmax(logits.next_sentence[:, 0])
            picked = jnp.take_along_axis(words, jnp.asarray(labels)[..., None], axis=-1)
            return -picked.mean() - follows[jnp.arange(3), next_labels].mean()

        return jax.value_and_grad(loss)(params)

    value, grads = gradients(to_device(source.params))
    targets = np.full(ids.shape, -100)
    np.put_along_axis(targets, positions, labels, axis=1)
    expected = theirs(
        **torch_inputs(ids, types, mask), labels=torch.tensor(targets), next_sentence_label=torch.tensor(next_labels)
    )
    expected.loss.backward()
    assert_rounded_alike(float(value), expected.loss.item(), bound=huggingface_bound(source.model))
    mine = to_tensors(dataclasses.replace(source, params=jax.device_get(grads)), dtype="float32")
    compared = 0
    for name, parameter in theirs.named_parameters():
        gradient = parameter.grad.numpy()
        # The key's bias moves all scores of a query alike: its gradient is 0 but for rounding, 1e-9 beside others of 1.
        scale = 1e-3 if name.endswith("key.bias") else float(np.abs(gradient).max())
        np.testing.assert_allclose(mine[name], gradient, atol=PROMISED * scale, rtol=0, err_msg=name)
        compared += 1
    assert compared == len(mine)


def sentences(shared_data, count: int) -> list[str]:
    text = (shared_data / "pretrain_en" / "wiki_01").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if len(line) > 20 and not line.startswith("<")]
    found = [piece for line in lines for piece in re.split(r"(?<=[.!?]) ", line) if len(piece) > 15]
    return found[:count]


@pytest.mark.numerics
def test_embeddings_of_a_thousand_sentences_are_the_same(shared_data, tmp_path):
    chosen = sentences(shared_data, 1000)
    assert len(chosen) == 1000
    folder = minilm()
    ours = load(folder).embed(chosen)
    theirs = torch_embeddings(folder, chosen)
    cosines = (ours * theirs).sum(-1)  # both of length 1
    assert cosines.min() > 1 - PROMISED_EMBEDDINGS


def torch_embeddings(folder, chosen) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    out = np.zeros((len(chosen), model.config.hidden_size), np.float32)
    order = sorted(range(len(chosen)), key=lambda index: len(chosen[index]))
    with torch.inference_mode():
        for start in range(0, len(order), 32):
            batch = order[start : start + 32]
            tokens = tokenizer(
                [chosen[i] for i in batch], padding="longest", truncation=True, max_length=512, return_tensors="pt"
            )
            hidden = model(**tokens).last_hidden_state * tokens["attention_mask"][..., None]
            pooled = hidden.sum(1) / tokens["attention_mask"].sum(1, keepdim=True)
            out[batch] = torch.nn.functional.normalize(pooled).numpy()
    return out


@pytest.mark.numerics
def test_exported_folder_is_a_sentence_transformer(shared_data, tmp_path):
    library = pytest.importorskip(
        "sentence_transformers", reason="needs sentence-transformers: pip install sentence-transformers"
    )
    source = load_pretrained(minilm())
    export_folder(source, out=tmp_path / "out", sentence_transformers=True, report=lambda line: None)
    chosen = sentences(shared_data, 40)
    theirs = library.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(chosen)
    ours = Model(source).embed(chosen)
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, rtol=PROMISED_EMBEDDINGS)
    assert (ours * theirs).sum(-1).min() > 1 - PROMISED_EMBEDDINGS


@pytest.mark.numerics
def test_pipeline_fills_masks_as_we_do(tmp_path):
    source = random_source()
    export_folder(source, out=tmp_path / "out", report=lambda line: None)
    text = "the cat [MASK] on the mat ."
    theirs = transformers.pipeline("fill-mask", model=str(tmp_path / "out"), top_k=5)(text)
    ours = load(tmp_path / "out").fill_mask(text, top_k=5)[0]
    assert [item["id"] for item in ours] == [item["token"] for item in theirs]
    # A probability is off, relatively, by as much as two logits are.
    bound = 2 * huggingface_bound(source.model)
    np.testing.assert_allclose([i["probability"] for i in ours], [i["score"] for i in theirs], rtol=bound)
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "out")).__name__ == "BertModel"
    assert type(transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "out")).__name__ == "BertForPreTraining"


@pytest.mark.numerics
def test_pipelines_of_fine_tuned_heads_answer_as_we_do(tmp_path):
    source = random_source(architecture="BertForSequenceClassification", num_labels=3)
    export_folder(source, out=tmp_path / "classifier", report=lambda line: None)
    text = "the dog was not red !"
    theirs = transformers.pipeline("text-classification", model=str(tmp_path / "classifier"), top_k=None)(text)
    theirs = theirs[0] if isinstance(theirs[0], list) else theirs
    ours = load(tmp_path / "classifier").classify(text)
    bound = 2 * huggingface_bound(source.model)
    assert {item["label"]: pytest.approx(item["score"], rel=bound) for item in theirs} == ours["probabilities"]
    source = random_source(architecture="BertForMultipleChoice")
    export_folder(source, out=tmp_path / "choice", report=lambda line: None)
    model = transformers.BertForMultipleChoice.from_pretrained(tmp_path / "choice").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "choice")
    endings = ["sat on the mat .", "was a house ?"]
    tokens = tokenizer(["the cat"] * 2, text_pair=endings, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**{name: array[None] for name, array in tokens.items()}).logits[0]
    answer = next(load(tmp_path / "choice").predict("choice", [{"text_a": "the cat", "choices": endings}]))
    np.testing.assert_allclose(answer["probabilities"], torch.softmax(logits, -1).numpy(), rtol=bound)


VOCABULARIES = ("uncased", "cased", "chinese", "multilingual-cased")


@pytest.mark.parametrize("which", VOCABULARIES)
def test_exported_tokenizer_gives_our_ids_on_real_text(shared_data, tmp_path, which):
    """On every line of the shared English and Chinese samples; a private-use or rare CJK character would differ."""
    words = load_vocabulary(shared_data / "vocab" / f"bert-base-{which}-vocab.txt")
    source = with_vocabulary(words)
    export_folder(source, out=tmp_path / "out", report=lambda line: None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.is_fast
    text = (shared_data / "pretrain_en" / "wiki_02").read_text(encoding="utf-8")[:300_000]
    text += (shared_data / "pretrain_zh" / "CLUECorpusSmall_bert_sampled.txt").read_text(encoding="utf-8")[:100_000]
    lines = [line for line in text.splitlines() if line.strip()]
    lines += ["Don't STOP, naïve café!", "x" * 150, "x" * 201, "\ufb01ne \u200bzero"]
    theirs = tokenizer(lines, add_special_tokens=False)["input_ids"]
    ids = source.tokenizer
    assert ids is not None
    ours = ids.encode_batch(lines)
    different = [line for line, mine, other in zip(lines, ours, theirs, strict=True) if mine != other]
    assert not different
    pair = tokenizer("a dog", "a cat")
    first, second = ids.encode_batch(["a dog", "a cat"])
    assert pair["input_ids"] == [ids.cls_id, *first, ids.sep_id, *second, ids.sep_id]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    settings = tokenizer.init_kwargs
    assert settings["do_lower_case"] == words.do_lower_case


def with_vocabulary(words):
    from bert_jax.data.tokenization import WordPieceTokenizer

    source = random_source("small-test", architecture="BertModel")
    rows = np.random.default_rng(0).standard_normal((words.size, 8)).astype(np.float32)
    params = nest(flat(source) | {"encoder/embeddings/word_embeddings": rows})
    return dataclasses.replace(
        source,
        params=params,
        model=dataclasses.replace(source.model, vocab_size=words.size),
        tokenizer=WordPieceTokenizer(words),
    )
