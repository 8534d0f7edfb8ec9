"""An embedder is trained by the finetune command's runtime, resumes, and is a model for prediction and export."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.sentence_transformers import EmbeddingSettings
from bert_jax.errors import UserError
from bert_jax.finetuning.embed_settings import unused_prompts, with_model_settings
from bert_jax.finetuning.finetune import Request, finetune
from bert_jax.prediction.model import Model
from tests.embed_data import embed_config, records
from tests.finetune_data import tiny_model, tiny_source, write_jsonl, write_source
from tests.rounding import assert_rounded_alike, encoder_bound, rounded, sum_bound


def write_topics(folder: Path, count: int = 48) -> Path:
    """Write pairs that share a telling word at the end of both texts; the other words say nothing."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    telling = ("good", "bad", "fine", "sad", "nice", "poor")
    rows = [
        {
            side: " ".join([*map(str, rng.choice(("the", "a", "was", "it", "and"), 3)), telling[number % 6]])
            for side in ("anchor", "positive")
        }
        for number in range(count)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    scored = [
        {"anchor": f"it was {a}", "positive": f"the {b} a", "score": float(a == b)}
        for a in telling
        for b in telling[:3]
    ]
    write_jsonl(folder / "dev.jsonl", scored)
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train an embedder with prompts, GradCache and a Matryoshka size."""
    folder = tmp_path_factory.mktemp("embed")
    write_source(folder / "source")
    config = embed_config(
        write_topics(folder / "data"),
        form="pairs",
        embed={"form": "pairs", "dimensions": (8,), "anchor_prompt": "the ", "temperature": 0.1},
        data={"directory": str(folder / "data"), "max_seq_length": 12},
        train={"batch_size": 24, "num_epochs": 8.0, "gradient_accumulation_steps": 2},
        optimizer={"learning_rate": 3e-3},
    )
    assert finetune(config, request=Request(init=str(folder / "source"), workdir=str(folder / "work"))) == 0
    return folder / "work"


def test_training_raises_the_correlation_and_the_metrics_are_written(workdir: Path):
    results = json.loads((workdir / "results.json").read_text())
    history = results["best"]["history"]
    assert results["selection"] == "spearman"
    assert results["best"]["best"]["metrics"]["spearman"] > 0.6
    assert "spearman/8" in history[0]["metrics"]
    lines = [json.loads(line) for line in next((workdir / "runs").glob("*/metrics.jsonl")).read_text().splitlines()]
    assert any("eval/spearman" in line for line in lines)
    assert any("train/accuracy" in line for line in lines)


@pytest.mark.numerics
def test_the_workdir_embeds_with_its_settings_and_the_export_gives_the_same(workdir: Path, tmp_path: Path):
    source = load_pretrained(workdir, report=lambda line: None)
    assert source.embedding is not None
    assert source.embedding.max_seq_length == 12
    model = Model(source)
    texts = ["it was good", "bad", "the film was very nice and it was a very very fine film"]
    ours = model.embed(texts)
    bound = encoder_bound(tiny_model())
    assert_rounded_alike(np.linalg.norm(ours, axis=1), np.ones(3), bound=sum_bound(32) + rounded(4))
    assert_rounded_alike(model.embed(texts, prompt="query"), model.embed([f"the {t}" for t in texts]), bound=bound)
    export_folder(source, out=tmp_path / "whole", sentence_transformers=True, report=lambda line: None)
    whole = Model(load_pretrained(tmp_path / "whole"))
    assert_rounded_alike(whole.embed(texts), ours, bound=bound)
    assert_rounded_alike(whole.embed(texts, prompt="query"), model.embed(texts, prompt="query"), bound=bound)
    lengths = np.linalg.norm(ours[:, :8], axis=1, keepdims=True)
    short, bound = ours[:, :8] / lengths, bound / float(lengths.min())
    assert_rounded_alike(model.embed(texts, size=8), short, bound=bound)
    export_folder(
        source, out=tmp_path / "short", sentence_transformers=True, embedding_size=8, report=lambda line: None
    )
    assert_rounded_alike(Model(load_pretrained(tmp_path / "short")).embed(texts), short, bound=bound)


def test_a_wrong_prompt_or_size_is_one_line(workdir: Path, tmp_path: Path):
    model = Model(load_pretrained(workdir, report=lambda line: None))
    with pytest.raises(UserError, match="prompt='passage': the prompts of the model are: query, document: choose one"):
        model.embed("x", prompt="passage")
    with pytest.raises(UserError, match="embedding_size=32: embeddings have 32 numbers: give a smaller number"):
        model.embed("x", size=32)
    with pytest.raises(UserError, match="--embedding_size=8: only --sentence_transformers has embeddings: type both"):
        export_folder(model.source, out=tmp_path / "out", embedding_size=8)


def test_the_models_pooling_is_kept_and_what_is_not_trained_is_refused(tmp_path: Path):
    source = tiny_source(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", records(4, form="pairs"))
    config = embed_config(tmp_path, form="pairs")

    def settled(settings: Any, **embed: Any) -> str:
        changed = dataclasses.replace(config, embed=dataclasses.replace(config.embed, **embed))  # type: ignore[type-var]
        model = dataclasses.replace(source, embedding=settings)
        embedder = with_model_settings(changed, pretrained=model).embed
        assert embedder is not None
        return embedder.pooling

    assert settled(None) == "mean"
    assert settled(EmbeddingSettings(poolings=("cls",))) == "cls"
    assert settled(EmbeddingSettings(poolings=("max",)), pooling="mean") == "mean"
    with pytest.raises(UserError, match="its embeddings need the pooling max, which is not trained here"):
        settled(EmbeddingSettings(poolings=("max",)))
    with pytest.raises(UserError, match=r"config.embed.dimensions=\(8, 32\): the embeddings of .* have 32 numbers"):
        settled(None, dimensions=(8, 32))


def test_prompts_of_the_model_that_are_not_used_are_reported(tmp_path: Path):
    settings = EmbeddingSettings(prompt="query: ", prompts={"document": "passage: "})
    source = dataclasses.replace(tiny_source(tmp_path), embedding=settings)
    line = unused_prompts(embed_config(tmp_path, form="pairs"), pretrained=source)
    assert "('query: ', 'passage: ') are not used: to keep them, type --config.embed.anchor_prompt" in line
    config = embed_config(tmp_path, form="pairs", embed={"form": "pairs", "anchor_prompt": "query: "})
    assert not unused_prompts(config, pretrained=source)
    assert not unused_prompts(config, pretrained=tiny_source(tmp_path))


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"embed": {"form": "texts"}, "data": {"dev_fraction": 0.1}}, "config.data.dev_fraction=0.1: single texts"),
        ({"embed": {"form": "scores", "symmetric": True}}, "config.embed.symmetric: the loss of scored pairs has no"),
        ({"embed": {"form": "pears"}}, "config.embed.form='pears'"),
        ({"embed": {"temperature": 0.0}}, "config.embed.temperature"),
        ({"data": {"truncation": "windows"}}, "config.data.truncation=windows: config.task=embed reads pairs"),
    ],
)
def test_an_impossible_combination_is_one_line(tmp_path: Path, sections: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match) as caught:
        embed_config(tmp_path, form=sections.get("embed", {}).get("form", "pairs"), **sections)
    assert "\n" not in str(caught.value)
