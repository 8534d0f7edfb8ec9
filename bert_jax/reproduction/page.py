"""The page of all tables of a workdir: one HTML file without links to elsewhere."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.reproduction.plots import has_difference, plot
from bert_jax.reproduction.text import number, ours, remarks

Record = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --muted: #5b6472; --line: #d9dde3; --paper: #ffffff; --soft: #f3f5f8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --muted: #a3acb9; --line: #363d48; --paper: #15191f; --soft: #1e242c }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 68rem; color: var(--ink); background: var(--paper);
       font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } h2 { font-size: 1.25rem; margin: 2.5rem 0 .2rem }
p, li { max-width: 48rem } .muted { color: var(--muted) }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 11rem }
thead th { border-bottom-width: 2px; font-weight: 600 } .paper { color: var(--muted) }
.plot { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .6rem; margin: 1rem 0;
        overflow-x: auto }
.plot svg { display: block; min-width: 30rem; height: auto }
.key span { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 1rem; vertical-align: -1px }
details { margin: .8rem 0 } summary { cursor: pointer } code { background: var(--soft); padding: 0 .25rem }
"""


def page(records: Sequence[Record]) -> str:
    """Return the page of the tables."""
    scales = ", ".join(dict.fromkeys(record["scale"] for record in records))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>The paper's tables at scale {_text(scales)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>The paper's tables at scale {_text(scales)}</h1>",
        '<p class="muted">BERT (Devlin et al. 2018, arXiv 1810.04805v2), next to runs of bert_jax. A value of ours is '
        "not a reproduction of the paper's unless model, data and steps are the paper's: each section says what "
        "differs.</p>",
        *(_section(record) for record in records),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _section(record: Record) -> str:
    title = f"{record['heading']}: {record['title']}"
    parts = [
        f"<section><h2>{_text(title)}</h2>",
        f'<p class="muted">Section {_text(record["section"])} of the paper, at scale {_text(record["scale"])}.</p>',
        f'<div class="scroll">{_table(record)}</div>',
        '<p class="key muted"><span style="background:#b9bec7"></span>paper'
        '<span style="background:#2f6fb3"></span>ours: mean, standard deviation and single seeds</p>',
        f'<div class="plot">{plot(record)}</div>',
    ]
    if record["table"] in ("5", "6", "8") and has_difference(record):
        first = _text(record["rows"][0]["title"])
        parts.append(f'<p class="muted">The same as differences to {first}:</p>')
        parts.append(f'<div class="plot">{plot(record, is_relative=True)}</div>')
    items = "".join(f"<li>{_text(line)}</li>" for line in remarks(record))
    parts += ["<h3>What to know</h3>", f"<ul>{items}</ul>", _runs(record), "</section>"]
    return "\n".join(parts)


def _table(record: Record) -> str:
    heads = "".join(f'<th colspan="2">{_text(column["title"])}</th>' for column in record["columns"])
    second = "".join('<th class="paper">paper</th><th>ours</th>' for _ in record["columns"])
    rows = []
    for row in record["rows"]:
        cells = "".join(
            f'<td class="paper">{_text(number(entry["paper"], column=column))}</td>'
            f'<td title="{_text(entry["reason"])}">{_text(ours(entry, column=column))}</td>'
            for column in record["columns"]
            for entry in (row["cells"][column["key"]],)
        )
        rows.append(f"<tr><td>{_text(row['title'])}</td>{cells}</tr>")
    return (
        f'<table><thead><tr><th rowspan="2">system</th>{heads}</tr><tr>{second}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _runs(record: Record) -> str:
    items = "".join(
        f"<li><code>runs/{_text(run['folder'])}</code> {_text(run['title'])}"
        f"{'' if run['is_done'] else ' (not finished)'}, code <code>{_text(run['code'])}</code></li>"
        for run in record["runs"]
    )
    return f"<details><summary>Runs of this table ({len(record['runs'])})</summary><ul>{items}</ul></details>"


def _text(value: str) -> str:
    return html.escape(str(value))
