"""Plots of a table, as SVG: a panel per column, the paper's bar next to ours, or curves over the steps of Figure 5."""

from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.pages.plots import settings, svg

Record = Mapping[str, Any]

PAPER, OURS, SEEDS, INK, MUTED, GRID = "#b9bec7", "#2f6fb3", "#12365c", "#1d2430", "#5b6472", "#e4e7ec"
CURVES = ("#2f6fb3", "#b3552f", "#3d8a4e", "#7a4fb0")
_PANEL_INCHES, _ROW_INCHES, _LABEL_INCHES = 2.5, 0.42, 2.4
_BAR = 0.36  # of the distance between two rows
_PANELS_PER_LINE = 3
_PIXELS_PER_INCH = 96


def require_plots() -> None:
    """Check that the library for plots is there, before hours of work.

    Raises:
      UserError: naming the extra.
    """
    with settings():
        pass


def plot(record: Record, *, is_relative: bool = False) -> str:
    """Return the SVG of a table; with `is_relative`, of the differences to its first row."""
    with settings():
        if any(row["curve"] for row in record["rows"]):
            return _curves(record)
        return _bars(record, is_relative=is_relative)


def has_difference(record: Record) -> bool:
    """Return whether a plot of differences to the first row shows anything."""
    first = record["rows"][0]["cells"]
    rest = record["rows"][1:]
    return any(first[key]["values"] and any(row["cells"][key]["values"] for row in rest) for key in first)


def _bars(record: Record, *, is_relative: bool) -> str:
    columns = [c for c in record["columns"] if any(_is_shown(row["cells"][c["key"]]) for row in record["rows"])]
    if is_relative:
        columns = [c for c in columns if record["rows"][0]["cells"][c["key"]]["values"]]
    rows = record["rows"][1:] if is_relative else record["rows"]
    figure, axes = _panels(len(columns), height=_ROW_INCHES * len(rows) + 0.9)
    first = record["rows"][0]["cells"]
    for index, (column, panel) in enumerate(zip(columns, axes, strict=True)):
        entries = [row["cells"][column["key"]] for row in rows]
        base = first[column["key"]] if is_relative else None
        _bar_panel(panel, entries, base=base, column=column)
        panel.set_yticks(range(len(rows)), [_wrapped(row["title"]) for row in rows], fontsize=8, color=INK)
        if index % _PANELS_PER_LINE:
            panel.tick_params(labelleft=False)
        better = ", lower is better" if column["is_lower_better"] else ""
        panel.set_title(f"{column['title']}{better}", fontsize=9, color=INK, loc="left")
    return _picture(figure, title=record["title"])


def _bar_panel(panel: Any, entries: Sequence[Record], *, base: Record | None, column: Record) -> None:
    """Draw the rows of a column; with `base`, their differences to it."""
    extents = [0.0]
    for position, entry in enumerate(entries):
        paper = entry["paper"]
        if base is not None:
            paper = None if paper is None or base["paper"] is None else paper - base["paper"]
        if paper is not None:
            panel.barh(position - _BAR / 2, paper, height=_BAR, color=PAPER)
            _label(panel, paper, position - _BAR / 2, column=column, is_signed=base is not None)
            extents.append(paper)
        if not entry["values"] or (base is not None and not base["values"]):
            continue
        origin = base["mean"] if base is not None else 0.0
        mean, deviation = entry["mean"] - origin, entry["sd"] or 0.0
        at = position + _BAR / 2
        panel.barh(at, mean, height=_BAR, color=OURS, xerr=deviation or None, ecolor=SEEDS, capsize=2)
        values = [value - origin for value in entry["values"]]
        if len(values) > 1:
            panel.plot(values, [at] * len(values), linestyle="", marker="o", markersize=2.2, color=SEEDS)
        extents += [mean + deviation, mean - deviation, *values]
        end = max(mean + deviation, *values) if mean >= 0 else min(mean - deviation, *values)
        _label(panel, end, at, column=column, is_signed=base is not None, shown=mean)
    low, high = min(extents), max(extents)
    room = 0.3 * (high - low or 1.0)
    panel.set_xlim(low - room if low < 0 else 0.0, high + room)
    panel.axvline(0.0, color=MUTED, linewidth=0.8)
    panel.invert_yaxis()


def _label(panel: Any, end: float, at: float, *, column: Record, is_signed: bool, shown: float | None = None) -> None:
    value = end if shown is None else shown
    digits = 1 if column["percent"] else 2
    text = f"{value:+.{digits}f}" if is_signed else f"{value:.{digits}f}"
    side = -1 if value < 0 else 1
    place = {"xytext": (3 * side, 0), "textcoords": "offset points", "va": "center"}
    panel.annotate(text, (end, at), ha="left" if side > 0 else "right", fontsize=7, color=INK, **place)


def _curves(record: Record) -> str:
    columns = [c for c in record["columns"] if any(_is_shown(row["cells"][c["key"]]) for row in record["rows"])]
    figure, axes = _panels(len(columns), height=2.9, labels=0.5)
    names = list(dict.fromkeys(row["curve"] for row in record["rows"]))
    for column, panel in zip(columns, axes, strict=True):
        for name, color in zip(names, CURVES, strict=False):
            rows = [row for row in record["rows"] if row["curve"] == name]
            entries = [(100 * row["point"], row["cells"][column["key"]]) for row in rows]
            paper = [(x, entry["paper"]) for x, entry in entries if entry["paper"] is not None]
            if paper:
                panel.plot(*zip(*paper, strict=True), color=color, linestyle=":", linewidth=1.2, label=f"{name}, paper")
            own = [(x, entry["mean"], entry["sd"] or 0.0) for x, entry in entries if entry["values"]]
            if own:
                x, means, deviations = zip(*own, strict=True)
                panel.errorbar(
                    x, means, yerr=deviations, color=color, marker="o", markersize=3, capsize=2, label=f"{name}, ours"
                )
        panel.set_title(column["title"], fontsize=9, color=INK, loc="left")
        panel.set_xlabel("% of the steps", fontsize=8, color=MUTED)
        panel.legend(fontsize=6.5, frameon=False)
    return _picture(figure, title=record["title"])


def _panels(count: int, *, height: float, labels: float = _LABEL_INCHES) -> tuple[Any, list[Any]]:
    """Return a picture and its panels, `_PANELS_PER_LINE` in a line."""
    from matplotlib.figure import Figure

    across = min(max(count, 1), _PANELS_PER_LINE)
    lines = -(-max(count, 1) // across)
    size = (labels + across * _PANEL_INCHES, lines * height)
    figure = Figure(figsize=size, layout="constrained")
    panels = [figure.add_subplot(lines, across, index + 1) for index in range(count)]
    for panel in panels:
        panel.tick_params(labelsize=7, colors=MUTED, length=0)
        panel.grid(axis="x", color=GRID, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.grid(visible=False, axis="y")
        for side in ("left", "bottom"):
            panel.spines[side].set_visible(False)
    return figure, panels


def _picture(figure: Any, *, title: str) -> str:
    """Return a picture as an SVG element with a largest width."""
    width = figure.get_figwidth() * _PIXELS_PER_INCH
    return svg(figure, title=title).replace("<svg ", f'<svg style="max-width:{width:.0f}px" ', 1)


def _is_shown(entry: Record) -> bool:
    return entry["paper"] is not None or bool(entry["values"])


def _wrapped(title: str, *, width: int = 26) -> str:
    """Return a row's title in lines."""
    lines = [""]
    for word in title.split():
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
