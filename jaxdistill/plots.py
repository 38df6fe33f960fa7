"""Pictures of distilled images; matplotlib is imported inside."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdistill.numerics.files import write_atomically

MOST_COLUMNS = 20
# Inches: the place of the titles, the side of a cell, and the margin in it.
_LEFT, _CELL, _GAP = 1.5, 0.8, 0.03


class Row(NamedTuple):
    """One row of pictures.

    Args:
        title: What the row shows, to its left.
        images: Examples, shape (c, H, W, C) or, of a table, (c, d).
    """

    title: str
    images: np.ndarray


def draw_rows(
    rows: Sequence[Row], names: Sequence[str] | None, path: str | os.PathLike[str], note: str = ""
) -> Path:
    """Draw rows of images below each other, class names above, and save them as PNG.

    Images in [0, 1] up to a tenth are shown as they are; others are stretched, each to its own extremes (a
    constant one is grey), and the row says so. A table row (d,) is drawn as a square heat map.

    Args:
        rows: What to draw, all with the same number of columns or fewer.
        names: One name a column, or None.
        path: File to write.
        note: A line below the picture.

    Returns:
        The path.

    Raises:
        OutputError: the file cannot be written.
    """
    # The figure is drawn without pyplot, which would choose a display and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(MOST_COLUMNS, max(len(row.images) for row in rows))
    above, below = (0.3 if names is not None else 0.08), (0.3 if note else 0.08)
    width, height = _LEFT + _CELL * columns, above + below + _CELL * len(rows)
    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    # One pair of axes in inches, from the top: a pair for every image would take most of the time.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    # Names are what they are: a dollar sign begins no formula.
    write = partial(axes.text, parse_math=False)
    for line, row in enumerate(rows):
        top = above + _CELL * line
        shown = [as_picture(image) for image in row.images[:columns]]
        for column, (picture, _) in enumerate(shown):
            extent = _placed(picture.shape, _LEFT + _CELL * column, top)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
        stretched = any(not natural for _, natural in shown)
        title = row.title + ("\n(stretched)" if stretched else "")
        write(_LEFT - 0.1, top + _CELL / 2, title, ha="right", va="center", fontsize=8)
    for column, name in enumerate(names[:columns] if names is not None else ()):
        text = name if len(name) <= 10 else f"{name[:9]}…"
        axes.text(_LEFT + _CELL * (column + 0.5), above - 0.06, text, ha="center", va="bottom", fontsize=8)
    if note:
        write(0.01 * width, height - 0.06, note, fontsize=7, color="0.35")
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box is drawn in its place
        figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def _placed(shape: tuple[int, ...], left: float, top: float) -> tuple[float, float, float, float]:
    """Where a picture of this shape lies in its cell, in the middle: left, right, bottom, top."""
    rows, columns = shape[:2]
    side = _CELL - 2 * _GAP
    across, down = side * columns / max(shape[:2]), side * rows / max(shape[:2])
    left, top = left + (_CELL - across) / 2, top + (_CELL - down) / 2
    return left, left + across, top + down, top


def as_picture(example: np.ndarray) -> tuple[np.ndarray, bool]:
    """One example as a grey or RGB picture in [0, 1], and whether that is its natural range.

    Example:
        >>> picture, natural = as_picture(np.linspace(-3.0, 3.0, 16).reshape(4, 4, 1))
        >>> picture.shape, float(picture.min()), float(picture.max()), natural
        ((4, 4), 0.0, 1.0, False)
    """
    image = np.asarray(example, np.float64)
    if image.ndim == 1:
        side = int(np.ceil(np.sqrt(image.size)))
        image = np.pad(image, (0, side * side - image.size), mode="edge").reshape(side, side)
    elif image.shape[-1] != 3:
        image = image[..., 0] if image.shape[-1] == 1 else image.mean(axis=-1)
    low, high = float(image.min()), float(image.max())
    natural = low >= -0.1 and high <= 1.1
    if not natural:
        image = (image - low) / (high - low) if high > low else np.full_like(image, 0.5)
    return np.clip(image, 0, 1), natural
