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
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="soft">{html.escape(lead)}</p>']
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
    heads = [f"{column['title']}, {side}" for column in columns for side in ("paper", "ours")]
    rows = []
    for row in record["rows"]:
        cells = []
        for column in columns:
            entry = row["cells"][column["key"]]
            reason = html.escape(entry["reason"])
            cells.append(number(entry["paper"], column=column))
            cells.append(Markup(f'<b title="{reason}">{html.escape(ours(entry, column=column))}</b>'))
        rows.append([row["title"], *cells])
    return table(["system", *heads], rows)


def _key(record: Record) -> str:
    if any(row["curve"] for row in record["rows"]):
        return '<p class="soft">Dotted: the paper. Lines with bars: ours, mean and standard deviation.</p>'
    return (
        f'<p class="soft"><b style="color:{PAPER}">&#9632;</b> paper &nbsp; <b style="color:{OURS}">&#9632;</b> ours: '
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
