"""Compare the training of embedders with sentence-transformers on STS-B: same weights, pairs, steps and settings.

    python benchmarks/finetune_embed.py --model=HF_FOLDER --data=STSB_DIR --out=runs.jsonl
    python benchmarks/finetune_embed.py ... --steps=50 --seeds=1 --systems=ours,sentence_transformers
    python benchmarks/finetune_embed.py --out=runs.jsonl --table

STSB_DIR has GLUE's train.tsv and dev.tsv. `--model` may be any encoder, a folder of sentence-transformers included.

* Both sides train with CoSENT at temperature 0.05 on the same batches of pairs: the order is ours, `batch_examples`.
* AdamW (bias correction, epsilon 1e-8, weight decay 0.01 except for biases and LayerNorm), 10% warmup, linear decay,
  clipping at 1, the model's dropout, float32. sentence-transformers' own Trainer is not used: it needs `datasets`.
* The score is Spearman's correlation on dev before the first step and after the last one.
* Seconds are of training alone: ours without compilation (the median over windows of steps, times their number).

`--out` gets one JSON line per finished (system, seed); what is there is not run again.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from finished_runs import Line, append_line, read_lines

from bert_jax.config.finetuning import FinetuneConfig, from_config_dict
from bert_jax.convert.loading import load_pretrained
from bert_jax.errors import UserError
from bert_jax.finetuning.batches import batch_examples
from bert_jax.finetuning.embed_settings import with_model_settings
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.finetune import open_config_task
from bert_jax.finetuning.results import ExperimentOptions
from bert_jax.finetuning.settings import RunSettings, step_settings
from bert_jax.parallel.distributed import Hosts
from bert_jax.runs.compilation_cache import CompilationCache
from bert_jax.runs.runtime import Runtime, silent

SYSTEMS = ("ours", "sentence_transformers")
EPSILON, WEIGHT_DECAY, WARMUP, TEMPERATURE = 1e-8, 0.01, 0.1, 0.05


def main() -> None:
    """Run what is missing in `--out`, then print the table; or only print it."""
    parser = argparse.ArgumentParser(description="Compare the training of embedders with sentence-transformers.")
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--out", required=True)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=360, help="One epoch of batches of 16 has 359.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--max_eval_examples", type=int, default=0, help="0: all of dev.")
    parser.add_argument("--table", action="store_true", help="Print the results in --out, and run nothing.")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if not arguments.table:
        if not arguments.model or not arguments.data:
            parser.error("give --model and --data, or --table")
        try:
            for line in missing_runs(arguments, read_lines(out)):
                append_line(out, line)
        except UserError as error:
            parser.error(str(error))
    print(table(read_lines(out)))


def missing_runs(arguments: argparse.Namespace, done: list[Line]) -> Iterator[Line]:
    """Yield the lines of the runs that `done` lacks."""
    names = ("model", "steps", "batch_size", "learning_rate", "max_eval_examples")
    settings = {name: getattr(arguments, name) for name in names}
    keys = [
        {"system": system, "seed": seed, **settings}
        for seed in range(arguments.seeds)
        for system in arguments.systems.split(",")
    ]
    for key in keys:
        if any(key.items() <= line.items() for line in done):
            continue
        with tempfile.TemporaryDirectory() as folder:
            experiment = open_experiment(arguments, key["seed"], workdir=Path(folder))
            train = {"ours": train_ours, "sentence_transformers": train_peer}[key["system"]]
            yield {**key, **train(experiment, arguments)}


def config_of(arguments: argparse.Namespace) -> FinetuneConfig:
    """Return our config: STS-B as scored pairs."""
    return from_config_dict(
        {
            "task": "embed",
            "data": {
                "directory": arguments.data,
                "max_seq_length": 128,
                "max_eval_examples": arguments.max_eval_examples,
            },
            "embed": {
                "form": "scores",
                "anchor": "sentence1",
                "positive": "sentence2",
                "temperature": TEMPERATURE,
            },
            "model": {"dtype": "float32", "scan_layers": False},
            "train": {"batch_size": arguments.batch_size},
            "optimizer": {
                "learning_rate": arguments.learning_rate,
                "epsilon": EPSILON,
                "weight_decay": WEIGHT_DECAY,
                "warmup_fraction": WARMUP,
            },
        }
    )


def open_experiment(arguments: argparse.Namespace, seed: int, *, workdir: Path) -> Experiment:
    """Return our experiment, which reads the data for both sides."""
    pretrained = load_pretrained(arguments.model, exact=False, report=lambda line: None)
    config = with_model_settings(config_of(arguments), pretrained=pretrained)
    run = RunSettings(arguments.batch_size, arguments.learning_rate, 1.0, seed)
    return Experiment(
        config,
        task=open_config_task(config),
        pretrained=pretrained,
        options=ExperimentOptions(runs=(run,)),
        runtime=Runtime(workdir, Hosts(), CompilationCache(workdir), None, report=silent),
        directory=workdir,
    )


def score(experiment: Experiment, outputs: list[np.ndarray]) -> float:
    """Return Spearman's correlation on dev."""
    return experiment.task.score(experiment.data.evals[0], outputs)["spearman"]


