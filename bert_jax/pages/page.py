"""A page of one run, and a page that compares several."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import Config, flatten
from bert_jax.files import write_text
from bert_jax.pages import sections
from bert_jax.pages.panels import Panel, language_model, panels_of_run, panels_of_runs
from bert_jax.pages.plots import draw_panel, draw_seconds
from bert_jax.pages.run_files import Log, RunFiles, describe, read_run
from bert_jax.pages.style import CSS

PAGE = "report.html"


def write_page(workdirs: Sequence[str | Path], *, out: str | Path = "") -> Path:
    """Write the page of one workdir, or the comparison of several, and return its path.

    The default is WORKDIR/report.html for one, report.html in the current folder for several.

    Raises:
      UserError: if there is no run in a workdir, or matplotlib is not installed.
      OSError: if the file cannot be written.
    """
    runs = [read_run(path) for path in workdirs]
    file = Path(out) if out else (runs[0].path if len(runs) == 1 else Path()) / PAGE
    write_text(file, page_of_run(runs[0]) if len(runs) == 1 else page_of_runs(runs), durable=False)
    return file


def page_of_run(run: RunFiles) -> str:
    """Return the page of one workdir."""
    seconds = _all_seconds(run.logs)
    many = run.is_finetuning
    panels = panels_of_runs({log.name: log for log in run.logs}) if many else panels_of_run(run.logs[0])
    if many and len(run.logs) == 1:
        panels = _unlabeled(panels)
    body = [
        f"<h1>{html.escape(run.path.absolute().name)}</h1>",
        f'<p class="soft">{html.escape(_summary(run))}</p>',
        _facts(run, seconds),
        sections.results_section(run),
        sections.section("Curves", "" if "tasks" in run.results else _plots(panels)),
        sections.confusion_section(run),
        sections.mistakes_section(run),
        sections.samples_section(run),
        sections.section("Where wall time went", _seconds_plot(seconds)),
        sections.config_section(run),
        sections.data_section(run),
    ]
    return document(run.path.absolute().name, body)


def page_of_runs(runs: Sequence[RunFiles]) -> str:
    """Return the page that compares workdirs."""
    labels = _labels([run.path for run in runs])
    logs: dict[str, Log] = {}
    for label, run in zip(labels, runs, strict=True):
        for log in run.logs:
            logs[f"{label}/{log.name}" if len(run.logs) > 1 else label] = log
    facts = [_compared(run) for run in runs]
    columns = [name for name in facts[0] if any(values[name] != "-" for values in facts)]
    rows = [[label, *(values[name] for name in columns)] for label, values in zip(labels, facts, strict=True)]
    body = [
        f"<h1>{len(runs)} runs</h1>",
        f'<p class="soft">{html.escape(", ".join(labels))}</p>',
        sections.section("Results", sections.table(["run", *columns], rows)),
        sections.section("Curves", _plots(panels_of_runs(logs))),
        sections.section("Config", _differences(labels, runs)),
        sections.section(
            "Where wall time went",
            '<div class="plots">'
            + "".join(
                _plot(label, draw_seconds(_all_seconds(run.logs)))
                for label, run in zip(labels, runs, strict=True)
                if sum(_all_seconds(run.logs).values())
            )
            + "</div>",
        ),
    ]
    return document("Comparison of runs", body)


def document(title: str, body: Sequence[str]) -> str:
    """Return the whole document. It names no other host: nothing is loaded when it is opened."""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>",
            *(part for part in body if part),
            "</body>\n</html>\n",
        ]
    )


def _summary(run: RunFiles) -> str:
    config = run.config
    if isinstance(config, Config):
        model = config.model
        shape = f"{model.num_hidden_layers} layers, hidden size {model.hidden_size}, {model.num_attention_heads} heads"
        return f"Pre-training: {shape}, {model.vocab_size:,} tokens; {run.path}"
    runs = f"{len(run.logs)} run{'s' if len(run.logs) > 1 else ''}"
    return f"Fine-tuning on {run.results.get('task', config.task)}: {runs}; {run.path}"


def _facts(run: RunFiles, seconds: Mapping[str, float]) -> str:
    """Return the values that a reader looks for first."""
    facts: list[tuple[str, str]] = []
    if isinstance(run.config, Config):
        log = run.logs[0]
        prefix = language_model(log)
        facts.append((f"{int(log.last_step):,} of {run.config.train.num_steps:,}", "steps"))
        named = {
            "eval/relation_loss": "held-out relation loss",
            f"eval/{prefix}_loss": "held-out loss, nats per token",
            "eval/unigram_loss": "unigram loss",
            f"eval/{prefix}_perplexity": "held-out perplexity",
            "eval/bits_per_byte": "held-out bits per byte",
            f"eval/{prefix}_accuracy": "held-out accuracy",
            "perf/tokens_per_second": "tokens per second",
        }
        for name, label in named.items():
            if (value := log.last(name)) is not None:
                facts.append((f"{value:.1%}" if name.endswith("accuracy") else sections.number(value), label))
    elif "best" in run.results:
        results = run.results
        value = results["best"]["best"]["metrics"][results["selection"]]
        facts.append((sections.number(value), f"best {results['selection']} on dev"))
        facts.append((sections.number(float(results["constant"])), "baseline"))
        facts.append((f"{results.get('train_examples', 0):,}", "training examples"))
    if whole := sum(seconds.values()):
        facts.append((sections.seconds_text(seconds), "wall time"))
        facts.append((f"{seconds.get('useful', 0) / whole:.0%}", "of it in useful steps"))
    boxes = "".join(f'<div class="fact"><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>' for v, k in facts)
    return f'<div class="facts">{boxes}</div>' if boxes else ""


def _compared(run: RunFiles) -> dict[str, Any]:
    """Return the last values of a run by column of the comparison; "-" where there is none."""
    log = run.logs[0]
    prefix = language_model(log)
    best = run.results["best"]["best"]["metrics"][run.results["selection"]] if "best" in run.results else None
    seconds = _all_seconds(run.logs)
    values = {
        "steps": int(log.last_step),
        "loss": log.last(f"eval/{prefix}_loss"),
        "perplexity": log.last(f"eval/{prefix}_perplexity"),
        "bits per byte": log.last("eval/bits_per_byte"),
        "accuracy": log.last(f"eval/{prefix}_accuracy"),
        "best on dev": best,
        "tokens per second": log.last("perf/tokens_per_second"),
        "wall time": sections.seconds_text(seconds),
        "in useful steps": f"{seconds.get('useful', 0) / max(sum(seconds.values()), 1e-9):.0%}",
    }
    return {name: "-" if value is None else value for name, value in values.items()}


def _differences(labels: Sequence[str], runs: Sequence[RunFiles]) -> str:
    """Return the config fields in which the runs differ."""
    flat = [flatten(run.config) for run in runs]
    names = list(dict.fromkeys(name for fields in flat for name in fields))
    rows = [
        [name, *(describe(fields.get(name)) for fields in flat)]
        for name in names
        if len({describe(fields.get(name)) for fields in flat}) > 1
    ]
    return sections.table(["field", *labels], rows) or "<p>The configs are the same.</p>"


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return short names of the workdirs: the last folder, or the whole path where two are called the same."""
    names = [path.absolute().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _all_seconds(logs: Sequence[Log]) -> dict[str, float]:
    total: dict[str, float] = {}
    for log in logs:
        for kind, seconds in log.seconds.items():
            total[kind] = total.get(kind, 0.0) + seconds
    return total


def _unlabeled(panels: Sequence[Panel]) -> list[Panel]:
    return [Panel(p.title, p.unit, [type(x)("", x.points, x.style) for x in p.lines], p.is_log) for p in panels]


def _plots(panels: Sequence[Panel]) -> str:
    plots = "\n".join(_plot(panel.title, draw_panel(panel)) for panel in panels)
    return f'<div class="plots">\n{plots}\n</div>' if plots else "<p>There is no log line yet.</p>"


def _seconds_plot(seconds: Mapping[str, float]) -> str:
    return f'<div class="plots">{_plot("", draw_seconds(seconds))}</div>' if sum(seconds.values()) else ""


def _plot(title: str, svg: str) -> str:
    caption = f"<h3>{html.escape(title)}</h3>" if title else ""
    return f'<div class="plot">{caption}{svg}</div>'
