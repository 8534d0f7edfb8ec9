"""Summaries of results: means over seeds, text tables, GLUE's average."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.errors import counted
from bert_jax.finetuning.run_result import RunResult
from bert_jax.tasks import glue


def summarize(results: Sequence[RunResult], *, selection: str) -> list[dict[str, Any]]:
    """Return mean, standard deviation, best score and number of collapsed runs of each setting, the best setting first.

    They are of the metric and split that select runs; `splits` has mean and deviation of every metric of every labeled
    split. The standard deviation is that of a sample (n - 1), or 0 for a single run.
    """
    settings = list(dict.fromkeys(result.settings.setting for result in results))
    rows = []
    for setting in settings:
        runs = [result for result in results if result.settings.setting == setting]
        scores = [result.best.metrics[selection] for result in runs]
        rows.append(
            {
                "setting": setting,
                "runs": len(runs),
                **_mean_and_sd(scores),
                "best": max(scores),
                "collapsed": sum(result.collapsed for result in runs),
                "splits": _split_summaries(runs),
            }
        )
    return sorted(rows, key=lambda row: -row["mean"])


def _mean_and_sd(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def _split_summaries(runs: Sequence[RunResult]) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean and deviation over `runs` of each metric of each labeled split that all of them have."""
    first = runs[0].metrics
    return {
        split: {
            name: _mean_and_sd([run.metrics[split][name] for run in runs])
            for name in first[split]
            if all(name in run.metrics[split] for run in runs)
        }
        for split in first
        if all(split in run.metrics for run in runs)
    }


def table(record: Mapping[str, Any]) -> str:
    """Return the results of a task as text. Metrics are percentages. Collapsed runs are counted if there are any."""
    selected = record["selection_split"]
    lines = [f"{record['task']}: {record['selection']} on {selected}, in percent"]
    last = ["collapsed"] if any(row["collapsed"] for row in record["summary"]) else []
    form = "{:<24} {:>4}  {:>6}  {:>5}  {:>6}" + "  {:>9}" * len(last)
    lines.append(form.format("setting", "runs", "mean", "sd", "best", *last))
    for row in record["summary"]:
        scores = [f"{100 * row[name]:.2f}" for name in ("mean", "sd", "best")]
        lines.append(form.format(row["setting"], row["runs"], *scores, *(row[name] for name in last)))
    lines += _other_splits(record, selected=selected)
    best = record["best"]
    lines.append(f"best run {best['name']}, step {best['best']['step']} of {best['num_steps']}:")
    for split, metrics in best["metrics"].items():
        lines.append(f"  {split}: {shown_metrics(metrics)}")
    if "ensemble" in record:
        for split, metrics in record["ensemble"]["metrics"].items():
            lines.append(f"ensemble of {len(record['ensemble']['runs'])}, {split}: {shown_metrics(metrics)}")
    lines += _confusion(record["tables"])
    return "\n".join(lines)


def shown_baseline(metric: str, score: float) -> str:
    """Return the baseline in the unit of the results."""
    return f"baseline {metric} {100 * score:.2f} %"


def verdict(record: Mapping[str, Any], *, answer: str, examples: int) -> str:
    """Return a sentence that compares the best run with the baseline, which does what `answer` says.

    Of an accuracy, it also says whether the gap may be chance: within two standard errors, with that number of
    independent `examples` (0: unknown).
    """
    metric, split = record["selection"], record["selection_split"]
    score, baseline = 100 * record["best"]["metrics"][split][metric], 100 * record["constant"]
    gap, scores = score - baseline, f"{metric} {score:.2f} on {split} vs. {baseline:.2f}"
    if not gap > 0:
        return (
            f"The model does not beat {answer} ({scores}): train for more epochs (--config.train.num_epochs) or at a "
            "larger learning rate (--config.optimizer.learning_rate), see docs/howto/finetuning.md."
        )
    error = 2 * (score * (100 - score) / examples) ** 0.5 if metric == "accuracy" and examples else 0.0
    chance = f"; with {counted(examples, 'example')}, less than {error:.2f} points may be chance" if gap < error else ""
    return f"The model beats {answer} by {gap:.2f} points ({scores}{chance})."


def _other_splits(record: Mapping[str, Any], *, selected: str) -> list[str]:
    """Return the means over several seeds of the labeled splits that select nothing."""
    lines = []
    for row in record["summary"]:
        for split, metrics in row["splits"].items():
            if row["runs"] > 1 and split != selected:
                shown = ", ".join(
                    f"{name} {100 * value['mean']:.2f} ({100 * value['sd']:.2f})"
                    for name, value in metrics.items()
                    if "threshold" not in name
                )
                lines.append(f"{row['setting']}, {split}, mean (sd) of {row['runs']} runs: {shown}")
    return lines


def shown_metrics(metrics: Mapping[str, float]) -> str:
    """Return metrics as percentages; thresholds and counts (int) as they are."""

    def shown(name: str, value: float) -> str:
        if isinstance(value, int):
            return f"{name} {value}"
        return f"{name} {value:.3f}" if "threshold" in name else f"{name} {100 * value:.2f}"

    return ", ".join(shown(name, value) for name, value in metrics.items())


def _confusion(tables: Mapping[str, Any]) -> list[str]:
    """Return the confusion matrix, or the scores of each entity type, as lines."""
    if "labels" not in tables.get("confusion", {}):  # an entity type may be called "confusion"
        counts = {
            name: sum(scores.get(name, 0) for scores in tables.values()) for name in ("gold", "predicted", "correct")
        }
        total = [f"  all: {shown_metrics(counts)}"] if any(counts.values()) else []
        return total + [f"  {name}: {shown_metrics(scores)}" for name, scores in tables.items()]
    labels = tables["confusion"]["labels"]
    counts = next(value for name, value in tables["confusion"].items() if name != "labels")
    width = max(map(len, [*labels, "gold \\ predicted"])) + 2
    lines = ["gold \\ predicted".ljust(width) + "".join(label.rjust(width) for label in labels)]
    lines += [
        label.ljust(width) + "".join(str(count).rjust(width) for count in row)
        for label, row in zip(labels, counts, strict=True)
    ]
    return lines


def glue_average(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the average of the paper's nine scores, as far as their tasks were run, with the scores."""
    numbers = {}
    for task, split in glue.AVERAGE:
        if task in records:
            metrics = records[task]["best"]["metrics"]
            # With dev_fraction or dev_split=test, the only labeled split replaces dev.
            scores = metrics.get(split, next(iter(metrics.values())) if split == "dev" else None)
            if scores is not None:
                numbers[f"{task}/{split}"] = scores[glue.TASKS[task].metrics[0]]
    return {
        "average": statistics.fmean(numbers.values()) if numbers else 0.0,
        "numbers": numbers,
        "of": len(glue.AVERAGE),
    }
