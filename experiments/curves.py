"""Curves over images per class, steps or seconds, saved as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.numerics.files import write_atomically

# Curves whose legend still finds room inside the axes.
MOST_INSIDE = 4


class Curve(NamedTuple):
    """One line of a panel.

    Args:
        label: Its name in the legend.
        x: Abscissae.
        y: Ordinates, of the same length.
        style: matplotlib's format of line and marker.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "o-"


class Panel(NamedTuple):
    """One pair of axes.

    Args:
        title: Above the axes.
        x_label: What is on the abscissa, with its unit.
        y_label: What is on the ordinate, with its unit.
        curves: Lines.
        log_x: Whether the abscissa is logarithmic.
        log_y: Whether the ordinate is logarithmic.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_x: bool = True
    log_y: bool = False


def draw_panels(panels: Sequence[Panel], path: Path, note: str = "") -> Path:
    """Draw panels side by side, each with its legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for curve in panel.curves:
            axes.plot(curve.x, curve.y, curve.style, label=curve.label, markersize=4, linewidth=1.2)
        for axis, log in ((axes.xaxis, panel.log_x), (axes.yaxis, panel.log_y)):
            if log:
                _logarithmic(axis)
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axes.grid(alpha=0.3)
        crowded = len(panel.curves) > MOST_INSIDE
        axes.legend(fontsize=7, **({"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if crowded else {}))
    if note:
        figure.supxlabel(note, fontsize=7, color="0.35", x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def _logarithmic(axis: Any) -> None:
    """A logarithmic axis, whose ticks are plain numbers where it spans less than three decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    low, high = axis.get_data_interval()
    if high < 1000 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
