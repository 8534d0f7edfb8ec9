"""Fine-tune beside HuggingFace PyTorch: the same weights, data, hyper-parameters and seeds, quality and speed.

    python benchmarks/finetune.py --model=HF_FOLDER --data=GLUE_DIR --out=runs.jsonl
    python benchmarks/finetune.py --out=runs.jsonl --table

Every finished (task, system, seed) is one JSON line of `--out`; started again, it does what is missing, so it may be
killed at any moment. `--table` prints what is there.

Both train on the same instances with AdamW (bias correction, epsilon 1e-8, decay 0.01 but for biases and LayerNorm),
10 % warm-up, linear decay, clipping at 1 and the model's dropout; each shuffles by itself. The figure is that of the
last epoch on both sides: nothing is selected. HuggingFace pads each batch to its longest row. Only one system runs at
a time, on all cores; they take turns seed by seed.

Two speeds, both of training alone: sequences a second of wall time, the median over stretches of `WINDOW` steps (so
without compilation), and sequences a second of CPU time over the whole run (compilation included; other programs on
the machine hardly disturb it).
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.convert.source import load_source
from bert_jax.errors import UserError
from bert_jax.finetuning.config import FinetuneConfig, from_config_dict
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.finetune import open_config_task
from bert_jax.finetuning.results import Wanted
from bert_jax.finetuning.run import num_steps
from bert_jax.finetuning.settings import RunSettings
from bert_jax.tasks.interface import Split, Task

# The split that is reported on: where GLUE's list of MRPC's dev ids is not at hand, train on train and test on test.
DEV = {"mrpc": "test"}
LIMIT = {"sst2": 10_000}
SYSTEMS = ("ours", "huggingface")
EPSILON, WEIGHT_DECAY, WARMUP = 1e-8, 0.01, 0.1
WINDOW = 20  # steps
SPEED = "perf/sequences_per_second"
_PEER_EVAL_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Figures:
    """Hold what one run gave."""

    score: float
    metrics: dict[str, float]
    sequences_per_second: float
    sequences_per_cpu_second: float
    seconds: float


def main() -> None:
    """Run what is missing from `--out`, then print the table; or only print it."""
    parser = argparse.ArgumentParser(description="Fine-tune beside HuggingFace PyTorch.")
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--out", required=True)
    parser.add_argument("--tasks", default="cola,sst2,rte,stsb,mrpc", help="In this order; the cheapest first.")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--max_train_examples", type=int, default=0, help="Of each task; 0: all, of SST-2 10,000.")
    parser.add_argument("--table", action="store_true", help="Print what --out holds, and run nothing.")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if not arguments.table:
        if not arguments.model or not arguments.data:
            parser.error("--model and --data are needed, or --table")
        try:
            run_missing(arguments, out)
        except UserError as error:
            parser.error(str(error))
    print(table(read_lines(out)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the finished runs of a file; a last line that a kill cut short is none."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def run_missing(arguments: argparse.Namespace, out: Path) -> None:
    """Run each (task, seed, system) that `out` does not hold with these settings, and append its line."""
    out.parent.mkdir(parents=True, exist_ok=True)
    done = read_lines(out)
    if done:  # a line that was cut short goes
        out.write_text("".join(json.dumps(line) + "\n" for line in done), encoding="utf-8")
    for name in arguments.tasks.split(","):
        config = config_of(name, arguments)
        settings = {
            "epochs": arguments.epochs,
            "batch_size": arguments.batch_size,
            "learning_rate": arguments.learning_rate,
            "max_train_examples": config.data.max_train_examples,
        }
        for seed in range(arguments.seeds):
            run = RunSettings(arguments.batch_size, arguments.learning_rate, arguments.epochs, seed)
            for system in arguments.systems.split(","):
                key = {"task": name, "system": system, "seed": seed, "settings": settings}
                if any(key.items() <= line.items() for line in done):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    ours = open_experiment(config, run, model=arguments.model, workdir=Path(folder))
                    trained = train_ours(ours, run) if system == "ours" else train_torch(ours, run, arguments.model)
                line = {
                    **key,
                    "selection": ours.task.selection,
                    "split": ours.evals[0].name,
                    "train_examples": len(ours.train.examples),
                    **dataclasses.asdict(trained),
                }
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{name} {system} seed {seed}: {ours.task.selection} {trained.score:.4f}", flush=True)


def config_of(name: str, arguments: argparse.Namespace) -> FinetuneConfig:
    """Return our config of a task."""
    return from_config_dict(
        {
            "task": name,
            "data": {
                "directory": arguments.data,
                "dev_split": DEV.get(name, "dev"),
                "max_train_examples": arguments.max_train_examples or LIMIT.get(name, 0),
            },
            "train": {"num_epochs": arguments.epochs, "batch_size": arguments.batch_size},
            "optimizer": {
                "learning_rate": arguments.learning_rate,
                "epsilon": EPSILON,
                "weight_decay": WEIGHT_DECAY,
                "warmup_fraction": WARMUP,
            },
            "log": {"every": WINDOW},
        }
    )


def open_experiment(config: FinetuneConfig, run: RunSettings, *, model: str, workdir: Path) -> Experiment:
    """Return our side, which reads the data for both."""
    return Experiment(
        config,
        task=open_config_task(config),
        source=load_source(model, report=lambda line: None),
        workdir=workdir,
        wanted=Wanted(runs=(run,)),
        should_stop=lambda: False,
        say=lambda line: None,
    )


def train_ours(experiment: Experiment, run: RunSettings) -> Figures:
    """Train by this project."""
    trainer, evaluating = experiment.trainer, [0.0]
    evaluate = trainer.evaluate

    def timed(params: Any) -> dict[str, float]:
        begun = time.process_time()
        metrics = evaluate(params)
        evaluating.append(time.process_time() - begun)
        return metrics

    trainer.evaluate = timed  # type: ignore[method-assign]
    directory = experiment.workdir / run.name
    directory.mkdir()
    begun = time.process_time()
    result, _ = trainer.run(run, params=experiment._initial(run), directory=directory)
    cpu = time.process_time() - begun - sum(evaluating)
    records = map(json.loads, (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    speeds = [record[SPEED] for record in records if record.get(SPEED)]
    metrics = result.history[-1].metrics
    trained = result.num_steps * run.batch_size
    return Figures(
        score=metrics[experiment.task.selection],
        metrics=metrics,
        sequences_per_second=statistics.median(speeds),
        sequences_per_cpu_second=trained / cpu,
        seconds=result.train_seconds,
    )


def train_torch(ours: Experiment, run: RunSettings, model: str) -> Figures:
    """Train HuggingFace's class on the very same instances."""
    import torch
    from transformers import BertForSequenceClassification, get_linear_schedule_with_warmup

    torch.manual_seed(run.seed)
    task, train, dev = ours.task, ours.train, ours.evals[0]
    network = BertForSequenceClassification.from_pretrained(model, num_labels=max(len(task.labels), 1))
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": WEIGHT_DECAY}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in network.named_parameters():
        groups["LayerNorm" in name or name.endswith("bias")]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, lr=run.learning_rate, eps=EPSILON)
    total = num_steps(run, examples=len(train.examples))
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * total), total)
    network.train()
    times, cpu = [time.monotonic()], time.process_time()
    for step, chosen in enumerate(shuffled_batches(len(train.examples), run=run, steps=total), start=1):
        network(**tensors(train, chosen, task=task)).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % WINDOW == 0:
            times.append(time.monotonic())
    seconds, cpu = time.monotonic() - times[0], time.process_time() - cpu
    network.eval()
    outputs: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, len(dev.examples), _PEER_EVAL_BATCH):
            chosen = np.arange(start, min(start + _PEER_EVAL_BATCH, len(dev.examples)))
            outputs.extend(network(**tensors(dev, chosen, task=task)).logits.float().numpy())
    metrics = task.score(dev, outputs)
    windows = np.diff(times) if len(times) > 1 else np.array([seconds * WINDOW / total])
    return Figures(
        score=metrics[task.selection],
        metrics=metrics,
        sequences_per_second=WINDOW * run.batch_size / float(np.median(windows)),
        sequences_per_cpu_second=total * run.batch_size / cpu,
        seconds=seconds,
    )


