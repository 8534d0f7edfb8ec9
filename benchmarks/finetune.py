"""Fine-tune beside HuggingFace PyTorch: the same weights, data, hyper-parameters and seeds, quality and speed.

    python benchmarks/finetune.py --model=HF_FOLDER --data=GLUE_DIR --tasks=mrpc,rte,stsb,cola,sst2 --seeds=3

Both train on the same rows with AdamW (bias correction, epsilon 1e-8, decay 0.01), 10 % warm-up, linear decay,
clipping at 1, dropout 0.1; the last epoch's figures count on both sides. HuggingFace pads each batch to its longest
row, which is faster than padding all to the limit. The two take turns seed by seed, in one process each time on the
same threads.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.convert.source import load_source
from bert_jax.finetuning.config import FinetuneConfig, from_config_dict
from bert_jax.finetuning.experiment import Experiment, Wanted
from bert_jax.finetuning.finetune import open_config_task
from bert_jax.finetuning.settings import RunSettings
from bert_jax.tasks.interface import Split, Task

# The split that is reported on: MRPC's shared copy lacks GLUE's dev ids, so it is trained on train and tested on test.
DEV = {"mrpc": "test"}
LIMIT = {"sst2": 10_000}


def main() -> None:
    """Compare, and print a line a task and seed and a JSON summary."""
    parser = argparse.ArgumentParser(description="Fine-tune beside HuggingFace PyTorch.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", default="mrpc,rte,stsb,cola,sst2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--max_train_examples", type=int, default=0)
    arguments = parser.parse_args()
    summary = {name: compare(name, arguments) for name in arguments.tasks.split(",")}
    print(json.dumps(summary, indent=1))


def compare(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return both sides' scores and speeds on one task."""
    config = from_config_dict(
        {
            "task": name,
            "data": {
                "directory": arguments.data,
                "dev_split": DEV.get(name, "dev"),
                "max_train_examples": arguments.max_train_examples or LIMIT.get(name, 0),
            },
            "train": {"num_epochs": arguments.epochs, "batch_size": arguments.batch_size},
            "optimizer": {"learning_rate": arguments.learning_rate, "epsilon": 1e-8},
        }
    )
    runs = [
        RunSettings(arguments.batch_size, arguments.learning_rate, arguments.epochs, seed)
        for seed in range(arguments.seeds)
    ]
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            experiment = open_experiment(config, run, model=arguments.model, workdir=Path(folder))
            record = experiment.run_all()["runs"][0]
            last = record["history"][-1]["metrics"][experiment.task.selection]
            ours.append((last, record["sequences_per_second"]))
            theirs.append(train_torch(config, run, experiment, model=arguments.model))
        print(f"{name} seed {run.seed}: ours {ours[-1]}, HuggingFace {theirs[-1]}", flush=True)
    return {"ours": side(ours), "huggingface": side(theirs)}


def side(results: list[tuple[float, float]]) -> dict[str, Any]:
    """Return mean and deviation of the scores and the mean speed."""
    scores, speeds = zip(*results, strict=True)
    deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
    speed = statistics.fmean(speeds)
    return {"scores": scores, "mean": statistics.fmean(scores), "sd": deviation, "sequences_per_second": speed}


def open_experiment(config: FinetuneConfig, run: RunSettings, *, model: str, workdir: Path) -> Experiment:
    """Return our side."""
    return Experiment(
        config,
        task=open_config_task(config),
        source=load_source(model, report=lambda line: None),
        workdir=workdir,
        wanted=Wanted(runs=(run,)),
        should_stop=lambda: False,
        say=lambda line: None,
    )


def train_torch(config: FinetuneConfig, run: RunSettings, ours: Experiment, *, model: str) -> tuple[float, float]:
    """Train HuggingFace's class on the very same instances; return the score and training sequences a second."""
    import torch
    from transformers import BertForSequenceClassification, get_linear_schedule_with_warmup

    torch.manual_seed(run.seed)
    task, train = ours.task, ours.train
    network = BertForSequenceClassification.from_pretrained(model, num_labels=max(len(task.labels), 1))
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": 0.01}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in network.named_parameters():
        groups["LayerNorm" in name or name.endswith("bias")]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, lr=run.learning_rate, eps=config.optimizer.epsilon)
    count = len(train.examples)
    total = round(round(count / run.batch_size) * run.num_epochs)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.1 * total), total)
    rng = np.random.default_rng(run.seed)
    stream = np.concatenate([rng.permutation(count) for _ in range(int(run.num_epochs) + 1)])
    network.train()
    begun = time.monotonic()
    for step in range(total):
        batch = tensors(train, stream[step * run.batch_size : (step + 1) * run.batch_size], task=task)
        network(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    speed = total * run.batch_size / (time.monotonic() - begun)
    network.eval()
    dev = ours.evals[0]
    outputs: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, len(dev.examples), 64):
            batch = tensors(dev, np.arange(start, min(start + 64, len(dev.examples))), task=task)
            outputs.extend(network(**batch).logits.float().numpy())
    return task.score(dev, outputs)[task.selection], speed


def tensors(split: Split, chosen: np.ndarray, *, task: Task) -> dict[str, Any]:
    """Return a batch padded to its longest row."""
    import torch

    features = split.features
    longest = max(len(features.ids[i]) for i in chosen)
    ids, mask, types = (np.zeros((len(chosen), longest), np.int64) for _ in range(3))
    for row, i in enumerate(chosen):
        size = len(features.ids[i])
        ids[row, :size], mask[row, :size] = features.ids[i], 1
        types[row, features.first_lengths[i] : size] = 1
    assert features.targets is not None
    labels = np.array([features.targets[i] for i in chosen], np.float32 if task.kind == "regression" else np.int64)
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


if __name__ == "__main__":
    main()
