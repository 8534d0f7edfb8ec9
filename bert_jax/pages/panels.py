"""What the plots of a page show: panels of lines, from the logs of one run or of several."""

import dataclasses
from collections.abc import Mapping, Sequence

from bert_jax.pages.run_files import Log, Points

_LANGUAGE_MODELS = {"mlm": "masked LM", "clm": "left-to-right LM"}


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve: of training, of evaluation (with markers), or a baseline (dashed)."""

    label: str
    points: Points
    style: str = "train"


@dataclasses.dataclass(frozen=True)
class Panel:
    """A plot; `unit` names its vertical axis."""

    title: str
    unit: str
    lines: Sequence[Line]
    is_log: bool = False


# Title, unit, whether the axis is logarithmic, and the metrics of a panel: label and style by name. "LM" stands for the
# prefix of the language model's metrics.
_PANELS: tuple[tuple[str, str, bool, Mapping[str, tuple[str, str]]], ...] = (
    (
        "Relation loss (teacher)",
        "nats per token",
        False,
        {"train/relation_loss": ("training", "train"), "eval/relation_loss": ("held out", "eval")},
    ),
    (
        "Loss of the language model",
        "nats per token",
        False,
        {
            "train/LM_loss": ("training", "train"),
            "eval/LM_loss": ("held out", "eval"),
            "eval/unigram_loss": ("unigram (word frequencies)", "baseline"),
        },
    ),
    (
        "Accuracy of the language model",
        "fraction",
        False,
        {
            "train/LM_accuracy": ("training", "train"),
            "eval/LM_accuracy": ("held out", "eval"),
            "eval/unigram_accuracy": ("unigram (most frequent token)", "baseline"),
        },
    ),
    ("Bits per byte", "bits per byte", False, {"eval/bits_per_byte": ("held out", "eval")}),
    (
        "Next sentence: accuracy",
        "fraction",
        False,
        {"train/nsp_accuracy": ("training", "train"), "eval/nsp_accuracy": ("held out", "eval")},
    ),
    ("Loss that is minimized", "nats", False, {"train/loss": ("training", "train"), "eval/loss": ("held out", "eval")}),
    ("Learning rate", "", False, {"train/learning_rate": ("", "train")}),
    ("Gradient norm", "before clipping", True, {"train/grad_norm": ("", "train")}),
    ("Throughput", "tokens per second", False, {"perf/tokens_per_second": ("", "train")}),
)
# What one panel per metric compares, with one line per run.
_COMPARED = (
    ("eval/LM_loss", "Held-out loss", "nats per token", False),
    ("eval/bits_per_byte", "Held-out bits per byte", "bits per byte", False),
    ("eval/LM_accuracy", "Held-out accuracy", "fraction", False),
    ("eval/nsp_accuracy", "Next sentence: held-out accuracy", "fraction", False),
    ("train/loss", "Training loss", "nats", False),
    ("train/learning_rate", "Learning rate", "", False),
    ("train/grad_norm", "Gradient norm", "before clipping", True),
    ("perf/tokens_per_second", "Throughput", "tokens per second", False),
)


def language_model(log: Log) -> str:
    """Return the prefix of the language model's metrics: mlm, or clm for a run without any but the causal objective."""
    is_masked = "train/mlm_loss" in log.metrics or "eval/mlm_loss" in log.metrics
    return "mlm" if is_masked or not {"train/clm_loss", "eval/clm_loss"} & log.metrics.keys() else "clm"


def panels_of_run(log: Log) -> list[Panel]:
    """Return the panels of one pre-training run; those without any metric are left out."""
    prefix = language_model(log)
    panels = []
    for title, unit, is_log, metrics in _PANELS:
        lines = [
            Line(label, log.metrics[name.replace("LM", prefix)], style)
            for name, (label, style) in metrics.items()
            if log.metrics.get(name.replace("LM", prefix))
        ]
        if any(line.style != "baseline" for line in lines):
            panels.append(
                Panel(title.replace("the language model", f"the {_LANGUAGE_MODELS[prefix]}"), unit, lines, is_log)
            )
    return panels


def panels_of_runs(logs: Mapping[str, Log]) -> list[Panel]:
    """Return panels that compare runs by label: losses, rates, and each metric of a task."""
    panels = []
    for name, title, unit, is_log in _COMPARED:
        lines = [
            Line(label, points, name.partition("/")[0].replace("perf", "train"))
            for label, log in logs.items()
            if (points := log.metrics.get(name.replace("LM", language_model(log))))
        ]
        panels.append(Panel(title, unit, lines, is_log))
    known = {name.replace("LM", prefix) for name, *_ in _COMPARED for prefix in _LANGUAGE_MODELS}
    of_tasks = sorted({name for log in logs.values() for name in log.metrics if name.startswith("eval/")} - known)
    for name in of_tasks:
        if any(marker in name for marker in ("unigram", "lm_", "eval/loss", "nsp_")):  # shown by other panels
            continue
        lines = [Line(label, log.metrics[name], "eval") for label, log in logs.items() if name in log.metrics]
        panels.append(Panel(f"On dev: {name.removeprefix('eval/')}", "", lines))
    order = {True: 0, False: 1}  # the metrics of a task come first
    panels.sort(key=lambda panel: order[panel.title.startswith("On dev")])
    return [panel for panel in panels if panel.lines]
