"""The training part of a data set by name, read as it is needed: what ``load_dataset`` holds in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from jaxdistill.data.datasets import (
    checked_classes,
    checked_inputs,
    checked_names,
    checked_targets,
    data_folder,
    held_out_rows,
    load_dataset,
)
from jaxdistill.data.rows import AbstractRows, ChunkRows, Pair
from jaxdistill.data.stored import JoinedRows, StoredRows, open_rows
from jaxdistill.errors import DatasetError
from jaxdistill.numerics.arrays import as_array


@final
@dataclass(frozen=True, eq=False)
class OpenedDataset:
    """The training part of a data set; made by :func:`open_training`.

    Args:
        name: As that of a :class:`~jaxdistill.data.datasets.Dataset`.
        rows: Images or a table, and classes (b,) or real targets (b,t), as a data set in memory has them.
        class_names: One name per class, or None for regression.
    """

    name: str
    rows: AbstractRows
    class_names: tuple[str, ...] | None


@final
@dataclass(frozen=True, eq=False)
class CheckedRows(AbstractRows):
    """Rows as they are stored, converted and checked as they are read.

    Args:
        rows: Images or a table, classes or targets, of a type that they may have in a data set.
        name: Name of the data set.
        pixels: As for :func:`open_training`.
    """

    rows: AbstractRows
    name: str
    pixels: bool = False
    once = False

    @property
    def num_rows(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of rows."""
        return self.rows.num_rows

    def pieces(self, start: int = 0) -> Iterator[Pair]:
        """Inputs and targets of consecutive rows."""
        row = start
        for x, y in self.rows.pieces(start):
            x, y = as_array("x_train", x), as_array("y_train", y)
            x = checked_inputs(self.name, "x_train", x, row, pixels=self.pixels)
            yield x, checked_targets(self.name, "y_train", y, row)
            row += len(y)


@final
@dataclass(frozen=True, eq=False)
class ChosenRows(AbstractRows):
    """Some of the rows, in their order.

    Args:
        rows: All of them.
        chosen: Which, shape (n,).

    Example:
        >>> rows = ChunkRows([(np.arange(4.0), np.arange(4))])
        >>> [x.tolist() for x, y in ChosenRows(rows, np.array([True, False, True, True])).pieces(start=1)]
        [[2.0, 3.0]]
    """

    rows: AbstractRows
    chosen: np.ndarray
    once = False

    @property
    def num_rows(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - known here
        """Number of rows that are chosen."""
        return int(self.chosen.sum())

    def pieces(self, start: int = 0) -> Iterator[Pair]:
        """Inputs and targets of consecutive rows that are chosen."""
        places = np.flatnonzero(self.chosen)
        if start >= len(places):
            return
        row = int(places[start])
        for x, y in self.rows.pieces(row):
            keep = self.chosen[row : row + len(y)]
            row += len(y)
            if keep.any():
                yield x[keep], y[keep]


def open_training(name: str | os.PathLike[str], *, pixels: bool = False) -> OpenedDataset:
    """Open a data set by name or from files, of which the labels alone are read now.

    Args:
        name: As for :func:`~jaxdistill.data.datasets.load_dataset`, of whose files the test part is not
            needed; or the path of a folder of .npz pieces, each with arrays x and y.
        pixels: Likewise, of the images in every piece.

    Returns:
        What :func:`~jaxdistill.data.datasets.load_dataset` has in ``x_train`` and ``y_train``.

    Raises:
        DatasetError: as :func:`~jaxdistill.data.datasets.load_dataset`; some of it while rows are read.

    Example:
        >>> data = open_training("digits")
        >>> data.rows.num_rows, len(data.class_names)
        (1438, 10)
    """
    name = os.fspath(name)
    if name == "digits":
        data = load_dataset(name)
        rows = ChunkRows([(data.x_train, data.y_train)], num_rows=len(data.y_train))
        return OpenedDataset(name, rows, data.class_names)
    if name.endswith(".npz"):
        return _open_npz(Path(name).expanduser(), pixels)
    if os.sep in name and Path(name).expanduser().is_dir():
        path = Path(name).expanduser()
        return _of_stored(path.name, open_rows(path), None, pixels)
    folder = data_folder()
    if folder is not None and (folder / f"{name}.npz").is_file():
        return _open_npz(folder / f"{name}.npz", pixels)

    from jaxdistill.data import tfds_source

    train, test = tfds_source.open_parts(name, folder)
    labels = train.labels()
    rows: AbstractRows = train
    if test is None:
        chosen = ~held_out_rows(labels)
        rows, labels = ChosenRows(train, chosen), labels[chosen]
    names = checked_classes(name, {"y_train": labels}, train.class_names)
    return OpenedDataset(name, CheckedRows(rows, name, pixels), names)


def _open_npz(path: Path, pixels: bool) -> OpenedDataset:
    rows = open_rows(path, x="x_train", y="y_train")
    with np.load(path, allow_pickle=False) as file:  # which is sound, or it would not be open
        names = checked_names(path, np.asarray(file["class_names"])) if "class_names" in file else None
    return _of_stored(path.stem, rows, names, pixels)


def _of_stored(
    name: str, rows: StoredRows | JoinedRows, class_names: tuple[str, ...] | None, pixels: bool
) -> OpenedDataset:
    """Rows of files; of classes the numbers of all rows are checked before any other is read."""
    if not rows.num_rows:
        raise DatasetError(f"{name} holds no training example; save some")
    targets = [part.y for part in (rows.parts if isinstance(rows, JoinedRows) else (rows,))]
    if targets[0].dtype.kind == "f":
        if class_names is not None:
            raise DatasetError(
                f"{name} has class names, but float labels; save y_train as integers, or leave the class "
                "names out for regression"
            )
        return OpenedDataset(name, CheckedRows(rows, name, pixels), None)
    parts = [np.concatenate(list(one.read(0, max(1, one.shape[0])))) for one in targets if one.shape[0]]
    labels = checked_targets(name, "y_train", as_array("y_train", np.concatenate(parts)))
    names = checked_classes(name, {"y_train": labels}, class_names)
    return OpenedDataset(name, CheckedRows(rows, name, pixels), names)
