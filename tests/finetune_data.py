"""Share what the tests of fine-tuning begin with: a tiny SOURCE, and tasks that it can learn in seconds."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bert_jax.config import ModelConfig
from bert_jax.config.finetuning import FinetuneConfig, from_config_dict
from bert_jax.convert.loading import PretrainedModel
from bert_jax.data.tokenization import WordPieceTokenizer
from bert_jax.data.vocabulary import SPECIAL_PIECES, Vocabulary
from bert_jax.model.task_heads import SequenceClassifier
from bert_jax.parallel.distributed import Hosts
from bert_jax.runs.compilation_cache import CompilationCache
from bert_jax.runs.runtime import Runtime, silent
from bert_jax.types import EncoderInputs

GOOD, BAD, PLAIN = ("good", "fine", "nice"), ("bad", "poor", "sad"), ("the", "a", "film", "was", "very", "and", "it")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789.,'-")
PIECES = (*SPECIAL_PIECES, *GOOD, *BAD, *PLAIN, *LETTERS[1:], *(f"##{letter}" for letter in LETTERS))


def tokenizer() -> WordPieceTokenizer:
    """Return a tokenizer that knows the words of these tasks and spells all others."""
    return WordPieceTokenizer(Vocabulary(PIECES, do_lower_case=True))


def tiny_model(**changes: Any) -> ModelConfig:
    """Return two layers of width 32."""
    model = ModelConfig(
        vocab_size=len(PIECES),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        dtype="float32",
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return dataclasses.replace(model, **changes)


def tiny_source(path: Path, **changes: Any) -> PretrainedModel:
    """Return a random encoder with a pooler as a SOURCE."""
    model = tiny_model(**changes)
    one = jnp.zeros((1, 1), jnp.int32)
    init = SequenceClassifier(model, 2).init
    params = jax.jit(lambda: init(jax.random.key(0), EncoderInputs(one, one, one, one), pooled_positions=one))()
    arrays = jax.tree.map(np.asarray, nn.meta.unbox(params["params"]))
    kept = {part: arrays[part] for part in ("encoder", "pooler")}
    return PretrainedModel(path, "huggingface", model, "BertModel", kept, "float32", tokenizer())


def write_source(path: Path, **changes: Any) -> Path:
    """Write the tiny SOURCE as a HuggingFace folder."""
    from bert_jax.convert.export_folder import export_folder

    export_folder(tiny_source(path, **changes), out=path, report=lambda line: None)
    return path


def sentiment(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Return sentences with one telling word among plain ones."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(rng.integers(2))
        words = [str(word) for word in rng.choice(PLAIN, size=int(rng.integers(1, 9)))]
        words.insert(int(rng.integers(len(words) + 1)), str(rng.choice(GOOD if label else BAD)))
        rows.append({"text": " ".join(words), "label": ("bad", "good")[label]})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_sentiment(folder: Path, *, train: int = 160, dev: int = 40) -> Path:
    """Write train and dev files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "train.jsonl", sentiment(train, seed=1))
    write_jsonl(folder / "dev.jsonl", sentiment(dev, seed=2))
    return folder


def write_conll(folder: Path) -> Path:
    """Write CoNLL files in which two words are a person."""
    folder.mkdir(parents=True, exist_ok=True)
    sentence = "the x x O\ngood x x I-PER\nfilm x x I-PER\nwas x x O\n\n"
    for name, documents in (("eng.train", 3), ("eng.testa", 2), ("eng.testb", 1)):
        (folder / name).write_text(("-DOCSTART- -X- O O\n\n" + sentence * 3) * documents)
    return folder


def open_runtime(workdir: Path, *, report: Callable[[str], None] = silent) -> Runtime:
    """Return the runtime of one host, without a lock."""
    return Runtime(workdir, Hosts(), CompilationCache(workdir), None, report=report)


def own_config(folder: Path, **sections: dict[str, Any]) -> FinetuneConfig:
    """Return the config of own data in `folder`: 3 epochs of batch 16 at a rate that a tiny model wants."""
    fields: dict[str, dict[str, Any]] = {
        "data": {"directory": str(folder), "max_seq_length": 48},
        "train": {"batch_size": 16, "num_epochs": 3.0},
        "optimizer": {"learning_rate": 3e-3},
        "log": {"every": 5},
    }
    for name, changes in sections.items():
        fields[name] = {**fields.get(name, {}), **changes}
    return from_config_dict({"task": "own", **fields})
