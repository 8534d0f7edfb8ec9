"""Workdirs as training leaves them, made of files alone: for the tests of pages."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from bert_jax.config import Config, PhaseConfig, TrainConfig, model_preset, to_json
from bert_jax.config.finetuning import FinetuneConfig, config_of_task

SECONDS = {"useful": 60.0, "compile": 15.0, "evaluation": 5.0, "down": 0.0}


def write_lines(file: Path, records: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_goodput(folder: Path) -> None:
    (folder / "goodput.json").write_text(json.dumps({"starts": 1, "seconds": SECONDS}))


def pretraining_run(folder: Path, *, steps: int = 40, rate: float = 2e-4, loss: float = 3.0) -> Path:
    """Write the files of a run of `tiny` with a log line per step and an evaluation every ten."""
    folder.mkdir(parents=True)
    config = Config(
        model=dataclasses.replace(model_preset("tiny"), vocab_size=512),
        train=TrainConfig(num_steps=steps, phases=(PhaseConfig(max_seq_length=64),)),
    )
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=rate))
    (folder / "config.json").write_text(to_json(config))
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        now = loss + 3 / step
        perf = {"perf/tokens_per_second": 1000.0 + step, "perf/mfu": None}
        train = {"train/loss": now + 0.7, "train/mlm_loss": now, "train/mlm_accuracy": 0.01 * step}
        lines.append({"step": step, **train, "train/learning_rate": rate, "train/grad_norm": 1 / step, **perf})
        if step % 10 == 0:
            held_out = {"eval/mlm_loss": now, "eval/mlm_perplexity": 20.0, "eval/mlm_accuracy": 0.2}
            lines.append({"step": step, **held_out, "eval/unigram_loss": 5.5, "eval/bits_per_byte": 1.75})
    write_lines(folder / "metrics.jsonl", lines)
    write_goodput(folder)
    masks = [
        {"answer": "<cat>", "guess": "dog", "probability": 0.25},
        {"answer": "mat", "guess": "mat", "probability": 0.5},
    ]
    samples = [{"text": ["the", "sat on the", "."], "masks": masks}]
    write_lines(folder / "samples.jsonl", [{"step": step, "samples": samples} for step in range(10, steps + 1, 10)])
    return folder


def finetuning_run(folder: Path) -> Path:
    """Write the files of two finished runs of MRPC."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config_of_task(FinetuneConfig(), "mrpc")))
    for number, name in enumerate(("b32-lr3e-05-e3-seed0", "b32-lr3e-05-e3-seed1")):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        lines = [{"step": step, "train/loss": 1 / step, "train/grad_norm": 1.0} for step in range(1, 21)]
        lines += [
            {"step": step, "eval/accuracy": 0.6 + 0.01 * step, "eval/f1": 0.7 + 0.01 * number} for step in (10, 20)
        ]
        write_lines(run / "metrics.jsonl", lines)
        write_goodput(run)
    best = {
        "name": "b32-lr3e-05-e3-seed1",
        "num_steps": 20,
        "best": {"step": 20, "metrics": {"accuracy": 0.8}},
        "metrics": {"dev": {"accuracy": 0.8, "f1": 0.71}},
    }
    setting = {"setting": "b32-lr3e-05-e3", "runs": 2, "mean": 0.79, "sd": 0.01, "best": 0.8, "collapsed": 0}
    results = {
        "task": "mrpc",
        "labels": ["0", "1"],
        "selection": "accuracy",
        "constant": 0.68,
        "train_examples": 3668,
        "best": best,
        "summary": [setting],
        "tables": {"confusion": {"labels": ["0", "1"], "counts": [[90, 39], [43, 236]]}},
        "mistakes": [{"text_a": "He said <b>so</b>.", "gold": "0", "predicted": "1", "probability": 0.99}],
        "runs": [],
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder
