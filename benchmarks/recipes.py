"""Compare BERT, BERT by the recipe of 2026, and ModernBERT of the same size by it: same text, same tokens, three seeds.

    python benchmarks/recipes.py --data_dir=../shared/data --workdir=/tmp/recipes

About 2.5 hours on two cores. DATA has `pretrain_en` and `blimp/BLiMP.zip`. A run that was stopped, or the whole script,
resumes with the same command; a finished run is not repeated. Prints one JSON line per run as soon as it is there:
held-out bits per byte, accuracy on minimal pairs, tokens and seconds of training. A table of means and standard
deviations follows on stderr.

* `bert`: the scale `tiny` of `reproduce` with the recipe `original`: pairs of segments, next sentences, masks of 15 %.
* `bert_2026`: the same shape with what `configs/encoder_2026.py` sets: no next sentences, packing, a growing batch,
  masks of 30, 15 and 5 %, StableAdamW, warm-up, stable, decay. Warm-up and decay are the same fractions of the steps.
* `modernbert`: the same recipe. The inner layer is 8/3 of the width: a gated one has three matrices, not two.

The peak rate is that of the scale for all: no recipe was tuned. All have as many tokens, and evaluations mask 15 %.
"""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from bert_jax.config import Config, builder, files, from_config_dict
from bert_jax.config.reproduction import ScaleConfig, load_scale, with_changes
from bert_jax.parallel.distributed import Hosts
from bert_jax.reproduction.pairs import PairsWork
from bert_jax.reproduction.pretraining import PretrainingWork
from bert_jax.reproduction.store import Store
from bert_jax.reproduction.work import Context, Work