def shuffled_batches(examples: int, *, run: RunSettings, steps: int) -> Iterator[np.ndarray]:
    """Yield the examples of each step from one shuffle an epoch, the shuffles standing one behind the other."""
    rng = np.random.default_rng(run.seed)
    left = np.zeros(0, np.int64)
    for _ in range(steps):
        while len(left) < run.batch_size:
            left = np.concatenate([left, rng.permutation(examples)])
        yield left[: run.batch_size]
        left = left[run.batch_size :]


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


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table: scores in per cent as mean ± standard deviation (best), medians of the speeds."""
    rows = ["| task | figure | runs | ours | HuggingFace | ours, HuggingFace, sequences/s | a CPU second |"]
    rows.append("|---|---|---|---|---|---|---|")
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(json.dumps([line["task"], line["settings"]]), []).append(line)
    for some in groups.values():
        first = some[0]
        of = {system: [line for line in some if line["system"] == system] for system in SYSTEMS}
        settings = ", ".join(f"{name} {value:g}" for name, value in first["settings"].items() if value)
        rows.append(
            f"| {first['task']}, {first['train_examples']} rows ({settings}) "
            f"| {first['selection']} on {first['split']} | "
            f"{' and '.join(str(len(of[system])) for system in SYSTEMS)} | "
            f"{' | '.join(scores(of[system]) for system in SYSTEMS)} | "
            f"{' | '.join(speeds(of, name) for name in ('sequences_per_second', 'sequences_per_cpu_second'))} |"
        )
    return "\n".join(rows)


def scores(lines: list[dict[str, Any]]) -> str:
    """Return mean, standard deviation (of a sample) and best."""
    if not lines:
        return "-"
    found = [100 * line["score"] for line in lines]
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return f"{statistics.fmean(found):.2f} ± {deviation:.2f} ({max(found):.2f})"


def speeds(of: dict[str, list[dict[str, Any]]], name: str) -> str:
    """Return both medians and their ratio."""
    if not all(of.values()):
        return "-"
    ours, theirs = (statistics.median(line[name] for line in of[system]) for system in SYSTEMS)
    return f"{ours:.1f}, {theirs:.1f} ({ours / theirs:.2f})"


if __name__ == "__main__":
    main()
