"""Compare fine-tuning with HuggingFace PyTorch, in quality and speed: same weights, data, hyperparameters and seeds.

    python benchmarks/finetune.py --model=HF_FOLDER --data=GLUE_DIR --out=runs.jsonl
    python benchmarks/finetune.py ... --steps=120 --dtype=bfloat16 --systems=ours,huggingface --seeds=1
    python benchmarks/finetune.py --out=runs.jsonl --table

`--out` gets one JSON line per finished (task, system, seed). Started again, the script runs only what is missing, so it
may be killed at any moment. `--table` prints the results. Several processes may run at once with different `--out`.

Quality:
* Both sides train on the same instances with AdamW (bias correction, epsilon 1e-8, weight decay 0.01 except for biases
  and LayerNorm), 10% warmup, linear decay, clipping at 1, and the model's dropout.
* Seeds are pairs: both sides start from the same weights, the head included, and take the same batches in the same
  order. What differs is which values dropout drops. The table has the mean difference with its standard error.
* The score is that after the last epoch on both sides. Nothing is selected.
* HuggingFace pads each batch to its longest instance.
* One system runs at a time, on all cores. They take turns after each seed.
* Ours runs on JAX's default backend, HuggingFace on a GPU if PyTorch sees one, with fused AdamW and pinned batches.
* `--dtype=bfloat16` has float32 parameters and optimizer and bfloat16 computation on both sides (PyTorch's autocast, in
  training and evaluation, as in HuggingFace's Trainer). In float32 both may use a GPU's TF32, which is JAX's default.

Speed, of training alone:
* Sequences per second of wall time: the median over windows of `WINDOW` steps, so without compilation. A window ends
  when the GPU has finished.
* Sequences per second of CPU time over the whole run, with compilation. Other programs hardly disturb it.
* `--steps=N` measures only speed, for machines where the runs with scores share a GPU. It trains N steps twice and
  measures the second time. Nothing else should run meanwhile. N is part of the settings in the JSON lines, so these
  lines are not mixed with others.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from finished_runs import append_line, read_lines

from bert_jax.config.finetuning import FinetuneConfig, from_config_dict
from bert_jax.convert.loading import load_pretrained
from bert_jax.errors import UserError
from bert_jax.finetuning.batches import batch_examples, num_steps
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.finetune import open_config_task
from bert_jax.finetuning.job import TaskJob
from bert_jax.finetuning.results import ExperimentOptions
from bert_jax.finetuning.run_result import Evaluation
from bert_jax.finetuning.settings import RunSettings
from bert_jax.parallel.distributed import Hosts
from bert_jax.runs.compilation_cache import CompilationCache
from bert_jax.runs.runtime import Runtime, silent
from bert_jax.tasks.interface import Split, Task

# The split to evaluate on. Without GLUE's list of MRPC's dev ids, MRPC is trained on train and evaluated on test.
DEV = {"mrpc": "test"}
LIMIT = {"sst2": 10_000}
SYSTEMS = ("ours", "huggingface")
EPSILON, WEIGHT_DECAY, WARMUP = 1e-8, 0.01, 0.1
WINDOW = 20  # steps
SPEED = "perf/sequences_per_second"
_PEER_EVAL_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The result of one run."""

    score: float | None  # None: only speed was measured
    metrics: dict[str, float]
    sequences_per_second: float
    sequences_per_cpu_second: float
    seconds: float


def main() -> None:
    """Run what is missing in `--out`, then print the table; or only print it."""
    parser = argparse.ArgumentParser(description="Compare fine-tuning with HuggingFace PyTorch.")
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--out", required=True)
    parser.add_argument("--tasks", default="cola,sst2,rte,stsb,mrpc", help="In this order.")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--max_train_examples", type=int, default=0, help="Per task; 0: all, but 10,000 of SST-2.")
    parser.add_argument("--max_eval_examples", type=int, default=0, help="Per task; 0: all.")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="Of computation.")
    parser.add_argument("--unroll", action="store_true", help="Unroll our layers: slower to compile, faster to run.")
    parser.add_argument("--steps", type=int, default=0, help="N > 0: measure only speed, over N steps.")
    parser.add_argument("--table", action="store_true", help="Print the results in --out, and run nothing.")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if not arguments.table:
        if not arguments.model or not arguments.data:
            parser.error("give --model and --data, or --table")
        try:
            run_missing(arguments, out)
        except UserError as error:
            parser.error(str(error))
    print(table(read_lines(out)))


def run_missing(arguments: argparse.Namespace, out: Path) -> None:
    """Run each (task, seed, system) that is missing in `out` with these settings, and append its line."""
    done = read_lines(out)
    for name in arguments.tasks.split(","):
        for line in run_task(name, arguments, done):
            append_line(out, line)
            score = f"{line['selection']} {line['score']:.4f}, " if line["score"] is not None else ""
            print(
                f"{name} {line['system']} seed {line['seed']}: {score}{line['sequences_per_second']:.1f} sequences/s",
                flush=True,
            )


