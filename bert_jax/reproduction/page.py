"""The page of all tables of a workdir: one HTML file without links to elsewhere."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.pages.page import document
from bert_jax.pages.sections import Markup, section, table
from bert_jax.reproduction.plots import OURS, PAPER, has_difference, plot
from bert_jax.reproduction.text import number, ours, remarks

Record = Mapping[str, Any]


def page(records: Sequence[Record]) -> str:
    """Return the page of the tables."""
    scales = ", ".join(dict.fromkeys(record["scale"] for record in records))
    title = f"The paper's tables at scale {scales}"
    lead = (
        "BERT (Devlin et al. 2018, arXiv 1810.04805v2) next to runs of bert_jax. A value of ours reproduces the "
        "paper's only where model, data and steps are the paper's: each section says what differs."
    )
    style = "<style>.cell { white-space: nowrap } .plot svg { min-width: 36rem } td { min-width: 5.5rem }</style>"
    body = [style, f"<h1>{html.escape(title)}</h1>", f'<p class="soft">{html.escape(lead)}</p>']
    return document(title, [*body, *(_section(record) for record in records)])


def _section(record: Record) -> str:
    parts = [
        f'<p class="soft">Section {html.escape(record["section"])} of the paper, at scale '
        f"{html.escape(record['scale'])}.</p>",
        _table(record),
        _key(record),
        _plot(plot(record)),
    ]
    if record["table"] in ("5", "6", "8") and has_difference(record):
        first = html.escape(record["rows"][0]["title"])
        parts += [f"<h3>Differences to {first}</h3>", _plot(plot(record, is_relative=True))]
    items = "".join(f"<li>{html.escape(line)}</li>" for line in remarks(record))
    parts += ["<h3>What to know</h3>", f"<ul>{items}</ul>", _runs(record)]
    return section(f"{record['heading']}: {record['title']}", *parts)


def _table(record: Record) -> str:
    columns = record["columns"]
    rows = []
    for row in record["rows"]:
        cells = [_cell(row["cells"][column["key"]], column=column) for column in columns]
        model = f"<br><small>{html.escape(row['model'])}</small>" if row["model"] else ""
        rows.append([Markup(html.escape(row["title"]) + model), *cells])
    return table(["system, and our model", *(column["title"] for column in columns)], rows)


def _cell(entry: Record, *, column: Record) -> Markup:
    paper, own = number(entry["paper"], column=column), html.escape(ours(entry, column=column))
    reason = html.escape(entry["reason"])
    return Markup(f'<span class="cell" title="{reason}"><span class="soft">{paper}</span> <b>{own}</b></span>')


def _key(record: Record) -> str:
    if any(row["curve"] for row in record["rows"]):
        return (
            '<p class="soft">In the table: the paper, <b>ours</b>. In the plot, dotted: the paper; lines with bars: '
            "ours, mean and standard deviation.</p>"
        )
    return (
        '<p class="soft">In the table: the paper, <b>ours</b>. In the plot: '
        f'<b style="color:{PAPER}">&#9632;</b> paper &nbsp; <b style="color:{OURS}">&#9632;</b> ours: '
        "mean, standard deviation, and a dot per seed</p>"
    )


def _plot(picture: str) -> str:
    return f'<div class="plot wide">{picture}</div>'


def _runs(record: Record) -> str:
    items = "".join(
        f"<li><code>runs/{html.escape(run['folder'])}</code> {html.escape(run['title'])}"
        f"{'' if run['is_done'] else ' (not finished)'}, code <code>{html.escape(run['code'])}</code></li>"
        for run in record["runs"]
    )
    return f"<details><summary>Runs of this table ({len(record['runs'])})</summary><ul>{items}</ul></details>"
