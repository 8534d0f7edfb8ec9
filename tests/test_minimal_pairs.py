"""Minimal pairs: scores equal a plain loop, damaged rows are named, ties are counted, the command prints one object."""

import dataclasses
import json
import math
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_helpers import SMALL_TEST, flat, random_source

from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.huggingface import to_tensors
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import nest
from bert_jax.prediction.engine import Engine
from bert_jax.prediction.likelihood import SentenceLikelihood
from bert_jax.prediction.minimal_pairs import evaluate_minimal_pairs, read_pairs
from tests.rounding import assert_rounded_alike, encoder_bound
from tests.runs import run

SENTENCES = ["the cat sat .", "dogs ran", "the dog was not in the blue house !", "a", "kittens of catty dogs"]
SENTENCES.append("it ran .")
# Sums of up to 20 log-probabilities, whose errors are independent; logits are sums of 8 products of numbers of size 1.
ATOL = math.sqrt(20) * encoder_bound(SMALL_TEST, size=math.sqrt(8))


def sharp(source: PretrainedModel) -> PretrainedModel:
    """Return the model with larger word embeddings, so that its log-probabilities differ by whole nats."""
    scaled = {name: array * (10 if name.endswith("word_embeddings") else 1) for name, array in flat(source).items()}
    return dataclasses.replace(source, params=nest(scaled))


@pytest.fixture(scope="module")
def source() -> PretrainedModel:
    return sharp(random_source("small-test"))


def scores(source: PretrainedModel, sentences: list[str], **options: Any) -> list[dict[str, Any]]:
    tokenizer = source.require_tokenizer()
    task = SentenceLikelihood(source.model, tokenizer=tokenizer, **options)
    engine = Engine(source.params, pad_id=tokenizer.pad_id, max_length=task.max_length, max_tokens=256)
    return list(engine.predict(task, [{"text": text} for text in sentences]))