def train_ours(experiment: Experiment, arguments: argparse.Namespace) -> Line:
    """Train with bert_jax."""
    learner, (run,), dev = experiment.learner, experiment.options.runs, experiment.data.evals[0]
    fixed = step_settings(run, num_steps=arguments.steps, warmup_fraction=WARMUP)
    state = learner.initial_state(run)
    before = score(experiment, learner.outputs(state.params, dev))
    seconds, losses = [], []
    shapes: set[Any] = set()
    for rows in learner.batches(run, start=0, end=arguments.steps):
        started = time.perf_counter()
        state, output = learner.train_step(state, rows, fixed)
        losses.append(float(output.means["loss"].total))  # waits for the step
        if rows.input_ids.shape in shapes:  # the first of a shape is compiled
            seconds.append(time.perf_counter() - started)
        shapes.add(rows.input_ids.shape)
    after = score(experiment, learner.outputs(state.params, dev))
    return {
        "before": before,
        "after": after,
        "seconds": statistics.median(seconds) * arguments.steps,
        "losses": losses[:5],
    }


def train_peer(experiment: Experiment, arguments: argparse.Namespace) -> Line:
    """Train with sentence-transformers' model and loss, on our batches."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    (run,), train, dev = experiment.options.runs, experiment.data.train.examples, experiment.data.evals[0]
    torch.manual_seed(run.seed)
    model = SentenceTransformer(arguments.model, device="cpu")
    model.max_seq_length = experiment.config.data.max_seq_length
    loss_of = CoSENTLoss(model, scale=1 / TEMPERATURE)
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": WEIGHT_DECAY}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        groups["LayerNorm" in name or name.endswith("bias")]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, eps=EPSILON)
    warmup = int(arguments.steps * WARMUP)

    def rate(step: int) -> float:
        return (step + 1) / warmup if step < warmup else (arguments.steps - step) / (arguments.steps - warmup)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    def outputs() -> list[np.ndarray]:
        sides = [model.encode([e.texts[side] for e in dev.examples], batch_size=64) for side in (0, 1)]
        return list(np.stack(sides, axis=1))

    before = score(experiment, outputs())
    model.train()
    seconds, losses = [], []
    for step in range(arguments.steps):
        batch = [train[i] for i in batch_examples(run, examples=len(train), step=step)]
        started = time.perf_counter()
        inputs = [model.preprocess([example.texts[side] for example in batch]) for side in (0, 1)]
        loss = loss_of(inputs, torch.tensor([example.score for example in batch]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        seconds.append(time.perf_counter() - started)
    model.eval()
    after = score(experiment, outputs())
    return {
        "before": before,
        "after": after,
        "seconds": statistics.median(seconds) * arguments.steps,
        "losses": losses[:5],
    }


def table(lines: list[Line]) -> str:
    """Return the results: a row per system and settings, with the mean and the standard deviation over seeds."""
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["model"], line["steps"], line["batch_size"], line["system"]), []).append(line)
    form = "{:<24} {:>6} {:>6} {:<22} {:>5} {:>7} {:>7} {:>6} {:>8}"
    rows = [form.format("model", "steps", "batch", "system", "seeds", "before", "after", "sd", "seconds")]
    for (model, steps, batch, system), runs in sorted(groups.items(), key=lambda item: str(item[0])):
        after = [100 * line["after"] for line in runs]
        deviation = statistics.stdev(after) if len(after) > 1 else 0.0
        values = (100 * runs[0]["before"], statistics.fmean(after), deviation)
        seconds = statistics.fmean(line["seconds"] for line in runs)
        shown = [f"{value:.2f}" for value in values]
        rows.append(form.format(Path(model).name, steps, batch, system, len(runs), *shown, f"{seconds:.1f}"))
    return "\n".join(rows)


if __name__ == "__main__":
    main()
