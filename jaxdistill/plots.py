"""Pictures of distilled images; matplotlib is imported inside."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdistill.numerics.files import write_atomically

MOST_COLUMNS = 20


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

    Images in [0, 1] up to a tenth are shown as they are; others are stretched, each to its own extremes,
    and the row says so. A table row (d,) is drawn as a square heat map.

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
    width, height = 1.6 + 0.8 * columns, above + below + 0.85 * len(rows)
    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        shown = [as_picture(image) for image in row.images[:columns]]
        stretched = any(not natural for _, natural in shown)
        for ax in line:
            ax.set_axis_off()
        for ax, (picture, _) in zip(line, shown, strict=False):
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        title = row.title + ("\n(stretched)" if stretched else "")
        line[0].text(-0.15, 0.5, title, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    if names is not None:
        for ax, name in zip(axes[0], names, strict=False):
            ax.set_title(name if len(name) <= 10 else f"{name[:9]}…", fontsize=8)
    if note:
        figure.text(0.01, 0.06 / height, note, fontsize=7, color="0.35")
    figure.subplots_adjust(
        left=1.5 / width, right=0.99, top=1 - above / height, bottom=below / height, wspace=0.08, hspace=0.1
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


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
        image = (image - low) / (high - low)
    return np.clip(image, 0, 1), natural