def numpy_log_probs(source: PretrainedModel, ids: list[int]) -> np.ndarray:
    """Return the log-probabilities [T, V] of the float64 reference on the tensors of an export."""
    model, described = source.model, architecture_of(source.model).huggingface
    config = {name: getattr(model, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_act")}
    logits = described.outputs(
        to_tensors(source, dtype="float32"),
        config={**config, "layer_norm_eps": model.layer_norm_eps},
        input_ids=np.array(ids),
        token_type_ids=np.zeros(len(ids), int),
    )["masked_lm"]
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def plain_loop(source: PretrainedModel, text: str, *, scoring: str) -> float:
    """Return the pseudo-log-likelihood: one sequence, one token at a time."""
    tokenizer = source.require_tokenizer()
    ids = [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]
    total = 0.0
    for position in range(1, len(ids) - 1):
        masked = list(ids)
        masked[position] = tokenizer.mask_id
        later = position + 1
        while scoring == "word_l2r" and later < len(ids) - 1 and tokenizer.pieces[ids[later]].startswith("##"):
            masked[later] = tokenizer.mask_id
            later += 1
        total += numpy_log_probs(source, masked)[position, ids[position]]
    return total


@pytest.mark.parametrize("scoring", ["word_l2r", "token"])
@pytest.mark.numerics
def test_the_score_of_a_masked_language_model_is_that_of_a_plain_loop(source: PretrainedModel, scoring: str):
    expected = [plain_loop(source, text, scoring=scoring) for text in SENTENCES]
    found = [score["log_likelihood"] for score in scores(source, SENTENCES, scoring=scoring)]
    assert_rounded_alike(found, expected, bound=ATOL)
    assert np.std(expected) > 1  # an untrained model could not tell a wrong score from a right one


def test_masking_the_rest_of_the_word_differs_only_where_a_word_has_pieces(source: PretrainedModel):
    by_word, by_token = (scores(source, SENTENCES, scoring=name) for name in ("word_l2r", "token"))
    pieces = source.require_tokenizer().pieces
    for text, first, second in zip(SENTENCES, by_word, by_token, strict=True):
        is_split = any(pieces[index].startswith("##") for index in first["ids"])
        is_same = first["log_likelihood"] == pytest.approx(second["log_likelihood"], abs=ATOL)
        assert is_same != is_split, text


@pytest.mark.numerics
def test_a_left_to_right_model_gives_each_token_its_probability_after_the_tokens_before_it(source: PretrainedModel):
    import jax
    import jax.numpy as jnp

    from bert_jax.model.parts import apply_parts, to_device
    from bert_jax.rows.layout import encoder_inputs
    from bert_jax.types import InstanceRows

    model = dataclasses.replace(source.model, attention_direction="left_to_right")
    causal = dataclasses.replace(source, model=model)
    tokenizer, params = source.require_tokenizer(), to_device(source.params)

    @jax.jit
    def next_log_probs(ids: Any, end: Any) -> Any:
        """Return the log-probabilities of the token at `end`, given those before it: the rest is padding."""
        inputs = encoder_inputs(InstanceRows(ids, jnp.stack([end, end * 0])[None, None]))
        logits = apply_parts(params, inputs, model=model, positions=(end - 1)[None, None]).masked_lm
        assert logits is not None
        return jax.nn.log_softmax(logits[0, 0])

    for text, score in zip(SENTENCES, scores(causal, SENTENCES), strict=True):
        ids, expected = [tokenizer.cls_id, *tokenizer.encode(text)], 0.0
        for end in range(1, len(ids)):
            seen = ids[:end] + [tokenizer.pad_id] * (32 - end)
            expected += float(next_log_probs(jnp.array([seen]), jnp.array(end))[ids[end]])
        assert score["log_likelihood"] == pytest.approx(expected, abs=ATOL)


def test_a_left_to_right_model_takes_no_way_of_masking(source: PretrainedModel):
    model = dataclasses.replace(source.model, attention_direction="left_to_right")
    with pytest.raises(UserError, match="--scoring=token: a left-to-right model has an ordinary likelihood"):
        SentenceLikelihood(model, tokenizer=source.require_tokenizer(), scoring="token")


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def row(good: str, bad: str, **fields: Any) -> dict[str, Any]:
    return {"sentence_good": good, "sentence_bad": bad, **fields}


@pytest.fixture(scope="module")
def folder(source: PretrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "model"
    export_folder(source, out=out, report=lambda line: None)
    return out


def test_the_command_counts_pairs_by_uid_and_phenomenon_and_ties_apart(source: PretrainedModel, folder: Path):
    good, bad = sorted(SENTENCES[:2], key=lambda text: -plain_loop(source, text, scoring="word_l2r"))
    data = folder.parent
    write(data / "a.jsonl", row(good, bad, UID="first", linguistics_term="x"), row(good, good.upper(), UID="second"))
    write(data / "b.jsonl", row(bad, good, linguistics_term="x", pairID="7"))
    command = [sys.executable, "-m", "bert_jax.evaluate", "--task=minimal_pairs"]
    done = run([*command, f"--model={folder}", f"--data={data}/*.jsonl"])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["pairs"], result["accuracy"], result["ties"], result["scoring"]) == (3, 1 / 3, 1, "word_l2r")
    assert result["by_phenomenon"] == {"x": {"accuracy": 0.5, "pairs": 2, "ties": 0}}
    assert {name: (group["accuracy"], group["ties"]) for name, group in result["by_uid"].items()} == {
        "first": (1.0, 0),
        "second": (0.0, 1),  # the same tokens without case
        "b": (0.0, 0),  # a row without UID is counted by its file
    }
    assert "3 pairs in" in done.stderr


def test_an_archive_is_read_as_its_files_are(tmp_path: Path):
    lines = [row("the cat sat", "the cat sit"), row("it ran", "it run")]
    file = write(tmp_path / "p.jsonl", *lines)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.write(file, "data/p.jsonl")
        archive.writestr("data/README.md", "not pairs")
        archive.writestr("__MACOSX/data/._p.jsonl", b"\0\0")
    plain, zipped = list(read_pairs(str(file))), list(read_pairs(str(tmp_path / "p.zip")))
    assert [(pair.good, pair.bad, pair.uid) for pair in plain] == [(pair.good, pair.bad, pair.uid) for pair in zipped]
    assert zipped[1].location == f"{tmp_path / 'p.zip'}/data/p.jsonl line 2"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"sentence_good": "it ran"}', "p.jsonl line 2: sentence_bad is missing"),
        ('{"sentence_good": "it ran", "sentence_bad": 3}', "p.jsonl line 2: sentence_bad is not a text"),
        ('{"sentence_good": "it ran", "sentence_bad": ""}', "p.jsonl line 2: sentence_bad is empty"),
        ('{"sentence_good": "it ran", "sen', "p.jsonl line 2: not JSON"),
        ('["it ran", "it run"]', "p.jsonl line 2: not a JSON object"),
        ('{"sentence_good": "it ran", "sentence_bad": "it", "UID": 1}', "p.jsonl line 2: UID is not a text"),
    ],
)
def test_a_damaged_row_is_named_by_file_and_line(tmp_path: Path, line: str, says: str):
    file = write(tmp_path / "p.jsonl", row("it ran", "it run"))
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match=says):
        list(read_pairs(str(file)))