def run_task(name: str, arguments: argparse.Namespace, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a task that `done` lacks. The data are read and our step is compiled once."""
    config = config_of(name, arguments)
    settings = {
        "epochs": 0 if arguments.steps else arguments.epochs,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "max_train_examples": config.data.max_train_examples,
        "dtype": arguments.dtype,
        "device": jax.devices()[0].device_kind,
        "steps": arguments.steps,
    }
    keys = [
        {"task": name, "system": system, "seed": seed, "settings": settings}
        for seed in range(arguments.seeds)
        for system in arguments.systems.split(",")
    ]
    missing = [key for key in keys if not any(key.items() <= line.items() for line in done)]
    if not missing:
        return
    first = RunSettings(arguments.batch_size, arguments.learning_rate, arguments.epochs, 0)
    with tempfile.TemporaryDirectory() as folder:
        experiment = open_experiment(config, first, model=arguments.model, workdir=Path(folder))
        examples = len(experiment.data.train.examples)
        epochs = arguments.steps * arguments.batch_size / examples if arguments.steps else arguments.epochs
        for key in missing:
            run = dataclasses.replace(first, num_epochs=epochs, seed=key["seed"])
            scored = not arguments.steps
            for _ in range(1 if scored else 2):
                if key["system"] == "ours":
                    measurement = train_ours(experiment, run, scored=scored)
                else:
                    measurement = train_torch(experiment, run, arguments.model, dtype=arguments.dtype, scored=scored)
            yield {
                **key,
                "unrolled": arguments.unroll,
                "selection": experiment.task.selection,
                "split": experiment.data.evals[0].name,
                "train_examples": examples,
                **dataclasses.asdict(measurement),
            }


def config_of(name: str, arguments: argparse.Namespace) -> FinetuneConfig:
    """Return our config for a task."""
    return from_config_dict(
        {
            "task": name,
            "data": {
                "directory": arguments.data,
                "dev_split": DEV.get(name, "dev"),
                "max_train_examples": arguments.max_train_examples or LIMIT.get(name, 0),
                "max_eval_examples": arguments.max_eval_examples,
            },
            "model": {"dtype": arguments.dtype, "scan_layers": not arguments.unroll},
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
    """Return our experiment, which reads the data for both sides."""
    return Experiment(
        config,
        task=open_config_task(config),
        pretrained=load_pretrained(model, report=lambda line: None),
        options=ExperimentOptions(runs=(run,)),
        runtime=Runtime(workdir, Hosts(), CompilationCache(workdir), None, report=silent),
        directory=workdir,
    )


def train_ours(experiment: Experiment, run: RunSettings, *, scored: bool) -> Measurement:
    """Train with bert_jax."""
    evaluating = [0.0]

    class Timed(TaskJob):
        def evaluate(self, step: int, params: Any) -> Evaluation:
            if not scored:
                evaluation = Evaluation(step, {experiment.task.selection: 0.0})
                self.history.append(evaluation)
                return evaluation
            start = time.process_time()
            evaluation = super().evaluate(step, params)
            evaluating.append(time.process_time() - start)
            return evaluation

    with tempfile.TemporaryDirectory(dir=experiment.directory) as folder:
        start = time.process_time()
        result, _ = experiment.train(run, directory=Path(folder), job_class=Timed)
        cpu = time.process_time() - start - sum(evaluating)
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds_logged = [record[SPEED] for record in map(json.loads, lines) if record.get(SPEED)]
    metrics = result.history[-1].metrics
    sequences = result.num_steps * run.batch_size
    return Measurement(
        score=metrics[experiment.task.selection] if scored else None,
        metrics=metrics if scored else {},
        sequences_per_second=statistics.median(speeds_logged),
        sequences_per_cpu_second=sequences / cpu,
        seconds=result.train_seconds,
    )


def train_torch(experiment: Experiment, run: RunSettings, model: str, *, dtype: str, scored: bool) -> Measurement:
    """Train HuggingFace's class on the same instances."""
    import torch
    from transformers import BertForSequenceClassification, get_linear_schedule_with_warmup

    torch.manual_seed(run.seed)
    torch.set_float32_matmul_precision("high")  # TF32 if the chip has it, as in JAX
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    autocast = functools.partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    task, train, dev = experiment.task, experiment.data.train, experiment.data.evals[0]
    labels = max(len(task.labels), 1)
    network = BertForSequenceClassification.from_pretrained(model, num_labels=labels, dtype=torch.float32)
    copy_head(experiment, run, network)
    network.to(device)  # type: ignore[arg-type]  # a decorator hides its signature
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": WEIGHT_DECAY}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in network.named_parameters():
        groups["LayerNorm" in name or name.endswith("bias")]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, lr=run.learning_rate, eps=EPSILON, fused=device.type == "cuda")
    total = num_steps(run, examples=len(train.examples))
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * total), total)
    network.train()
    wait()
    times, cpu = [time.monotonic()], time.process_time()
    for step in range(1, total + 1):
        indices = batch_examples(run, examples=len(train.examples), step=step - 1)
        with autocast():
            loss = network(**tensors(train, indices, task=task, device=device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % WINDOW == 0:
            wait()
            times.append(time.monotonic())
    wait()
    seconds, cpu = time.monotonic() - times[0], time.process_time() - cpu
    windows = np.diff(times) if len(times) > 1 else np.array([seconds * WINDOW / total])
    metrics: dict[str, float] = {}
    if scored:
        network.eval()
        outputs: list[np.ndarray] = []
        with torch.no_grad(), autocast():
            for start in range(0, len(dev.examples), _PEER_EVAL_BATCH):
                indices = np.arange(start, min(start + _PEER_EVAL_BATCH, len(dev.examples)))
                logits = network(**tensors(dev, indices, task=task, device=device)).logits
                outputs.extend(logits.float().cpu().numpy())
        metrics = task.score(dev, outputs)
    return Measurement(
        score=metrics[task.selection] if scored else None,
        metrics=metrics,
        sequences_per_second=WINDOW * run.batch_size / float(np.median(windows)),
        sequences_per_cpu_second=total * run.batch_size / cpu,
        seconds=seconds,
    )


def copy_head(experiment: Experiment, run: RunSettings, network: Any) -> None:
    """Set the classifier of HuggingFace's model to the one that ours starts this run with."""
    import torch

    head = jax.device_get(experiment.learner.initial_state(run).params["classifier"])
    with torch.no_grad():
        network.classifier.weight.copy_(torch.from_numpy(np.array(head["kernel"].T)))
        network.classifier.bias.copy_(torch.from_numpy(np.array(head["bias"])))


def tensors(split: Split, indices: np.ndarray, *, task: Task, device: Any) -> dict[str, Any]:
    """Return a batch padded to its longest instance, on a PyTorch device."""
    import torch

    features = split.features
    longest = max(len(features.ids[i]) for i in indices)
    ids, mask, types = (np.zeros((len(indices), longest), np.int64) for _ in range(3))
    for row, i in enumerate(indices):
        size = len(features.ids[i])
        ids[row, :size], mask[row, :size] = features.ids[i], 1
        types[row, features.first_lengths[i] : size] = 1
    assert features.targets is not None
    labels = np.array(
        [features.targets[i] for i in indices], np.float32 if task.kind.target_dtype is np.float32 else np.int64
    )
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels}
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if device.type == "cuda":  # a copy from pinned memory is asynchronous
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}
    return batch


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table: mean ± standard deviation (best) of the scores in percent, medians of the speeds."""
    rows = ["| task | metric | runs | ours | HuggingFace | difference | sequences/s | per CPU second |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(json.dumps([line["task"], line["settings"]]), []).append(line)
    for group in groups.values():
        first = group[0]
        of = {system: [line for line in group if line["system"] == system] for system in SYSTEMS}
        settings = ", ".join(f"{name} {value}" for name, value in first["settings"].items() if value)
        rows.append(
            f"| {first['task']}, {first['train_examples']} rows ({settings}) "
            f"| {first['selection']} on {first['split']} | "
            f"{' and '.join(str(len(of[system])) for system in SYSTEMS)} | "
            f"{' | '.join(scores(of[system]) for system in SYSTEMS)} | {difference(of)} | "
            f"{' | '.join(speeds(of, name) for name in ('sequences_per_second', 'sequences_per_cpu_second'))} |"
        )
    return "\n".join(rows)


def scores(lines: list[dict[str, Any]]) -> str:
    """Return mean, standard deviation (of a sample) and best score."""
    values = [100 * line["score"] for line in lines if line["score"] is not None]
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.2f} ± {deviation:.2f} ({max(values):.2f})"


def difference(of: dict[str, list[dict[str, Any]]]) -> str:
    """Return the mean over seeds of our score minus HuggingFace's in percent, with its standard error."""
    own, peer = ({line["seed"]: line["score"] for line in of[system]} for system in SYSTEMS)
    pairs = [100 * (own[seed] - peer[seed]) for seed in own.keys() & peer.keys() if own[seed] is not None]
    if len(pairs) < 2:
        return "-"
    return f"{statistics.fmean(pairs):+.2f} ± {statistics.stdev(pairs) / len(pairs) ** 0.5:.2f} ({len(pairs)} pairs)"


def speeds(of: dict[str, list[dict[str, Any]]], name: str) -> str:
    """Return both medians and their ratio."""
    if not all(of.values()):
        return "-"
    own, peer = (statistics.median(line[name] for line in of[system]) for system in SYSTEMS)
    return f"{own:.1f}, {peer:.1f} ({own / peer:.2f})"


if __name__ == "__main__":
    main()
