"""The fine-tuning runs whose losses are golden: one of each kind of output, and a tagger on frozen features."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.config.finetuning import FinetuneConfig, from_config_dict
from bert_jax.convert.loading import PretrainedModel
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.finetune import open_config_task
from bert_jax.finetuning.job import TaskJob
from bert_jax.finetuning.results import ExperimentOptions
from bert_jax.finetuning.settings import grid
from tests.finetune_data import BAD, GOOD, PLAIN, open_runtime, tiny_source, write_jsonl
from tests.golden.bounds import neighbor

STEPS = 30
BATCH, EPOCHS = 16, 3
FROZEN = "feature_based_tags"  # its inputs are another model's outputs, in half precision

Row = dict[str, Any]


def _words(rng: random.Random, count: int) -> list[str]:
    return rng.choices((*GOOD, *BAD, *PLAIN), k=count)


def _classification(rng: random.Random) -> Row:
    words = _words(rng, rng.randint(3, 7))
    good = sum((word in GOOD) - (word in BAD) for word in words)
    return {"text": " ".join(words), "label": "good" if good > 0 else "bad" if good < 0 else "neither"}


def _regression(rng: random.Random) -> Row:
    first, second = (_words(rng, rng.randint(2, 4)) for _ in range(2))
    return {"a": " ".join(first), "b": " ".join(second), "label": len(set(first) & set(second)) / 2}


def _tags(rng: random.Random) -> Row:
    words = _words(rng, rng.randint(3, 7))
    return {"words": words, "tags": ["B-GOOD" if w in GOOD else "B-BAD" if w in BAD else "O" for w in words]}


def _span(rng: random.Random) -> Row:
    words = _words(rng, rng.randint(5, 8))
    first = rng.randrange(len(words) - 1)
    answer = "" if rng.random() < 0.2 else " ".join(words[first : first + 2])
    return {"question": f"was {words[first]}", "context": " ".join(words), "answer": answer}


def _choice(rng: random.Random) -> Row:
    right = rng.randrange(3)
    ends = [" ".join(rng.choices(GOOD if number == right else BAD, k=2)) for number in range(3)]
    return {"text": " ".join(_words(rng, 4)), "ends": ends, "label": right}


def _multilabel(rng: random.Random) -> Row:
    words = _words(rng, rng.randint(3, 7))
    return {"text": " ".join(words), "label": sorted({word for word in words if word in (*GOOD, *BAD)})}


# Kind, a row of its data, and the options that are not the defaults.
RUNS: dict[str, tuple[str, Callable[[random.Random], Row], dict[str, Any]]] = {
    "classification": ("classification", _classification, {}),
    "original_classification": (
        "classification",
        _classification,
        {"recipe": "original", "optimizer": {"layerwise_lr_decay": 0.8}},
    ),
    "regression": ("regression", _regression, {"own": {"text": "a", "text_pair": "b"}}),
    "tags": ("tags", _tags, {"own": {"text": "words", "label": "tags"}}),
    "span": ("span", _span, {"own": {"text": "question", "text_pair": "context", "label": "answer"}}),
    "choice": ("choice", _choice, {"own": {"choices": "ends"}}),
    "multilabel": ("multilabel", _multilabel, {}),
    FROZEN: (
        "tags",
        _tags,
        {
            "own": {"text": "words", "label": "tags"},
            "ner": {"features": "concat_last_four", "bilstm_hidden_size": 24, "bilstm_layers": 2},
        },
    ),
}


def config_of(name: str, *, directory: Path, learning_rate_factor: float = 1.0, optimizer: str = "") -> FinetuneConfig:
    """Return the config of a run; the options are changes that a test makes to be noticed."""
    kind, _, changes = RUNS[name]
    fields: dict[str, Any] = {
        "task": "own",
        "recipe": changes.get("recipe", "modern"),
        "data": {"directory": str(directory), "max_seq_length": 48},
        "own": {"kind": kind, **changes.get("own", {})},
        "model": {"dtype": "float32", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
        "optimizer": {"learning_rate": 3e-3 * learning_rate_factor, **changes.get("optimizer", {})},
        "train": {"batch_size": BATCH, "num_epochs": float(EPOCHS)},
    }
    if "ner" in changes:
        fields["ner"] = changes["ner"]
    if optimizer:
        fields["optimizer"]["name"] = optimizer
    return from_config_dict(fields)


def open_job(name: str, *, workdir: Path, draw: int = 0, **changes: Any) -> TaskJob:
    """Return a run, with data and model made in `workdir`; `draw` > 0 nudges the model that it begins with."""
    kind, make, _ = RUNS[name]
    rng = random.Random(kind)
    workdir.mkdir(exist_ok=True)
    for split, count in (("train", BATCH * STEPS // EPOCHS), ("dev", 8)):
        write_jsonl(workdir / f"{split}.jsonl", [make(rng) | {"id": f"{split}-{n}"} for n in range(count)])
    config = config_of(name, directory=workdir, **changes)
    source = tiny_source(workdir / "source", num_hidden_layers=4)
    runs = ExperimentOptions(runs=tuple(grid(config, sweep=False, seeds=1)))
    experiment = Experiment(
        config,
        task=open_config_task(config),
        pretrained=_nudged(source, draw=draw) if draw else source,
        options=runs,
        runtime=open_runtime(workdir),
        directory=workdir / "run",
    )
    experiment.learner.prepare()
    return TaskJob(
        experiment.learner,
        settings=runs.runs[0],
        task=experiment.task,
        dev=experiment.data.evals[0],
        config=config,
        runtime=experiment.runtime,
        directory=workdir / "run",
    )


def _nudged(source: PretrainedModel, *, draw: int) -> PretrainedModel:
    """Return `source` with every weight moved to a neighboring float32."""
    rng = np.random.default_rng(draw)
    source.params.update(jax.tree.map(lambda weights: neighbor(weights, rng=rng), source.params))
    return source