def test_a_sentence_that_the_model_cannot_read_whole_is_named(folder: Path, tmp_path: Path):
    file = write(tmp_path / "p.jsonl", row("it ran", "it run"), row("the cat " * 20, "it"))
    with pytest.raises(UserError, match=r"p.jsonl line 2: sentence_good: the text has 42 tokens, the model"):
        evaluate_minimal_pairs(folder, data=str(file), report=lambda line: None)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--data=nowhere/*.jsonl",), "--data=nowhere/*.jsonl: matches no file"),
        ((), "--data is missing"),
        (("--data=setup.cfg",), "setup.cfg line 1: not JSON"),
        (("--data=a.jsonl", "--scoring=words"), "--scoring=words: choose one of word_l2r, token"),
        (("--data=a.jsonl", "--task=squad_v2", "--scoring=token"), "only --task=minimal_pairs has it"),
    ],
)
def test_bad_flags_are_one_line(folder: Path, tmp_path: Path, flags: tuple[str, ...], says: str):
    file = write(tmp_path / "a.jsonl", row("it ran", "it run"))
    flags = tuple(flag.replace("a.jsonl", str(file)) for flag in flags)
    done = run([sys.executable, "-m", "bert_jax.evaluate", "--task=minimal_pairs", f"--model={folder}", *flags])
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert says in done.stderr


def test_a_model_without_a_masked_lm_head_is_refused(tmp_path: Path):
    export_folder(random_source("small-test", architecture="BertModel"), out=tmp_path / "m", report=lambda line: None)
    file = write(tmp_path / "p.jsonl", row("it ran", "it run"))
    with pytest.raises(UserError, match="has no masked-LM head to score with"):
        evaluate_minimal_pairs(tmp_path / "m", data=str(file), report=lambda line: None)


def test_progress_counts_pairs_and_estimates_the_time_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bert_jax.prediction.minimal_pairs._PAIRS", 2)
    monkeypatch.setattr("bert_jax.prediction.minimal_pairs.INTERVAL_SECONDS", 0.0)
    file = write(tmp_path / "p.jsonl", *[row("it ran", "it run")] * 4)
    lines: list[str] = []
    evaluate_minimal_pairs(folder, data=str(file), report=lines.append)
    assert [line.partition(" pairs")[0] for line in lines] == ["2 of 4", "4 of 4", "4"]
    assert re.fullmatch(r"2 of 4 pairs, [\d.]+ pairs/s, \d+ s left", lines[0])