DATA_DIR = flags.DEFINE_string("data_dir", "../shared/data", "Folder with pretrain_en and blimp.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
NAMES = ("bert", "bert_2026", "modernbert")
MODELS = flags.DEFINE_list("models", list(NAMES), "Models to train.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of pre-training.")
STEPS = flags.DEFINE_integer("steps", 0, "Steps of `bert`, whose tokens all models get; 0: the scale's.")
PAIRS = flags.DEFINE_integer("pairs_per_paradigm", 0, "Minimal pairs per paradigm; 0: the scale's.")

_FROM_RECIPE = ("name", "schedule", "beta2", "weight_decay", "max_grad_norm")  # of `optimizer`
_SIZE = 8 / 3  # inner layer of ModernBERT over its width


def configs(scale: ScaleConfig, *, steps: int, data_dir: Path) -> dict[str, Config]:
    """Return the pre-training config of each model, of as many tokens."""
    raw = with_changes(
        builder.to_dict(scale.pretraining),
        {
            "data.input": str(data_dir / scale.pretraining.data.input),
            "train.num_steps": steps,
            "log.report": False,
            "optimizer.warmup_steps": max(
                1, steps * scale.pretraining.optimizer.warmup_steps // scale.pretraining.train.num_steps
            ),
        },
    )
    recipe = from_config_dict(files.load("configs/encoder_2026.py"))
    base = from_config_dict(with_changes(raw, {"recipe": "original"}))
    new = from_config_dict(with_changes(raw, _by_recipe(recipe, base=base)))
    width = base.model.hidden_size
    shape = {
        "model.architecture": "modernbert",
        "model.intermediate_size": round(_SIZE * width / 8) * 8,
        "model.type_vocab_size": 2,
    }
    modern = from_config_dict(with_changes(builder.to_dict(new), shape))
    return {"bert": base, "bert_2026": new, "modernbert": modern}


def _by_recipe(recipe: Config, *, base: Config) -> dict[str, Any]:
    """Return what the recipe changes, with batches and steps in proportion to those of `base`."""
    train, length = base.train, base.train.phases[0].max_seq_length
    whole = recipe.train.batch_size
    parts = [item.batch_size / whole if item.batch_size else 1.0 for item in recipe.train.phases]
    phases = [
        {**dataclasses.asdict(item), "max_seq_length": length, "batch_size": int(part * train.batch_size)}
        for item, part in zip(recipe.train.phases, parts, strict=True)
    ]
    share = sum(item["fraction"] * item["batch_size"] for item in phases) / train.batch_size
    steps = round(train.num_steps / share)
    optimizer = {f"optimizer.{name}": getattr(recipe.optimizer, name) for name in _FROM_RECIPE}
    of_steps = {
        f"optimizer.{name}": max(1, round(getattr(recipe.optimizer, name) / recipe.train.num_steps * steps))
        for name in ("warmup_steps", "decay_steps")
    }
    data = {"data.objective": recipe.data.objective, "data.pack": recipe.data.pack}
    return {**optimizer, **of_steps, **data, "train.phases": phases, "train.num_steps": steps}


def tokens(config: Config) -> int:
    """Return the tokens of all batches."""
    length = config.train.phases[0].max_seq_length
    total = sum(
        p.fraction * config.train.num_steps * (p.batch_size or config.train.batch_size) for p in config.train.phases
    )
    return round(total * length)


def measure(unit: Work, *, store: Store, context: Context) -> tuple[dict[str, Any], float]:
    """Return the metrics and the seconds of a unit, which is run unless it is done."""
    for needed in unit.needs:
        measure(needed, store=store, context=context)
    if (result := store.result(unit)) is None:
        folder, start = store.begin(unit), time.monotonic()
        unit.run(folder, context=context)
        store.finish(unit, seconds=time.monotonic() - start)
        result = store.result(unit)
    assert result is not None
    return result.get("metrics", {}), unit.seconds(store.folder(unit))


def table(lines: list[dict[str, Any]]) -> str:
    """Return the means over seeds, with standard deviations."""
    rows = [f"{'model':<12} {'tokens':>12} {'seconds':>9} {'bits per byte':>16} {'minimal pairs, %':>18}"]
    for name in dict.fromkeys(line["model"] for line in lines):
        of_model = [line for line in lines if line["model"] == name]

        def mean(key: str, factor: float = 1.0, of_model: list[dict[str, Any]] = of_model) -> str:
            values = [factor * line[key] for line in of_model]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            return f"{statistics.mean(values):.3f} ± {spread:.3f}"

        seconds = statistics.mean(line["seconds"] for line in of_model)
        rows.append(
            f"{name:<12} {of_model[0]['tokens']:>12,} {seconds:>9.0f} {mean('bits_per_byte'):>16} "
            f"{mean('minimal_pairs', 100.0):>18}"
        )
    return "\n".join(rows)


def main(argv: list[str]) -> None:
    """Train and measure what is not done, and print it."""
    del argv
    _, scale = load_scale("tiny")
    data_dir = Path(DATA_DIR.value).absolute()
    store = Store(Path(WORKDIR.value).absolute())
    context = Context(store.folder, Hosts(), lambda line: print(line, file=sys.stderr), "the same command")
    steps = STEPS.value or scale.pretraining.train.num_steps
    of_models = configs(scale, steps=steps, data_dir=data_dir)
    lines = []
    for seed in map(int, SEEDS.value):  # a whole comparison after the first seed
        for name in MODELS.value:
            config = dataclasses.replace(of_models[name], seed=seed)
            run = PretrainingWork(config, title=f"{name}, seed {seed}")
            scored = PairsWork(
                data_dir / scale.minimal_pairs,
                limit=PAIRS.value or scale.pairs_per_paradigm,
                model=run,
                step=run.num_steps,
                title=run.title,
            )
            pairs, _ = measure(scored, store=store, context=context)
            metrics, seconds = measure(run, store=store, context=context)
            lines.append(
                {
                    "model": name,
                    "seed": seed,
                    "steps": run.num_steps,
                    "tokens": tokens(config),
                    "seconds": round(seconds, 1),
                    "bits_per_byte": metrics["eval/bits_per_byte"],
                    "mlm_loss": metrics["eval/mlm_loss"],
                    "minimal_pairs": pairs["accuracy"],
                }
            )
            print(json.dumps(lines[-1]), flush=True)
    print(table(lines), file=sys.stderr)


if __name__ == "__main__":
    flags.register_validator("models", lambda names: set(names) <= set(NAMES), f"choose from {', '.join(NAMES)}")
    app.run(main)
