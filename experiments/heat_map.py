"""Matrices of numbers as pictures, each cell with its value, saved as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdistill.numerics.files import write_atomically

# Share of the values, in per cent, that are as dark as colours go.
_DARKEST = 15


class HeatMap(NamedTuple):
    """One matrix.

    Args:
        title: Above it.
        rows: Names of the rows.
        columns: Names of the columns.
        values: Numbers, shape (rows, columns); NaN leaves a cell empty.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray


def draw_heat_maps(
    maps: Sequence[HeatMap], path: Path, *, row_label: str, column_label: str, unit: str, note: str = ""
) -> Path:
    """Draw matrices side by side, with one scale of colours, whose darkest is shared by the lowest values.

    Args:
        maps: What to draw.
        path: File to write.
        row_label: What the rows are.
        column_label: What the columns are.
        unit: What the numbers are, beside the scale.
        note: A line below the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = np.concatenate([one.values.ravel() for one in maps])
    # A few values far below the rest would leave all others one colour.
    low, high = (float(end) for end in np.nanpercentile(values, (_DARKEST, 100)))
    width = sum(1.3 + 0.58 * len(one.columns) for one in maps) + 0.6
    height = 1.9 + 0.42 * max(len(one.rows) for one in maps)
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(1, len(maps), squeeze=False)[0]
    for number, (axes, one) in enumerate(zip(plots, maps, strict=True)):
        axes.imshow(one.values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        for (i, j), value in np.ndenumerate(one.values):
            if np.isnan(value):
                continue
            bright = value > low + 0.6 * (high - low)
            colour = "black" if bright else "white"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(one.columns)), one.columns, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(one.rows)), one.rows, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(one.title, fontsize=10)
        axes.set_xlabel(column_label, fontsize=9)
        if number == 0:
            axes.set_ylabel(row_label, fontsize=9)
    beyond = "min" if np.nanmin(values) < low else "neither"
    bar = figure.colorbar(plots[0].images[0], ax=list(plots), pad=0.01, extend=beyond)
    bar.set_label(unit, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if note:
        figure.supxlabel(note, fontsize=7, color="0.35", x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())
