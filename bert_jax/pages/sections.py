"""The sections of a page as HTML: tables of metrics, config, data, filled masks, results and mistakes."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bert_jax.pages.run_files import RunFiles, describe
from bert_jax.progress import duration, format_bytes

_MOST_STEPS = 8  # of the filled masks: the first, the last, and others at even distances
_MOST_TEXT = 400  # characters of a mistake's field


def section(title: str, *parts: str) -> str:
    """Return a section, or "" if it is empty."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{body}\n</section>" if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, kind: str = "") -> str:
    """Return a table, or "" without rows; a cell may be a number, text, or `Markup`."""
    lines = [f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows]
    if not lines:
        return ""
    top = f"<thead><tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr></thead>" if any(head) else ""
    return f'<div class="wide"><table class="{kind}">{top}<tbody>\n' + "\n".join(lines) + "\n</tbody></table></div>"


class Markup(str):
    """Text that is HTML already: everything else is escaped."""

    __slots__ = ()


def _cell(value: Any) -> str:
    if isinstance(value, Markup):
        return f"<td>{value}</td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{html.escape(str(value))}</td>"
    return f'<td class="number">{number(value)}</td>'


def number(value: float) -> str:
    """Return a number as a reader expects it: counts whole, other numbers with four significant digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def config_section(run: RunFiles) -> str:
    """Return the fields that differ from the defaults."""
    rows = [(name, describe(before), describe(now)) for name, before, now in run.changed]
    rest = "all other fields are as there" if rows else "no field differs"
    note = f"<p>Compared with {html.escape(run.defaults)}; {rest}.</p>"
    return section("Config", note, table(("field", "default", "this run"), rows))


def data_section(run: RunFiles) -> str:
    """Return the statistics of a pre-training data set, one column per sequence length."""
    if not run.data:
        return ""
    lengths = list(run.data)
    rows: list[list[Any]] = []
    first = run.data[lengths[0]]
    for name in first:
        values = [run.data[length].get(name) for length in lengths]
        label = str(_NAMES.get(name, name)).replace("_", " ").replace("share", "fraction")
        if isinstance(first[name], Mapping):
            rows += [
                [f"{label}, {_SPLITS.get(split, split)}", *(value.get(split, 0) for value in values)]
                for split in first[name]
            ]
        elif name.endswith("bytes"):
            rows.append([label, *(format_bytes(value) for value in values)])
        else:
            rows.append([label, *(f"{value:.2%}" if isinstance(value, float) else value for value in values)])
    return section("Data", table(["", *(f"length {length}" for length in lengths)], rows))


_NAMES = {"rows": "sequences"}  # names of statistics that readers know by another word
_SPLITS = {"train": "training", "validation": "held out"}


def samples_section(run: RunFiles) -> str:
    """Return what the model fills in for the masks of a few held-out sequences, step by step."""
    if not run.samples:
        return ""
    lines = spread(run.samples, most=_MOST_STEPS)
    parts = [
        "<p>The same held-out sequences with the same masks at each evaluation. In brackets what was there; below, the "
        "most probable token and its probability.</p>"
    ]
    for number_, sample in enumerate(lines[-1]["samples"]):
        answers = [token["answer"] for token in sample["masks"]]
        text = "".join(
            html.escape(before) + f" <mark>[{html.escape(answer)}]</mark> "
            for before, answer in zip(sample["text"], answers, strict=False)
        ) + html.escape(sample["text"][-1])
        rows = [
            [f"step {line['step']:,}", *map(_guess, line["samples"][number_]["masks"])]
            for line in lines
            if number_ < len(line["samples"])
        ]
        parts.append(f'<p class="sample">{text}</p>')
        parts.append(table(("", *answers), rows, kind="guesses"))
    return section("Filled masks", *parts)


def _guess(mask: Mapping[str, Any]) -> Markup:
    kind = "right" if mask["guess"] == mask["answer"] else "wrong"
    text = html.escape(str(mask["guess"]))
    return Markup(f'<span class="{kind}">{text}</span> <small>{100 * mask["probability"]:.0f} %</small>')


def spread(items: Sequence[Any], *, most: int) -> list[Any]:
    """Return at most `most` items: the first, the last, and others at even distances."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def results_section(run: RunFiles) -> str:
    """Return the results of a task: every setting, the best run on every split, and the baseline."""
    results = run.results
    if "summary" not in results:
        tasks = results.get("tasks")  # GLUE: a folder with a page for each task
        if not isinstance(tasks, Mapping):
            return ""
        rows = [
            (name, split, metric, value)
            for name, splits in tasks.items()
            for split, metrics in splits.items()
            for metric, value in metrics.items()
        ]
        return section("Results", table(("task", "split", "metric", "value"), rows))
    summary = [
        (row["setting"], row["runs"], row["mean"], row["sd"], row["best"], row["collapsed"])
        for row in results["summary"]
    ]
    best = results["best"]
    of_best = [(split, name, value) for split, metrics in best["metrics"].items() for name, value in metrics.items()]
    note = (
        f"<p>Runs are compared by {html.escape(results['selection'])} on the split that selects. A model that has "
        f"learned nothing has {number(float(results['constant']))}. Collapsed runs are not above that.</p>"
    )
    head = ("setting", "runs", "mean", "standard deviation", "best", "collapsed")
    return section(
        f"Results of {results['task']}",
        note,
        table(head, summary),
        f"<h3>Best run: {html.escape(best['name'])}, step {best['best']['step']:,} of {best['num_steps']:,}</h3>",
        table(("split", "metric", "value"), of_best),
        _ensemble(results),
    )


