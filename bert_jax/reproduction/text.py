"""A table as text: the paper's value and ours side by side, what is missing, and what differs."""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def number(value: float | None, *, column: Record) -> str:
    """Return a value as the paper writes it: percentages with one digit, others with two."""
    if value is None:
        return "-"
    return f"{value:.1f}" if column["percent"] else f"{value:.2f}"


def ours(entry: Record, *, column: Record) -> str:
    """Return mean and deviation of a cell, or its state."""
    if not entry["values"]:
        return {"open": "open", "failed": "failed"}.get(entry["state"], "-")
    text = number(entry["mean"], column=column)
    return text if entry["sd"] is None else f"{text} ± {number(entry['sd'], column=column)}"


def as_text(record: Record) -> str:
    """Return the table, and lines with all that a reader must know."""
    columns = record["columns"]
    titles = [row["title"] for row in record["rows"]]
    width = max(len("system"), *map(len, titles))
    cells = [
        [(number(row["cells"][c["key"]]["paper"], column=c), ours(row["cells"][c["key"]], column=c)) for c in columns]
        for row in record["rows"]
    ]
    widths = [
        (max(len("paper"), *(len(row[i][0]) for row in cells)), max(len("ours"), *(len(row[i][1]) for row in cells)))
        for i in range(len(columns))
    ]
    spans = [max(left + 2 + right, len(c["title"])) for (left, right), c in zip(widths, columns, strict=True)]
    lines = [f"{record['heading']}, {record['title']} (paper, section {record['section']}), at scale {record['scale']}"]
    lines.append("   ".join([" " * width, *(c["title"].ljust(span) for c, span in zip(columns, spans, strict=True))]))
    heads = [
        f"{'paper':>{left}}  {'ours':<{right}}".ljust(span) for (left, right), span in zip(widths, spans, strict=True)
    ]
    lines.append("   ".join(["system".ljust(width), *heads]))
    for title, row in zip(titles, cells, strict=True):
        shown = [
            f"{paper:>{left}}  {own:<{right}}".ljust(span)
            for (paper, own), (left, right), span in zip(row, widths, spans, strict=True)
        ]
        lines.append("   ".join([title.ljust(width), *shown]).rstrip())
    return "\n".join([*(line.rstrip() for line in lines), *remarks(record)])


def remarks(record: Record) -> list[str]:
    """Return what is open, failed and missing, and what differs from the paper."""
    lines = [f"ours: mean ± standard deviation over {record['seeds']} fine-tuning seeds of one pre-trained model"]
    models: dict[str, list[str]] = {}
    for row in record["rows"]:
        if row["model"]:
            models.setdefault(row["model"], []).append(row["title"])
    lines += [f"the model of {'; '.join(titles)}: {model}" for model, titles in models.items()]
    lines += [f"{new} is measured in place of {old}" for old, new in (t.split("=") for t in record["replaced"])]
    lines += [f"note: {note}" for note in record["notes"]]
    if record["open"]:
        lines.append(f"open: {record['open']} cells are not run yet")
    reasons: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in record["rows"]:
        for key, entry in row["cells"].items():
            if entry["reason"]:
                reasons.setdefault((entry["state"], entry["reason"]), []).append((row["title"], key))
    lines += [f"{state}: {shown_places(places)}: {reason}" for (state, reason), places in reasons.items()]
    other = [run["title"] for run in record["runs"] if run["is_other_code"]]
    if other:
        lines.append(f"note: begun with another version of the code: {'; '.join(other)}")
    return lines


def shown_places(places: Sequence[tuple[str, str]]) -> str:
    """Return cells (row, column) in words: the rows of each set of columns together."""
    columns: dict[str, list[str]] = {}
    for row, column in places:
        columns.setdefault(row, []).append(column)
    rows: dict[str, list[str]] = {}
    for row, keys in columns.items():
        rows.setdefault(", ".join(keys), []).append(row)
    return "; ".join(f"{', '.join(titles)} ({keys})" for keys, titles in rows.items())
