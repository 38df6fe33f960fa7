"""Rows of arrays in files: .npy, members of .npz, folders of .npz pieces; never all of them in memory."""

from __future__ import annotations

import math
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np

from jaxdistill.data.rows import AbstractRows, Pair
from jaxdistill.errors import DatasetError

# Bytes of one piece of an array: large beside what a read costs, small even once bytes became float64.
_PIECE_BYTES = 2**22

_HEADERS: dict[Any, Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Bytes of a zip's local header before the name, and where it keeps the lengths of what follows them.
_LOCAL, _LENGTHS = 30, struct.Struct("<26xHH")


@final
@dataclass(frozen=True)
class StoredArray:
    """An array in a file, of which rows are read when they are asked for.

    Args:
        path: The file.
        member: Name of the array in an .npz, or None for a .npy.
        shape: Its shape.
        dtype: Its type.
        fortran: Whether its first index runs fastest.
        offset: Where its numbers begin in the file; None where they are compressed.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int | None

    @classmethod
    def open(cls, path: str | os.PathLike[str], member: str | None = None) -> StoredArray:
        """Read the header of an array, and check it against the bytes that are there.

        Args:
            path: A .npy, or an .npz.
            member: Name of an array in an .npz.

        Raises:
            DatasetError: there is no such array, it holds Python objects, or it is damaged or cut off.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     np.savez(Path(folder) / "data.npz", x=np.ones((5, 3), np.float32))
            ...     StoredArray.open(Path(folder) / "data.npz", "x").shape
            (5, 3)
        """
        path = Path(path)
        name = f"{path}" if member is None else f"{member!r} of {path}"
        try:
            with path.open("rb") as file, warnings.catch_warnings():
                warnings.simplefilter("error")  # what NumPy warns of, it would not have written
                if member is None:
                    shape, fortran, dtype = _read_header(file, name)
                    return _checked(
                        cls(path, None, shape, dtype, fortran, file.tell()), path.stat().st_size, name
                    )
                with zipfile.ZipFile(file) as archive:
                    return cls._of_member(path, file, archive, member, name)
        except DatasetError:
            raise
        except FileNotFoundError:
            raise DatasetError(f"{path} does not exist; name a .npy or an .npz file") from None
        except Exception as error:  # whatever a damaged file makes zipfile and NumPy raise
            reason = " ".join(str(error).split())[:160]
            raise DatasetError(f"{name} is damaged or cut off ({reason}); copy it again") from None

    @classmethod
    def _of_member(
        cls, path: Path, file: BinaryIO, archive: zipfile.ZipFile, member: str, name: str
    ) -> StoredArray:
        names = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if member not in names:
            raise DatasetError(f"{path} has no array {member!r}; it has {', '.join(sorted(names)) or 'none'}")
        info = names[member]
        with archive.open(info) as stream:
            shape, fortran, dtype = _read_header(stream, name)
            begin = stream.tell()
        found = cls(path, member, shape, dtype, fortran, None)
        if info.compress_type != zipfile.ZIP_STORED:
            if fortran and len(shape) > 1:
                raise DatasetError(f"{name} is compressed and in Fortran order; save it in C order")
            return _checked(found, begin, name, info.file_size)
        # The local header may be longer than the one of the directory: read it.
        file.seek(info.header_offset)
        lengths = _LENGTHS.unpack(file.read(_LOCAL))
        offset = info.header_offset + _LOCAL + sum(lengths) + begin
        whole = cls(path, member, shape, dtype, fortran, offset)
        return _checked(whole, path.stat().st_size, name, offset - begin + info.file_size)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read(self, start: int, step: int) -> Iterator[np.ndarray]:
        """Rows from ``start`` on, ``step`` at a time, each array a copy in memory.

        Args:
            start: The first row.
            step: Rows in a piece.

        Raises:
            DatasetError: the file changed since it was opened.
        """
        try:
            if self.offset is None:
                yield from self._decompress(start, step)
                return
            for first in range(start, self.shape[0], step):
                # Mapped anew for every piece: pages of earlier ones are no memory of ours any more.
                rows = np.memmap(
                    self.path, self.dtype, "r", self.offset, self.shape, "F" if self.fortran else "C"
                )
                yield np.array(rows[first : first + step])
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            reason = " ".join(str(error).split())[:160]
            raise DatasetError(f"{self.path} cannot be read any more ({reason}); copy it again") from None

    def _decompress(self, start: int, step: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.member}.npy") as stream:
            _read_header(stream, str(self.path))
            self._skip(stream, start * self.row_bytes)
            for first in range(start, self.shape[0], step):
                rows = min(step, self.shape[0] - first)
                content = stream.read(rows * self.row_bytes)
                if len(content) < rows * self.row_bytes:
                    raise EOFError(f"it ends within rows {first} to {first + rows - 1}")
                yield np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:])

    @staticmethod
    def _skip(stream: Any, number: int) -> None:
        while number > 0:
            number -= len(stream.read(min(number, _PIECE_BYTES))) or number


def _read_header(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise DatasetError(f"{name} has NumPy's format {version}; save it again with numpy.save")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise DatasetError(f"{name} holds Python objects, which could run code; save plain numbers")
    if len(shape) == 0:
        raise DatasetError(f"{name} is a single number; save an array with a row an example")
    return shape, fortran, dtype


def _checked(array: StoredArray, end: int, name: str, size: int | None = None) -> StoredArray:
    """The array, if all of its bytes are there."""
    begin = end if array.offset is None else array.offset
    declared = begin + array.shape[0] * array.row_bytes
    there = end if size is None else size if array.offset is None else min(end, size)
    if declared != there:
        raise DatasetError(
            f"{name} declares shape {array.shape} of {array.dtype}, {declared} bytes with what is before it, "
            f"and has {there}; copy it again"
        )
    return array


@final
@dataclass(frozen=True, eq=False)
class StoredRows(AbstractRows):
    """Inputs and targets from two arrays in files, in pieces of some megabytes; made by :func:`open_rows`.

    Args:
        x: Inputs, n rows.
        y: Targets, n rows.
    """

    x: StoredArray
    y: StoredArray
    once = False

    def __post_init__(self) -> None:
        if self.x.shape[0] != self.y.shape[0]:
            raise DatasetError(
                f"{self.x.path} has {self.x.shape[0]} inputs and {self.y.path} {self.y.shape[0]} targets; "
                "they must be of the same examples"
            )

    @property
    def num_rows(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - known here
        """Number of rows."""
        return self.x.shape[0]

    def pieces(self, start: int = 0) -> Iterator[Pair]:
        """Inputs and targets of consecutive rows, from row ``start`` on."""
        step = max(1, _PIECE_BYTES // max(1, self.x.row_bytes + self.y.row_bytes))
        return zip(self.x.read(start, step), self.y.read(start, step), strict=True)


@final
@dataclass(frozen=True, eq=False)
class JoinedRows(AbstractRows):
    """Parts one after the other.

    Args:
        parts: Rows that can be read again, at least one.
    """

    parts: tuple[StoredRows, ...]
    once = False

    @property
    def num_rows(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - known here
        """Number of rows in all."""
        return sum(part.num_rows for part in self.parts)

    def pieces(self, start: int = 0) -> Iterator[Pair]:
        """Inputs and targets of consecutive rows, from row ``start`` on."""
        for part in self.parts:
            if start < part.num_rows:
                yield from part.pieces(start)
            start = max(0, start - part.num_rows)


def open_rows(
    path: str | os.PathLike[str], targets: str | os.PathLike[str] | None = None, *, x: str = "x", y: str = "y"
) -> StoredRows | JoinedRows:
    """Examples in files, whose headers alone are read now.

    Args:
        path: An .npz; a folder of .npz pieces, read in the order of their names; or the .npy of the inputs.
        targets: The .npy of the targets, beside one of inputs.
        x: Name of the inputs in an .npz, such as "x_train".
        y: Name of the targets in an .npz.

    Returns:
        Rows, of whatever shape and type they have: :meth:`~jaxdistill.data.rows.AbstractRows.map` makes
        inputs and targets of them.

    Raises:
        DatasetError: a file or an array that is not there, is damaged, or does not fit the others.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(2):
        ...         np.savez(Path(folder) / f"{i}.npz", x=np.ones((3, 2)), y=np.ones((3, 1)))
        ...     rows = open_rows(folder)
        ...     rows.num_rows, [len(piece) for piece, _ in rows.pieces(start=4)]
        (6, [2])
    """
    path = Path(path)
    if targets is not None:
        return StoredRows(StoredArray.open(path), StoredArray.open(targets))
    if path.suffix == ".npy":
        raise DatasetError(f"{path} holds inputs alone; name the .npy of the targets too")
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise DatasetError(f"{path} holds no .npz; put the pieces there, each with arrays {x!r} and {y!r}")
    parts = tuple(StoredRows(StoredArray.open(file, x), StoredArray.open(file, y)) for file in files)
    for part in parts[1:]:
        for name, one, other in (("inputs", part.x, parts[0].x), ("targets", part.y, parts[0].y)):
            if (one.shape[1:], one.dtype) != (other.shape[1:], other.dtype):
                raise DatasetError(
                    f"{one.path} has {name} of shape {one.shape[1:]} and type {one.dtype}, {other.path} "
                    f"{other.shape[1:]} and {other.dtype}; save all pieces alike"
                )
    return parts[0] if len(parts) == 1 else JoinedRows(parts)