def _ensemble(results: Mapping[str, Any]) -> str:
    if "ensemble" not in results:
        return ""
    ensemble = results["ensemble"]
    rows = [(split, name, value) for split, metrics in ensemble["metrics"].items() for name, value in metrics.items()]
    return f"<h3>Ensemble of {len(ensemble['runs'])} runs</h3>" + table(("split", "metric", "value"), rows)


def confusion_section(run: RunFiles) -> str:
    """Return the confusion matrix of the best run, or the scores of each label."""
    tables = run.results.get("tables") or {}
    confusion = tables.get("confusion", {})
    if "labels" in confusion:
        labels = confusion["labels"]
        counts = next(value for name, value in confusion.items() if name != "labels")
        rows = [[label, *(_shaded(count, row) for count in row)] for label, row in zip(labels, counts, strict=True)]
        note = "<p>Rows are the gold labels, columns the predictions; shaded by the fraction of the row.</p>"
        return section("Confusion on dev", note, table(["gold", *labels], rows, kind="confusion"))
    if not tables:
        return ""
    names = list(dict.fromkeys(name for scores in tables.values() for name in scores))
    rows = [[label, *(scores.get(name, "") for name in names)] for label, scores in tables.items()]
    return section("By label, on dev", table(["", *names], rows))


def _shaded(count: int, row: Sequence[int]) -> Markup:
    fraction = count / max(sum(row), 1)
    return Markup(f'<span class="shade" style="background: rgba(31, 95, 168, {0.6 * fraction:.2f})">{count:,}</span>')


def mistakes_section(run: RunFiles) -> str:
    """Return wrong predictions of the best run, the most confident first."""
    mistakes = run.results.get("mistakes") or []
    names = list(dict.fromkeys(name for mistake in mistakes for name in mistake))
    rows = [[_short(mistake.get(name, "")) for name in names] for mistake in mistakes]
    return section("Mistakes on dev", table(names, rows))


def _short(value: Any) -> Any:
    if isinstance(value, float | int):
        return value
    text = value if isinstance(value, str) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + " ..."


def seconds_text(seconds: Mapping[str, float]) -> str:
    """Return the wall time of a run in words."""
    return duration(sum(seconds.values()))
