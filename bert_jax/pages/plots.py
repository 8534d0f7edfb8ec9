"""Plots as SVG, by matplotlib (extra `report`), without a display and without its global state."""

import io
import re
from collections.abc import Mapping
from typing import Any, cast

from bert_jax.errors import UserError
from bert_jax.pages.panels import Line, Panel
from bert_jax.pages.run_files import Points
from bert_jax.runs.goodput import KINDS

MOST_POINTS = 600  # of a line: a plot is some 500 pixels wide
_SIZE = (4.1, 2.5)  # inches: with a font of 9 points readable where a plot is 350 pixels wide
_COLORS = ("#1f5fa8", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#0e7490", "#be185d", "#4d7c0f")
_MOST_COLORED = len(_COLORS)
_GRAY = "#9aa3ad"
_SETTINGS = {
    "svg.fonttype": "none",  # text stays text: it takes the fonts of the page and can be searched
    "svg.hashsalt": "bert_jax",  # else the names of clip paths would differ between pages
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9aa3ad",
    "axes.axisbelow": True,
}


def draw_panel(panel: Panel) -> str:
    """Return a panel as an SVG element.

    Raises:
      UserError: if matplotlib is not installed.
    """
    with settings():
        figure, axes = _figure()
        many = len(panel.lines) > _MOST_COLORED
        for number, line in enumerate(panel.lines):
            color = _GRAY if many else _COLORS[number % _MOST_COLORED]
            _draw_line(axes, line, color="#6b7280" if line.style == "baseline" else color)
        axes.set_xlabel("step")
        axes.set_ylabel(panel.unit)
        if panel.is_log and all(value > 0 for line in panel.lines for _, value in line.points):
            axes.set_yscale("log")
        else:
            axes.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.02)
        if not many and any(line.label for line in panel.lines) and len(panel.lines) > 1:
            axes.legend(frameon=False, fontsize=8)
        return svg(figure, title=panel.title)


def draw_seconds(seconds: Mapping[str, float]) -> str:
    """Return where wall time went as an SVG element of bars; kinds without time are left out.

    Raises:
      UserError: if matplotlib is not installed.
    """
    shown = {KINDS.get(kind, kind): value for kind, value in seconds.items() if value > 0}
    whole = sum(shown.values())
    with settings():
        figure, axes = _figure()
        names = list(shown)[::-1]
        fractions = [100 * shown[name] / whole for name in names]
        bars = axes.barh(names, fractions, color=[_COLORS[2] if name == KINDS["useful"] else _GRAY for name in names])
        axes.bar_label(bars, labels=[f"{value:.1f} %" for value in fractions], padding=3, fontsize=8)
        axes.set_xlabel("percent of wall time")
        axes.set_xlim(0, 112)
        axes.grid(visible=False, axis="y")
        return svg(figure, title="Where wall time went")


def thin(points: Points, *, most: int = MOST_POINTS) -> Points:
    """Return at most `most` points: the means of equal groups of consecutive ones."""
    if len(points) <= most:
        return points
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _draw_line(axes: Any, line: Line, *, color: str) -> None:
    points = thin(line.points)
    steps, values = [step for step, _ in points], [value for _, value in points]
    style: dict[str, Any] = {
        "train": {"linewidth": 1.2},
        "eval": {"linewidth": 1.2, "marker": "o", "markersize": 3},
    }.get(line.style, {"linewidth": 1.2, "linestyle": "--"})
    if len(points) == 1:
        style["marker"] = "o"
    axes.plot(steps, values, label=line.label or None, color=color, **style)


def settings() -> Any:
    """Return a context with the settings of all plots.

    Raises:
      UserError: if matplotlib is not installed.
    """
    try:
        import matplotlib  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("report.html needs matplotlib: pip install 'bert_jax[report]'") from error
    return matplotlib.rc_context(cast(Any, _SETTINGS))


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=_SIZE, layout="constrained")
    return figure, figure.subplots()


def svg(figure: Any, *, title: str) -> str:
    """Return the plot as an element that scales with the page, with its title for screen readers."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Title": title}, transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Names of groups repeat from plot to plot, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    return re.sub(
        r'(<svg [^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
