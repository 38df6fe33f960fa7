"""Examples where they lie: pairs of inputs and targets, read piece by piece, from any row on."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from jaxdistill.errors import InputError

Pair = tuple[Any, Any]


class AbstractRows(abc.ABC):
    """Examples in a fixed order that need not fit into memory.

    - ``num_rows``: n, or None where it is not known before the end;
    - ``once``: whether they can be read one time only;
    - ``pieces(start)``: inputs and targets of consecutive rows, in pieces of any size.
    """

    num_rows: int | None
    once: bool

    @abc.abstractmethod
    def pieces(self, start: int = 0) -> Iterator[Pair]:
        """Inputs and targets of consecutive rows, from row ``start`` on."""

    def map(
        self, *, inputs: Callable[[Any], Any] | None = None, targets: Callable[[Any], Any] | None = None
    ) -> MappedRows:
        """The same rows, with inputs and targets changed as they are read, each row by itself.

        Args:
            inputs: Of the inputs of a piece; default as they are.
            targets: Of the targets of a piece; default as they are.
        """
        return MappedRows(self, inputs, targets)


@final
@dataclass(frozen=True, eq=False)
class MappedRows(AbstractRows):
    """Rows that are changed as they are read; made by :meth:`AbstractRows.map`.

    Args:
        rows: As they lie.
        inputs: Of the inputs of a piece, or None.
        targets: Of the targets of a piece, or None.

    Example:
        >>> import numpy as np
        >>> rows = ChunkRows([(np.ones((2, 3)), np.array([0, 1]))])
        >>> mapped = rows.map(inputs=lambda x: x / 2, targets=lambda y: np.eye(2)[y])
        >>> [(x[0, 0].item(), y.shape) for x, y in mapped.pieces()]
        [(0.5, (2, 2))]
    """

    rows: AbstractRows
    inputs: Callable[[Any], Any] | None
    targets: Callable[[Any], Any] | None

    @property
    def num_rows(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of rows, where it is known."""
        return self.rows.num_rows

    @property
    def once(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether they can be read one time only."""
        return self.rows.once

    def pieces(self, start: int = 0) -> Iterator[Pair]:
        """Inputs and targets of consecutive rows, changed."""
        for x, y in self.rows.pieces(start):
            yield (
                x if self.inputs is None else self.inputs(x),
                y if self.targets is None else self.targets(y),
            )


@final
@dataclass(frozen=True, eq=False)
class ChunkRows(AbstractRows):
    """Whatever yields pairs of inputs and targets, a chunk of rows each.

    Args:
        chunks: An iterable of pairs ``(x, y)``; or a function that returns a fresh one, such as a generator
            function. An iterator can be read once, which is too little where two passes are needed.
        num_rows: Rows in all, where they are known: a stream that ends before is an error.

    Raises:
        InputError: it is neither, or yields something else than pairs with as many inputs as targets.

    Example:
        >>> import numpy as np
        >>> rows = ChunkRows(lambda: ((np.ones((2, 3)), np.ones((2, 1))) for _ in range(3)))
        >>> [len(x) for x, y in rows.pieces(start=3)]
        [1, 2]
    """

    chunks: Callable[[], Iterable[Pair]] | Iterable[Pair]
    num_rows: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.chunks, (str, bytes)) or not (
            callable(self.chunks) or isinstance(self.chunks, Iterable)
        ):
            raise InputError(
                f"chunks of (x, y) come from an iterable or from a function, not from "
                f"{type(self.chunks).__name__}; files are opened by jaxdistill.data.stored.open_rows"
            )

    @property
    def once(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether they are an iterator."""
        return isinstance(self.chunks, Iterator)

    def pieces(self, start: int = 0) -> Iterator[Pair]:
        """Inputs and targets of consecutive rows, from row ``start`` on; those before are read too."""
        chunks = self.chunks() if callable(self.chunks) else self.chunks
        if not isinstance(chunks, Iterable):
            raise InputError(f"the function of chunks returned {type(chunks).__name__}, and no iterable")
        first = 0
        for number, chunk in enumerate(chunks):
            if not (isinstance(chunk, (tuple, list)) and len(chunk) == 2):
                raise InputError(f"chunk {number} is a {type(chunk).__name__}; give pairs (x, y)")
            x, y = chunk
            sizes = [len(part) if hasattr(part, "__len__") else None for part in chunk]
            if None in sizes or sizes[0] != sizes[1]:
                raise InputError(
                    f"chunk {number} has {sizes[0]} inputs and {sizes[1]} targets; give one row of targets "
                    "an example"
                )
            size = sizes[0] or 0
            skipped = min(max(start - first, 0), size)
            first += size
            if skipped < size or start == 0:
                yield (x[skipped:], y[skipped:]) if skipped else (x, y)


def recut(pieces: Iterable[tuple[Any, ...]], size: int) -> Iterator[tuple[Any, ...]]:
    """The same rows in pieces of one size, the last one shorter; views where they lie within one piece.

    Args:
        pieces: Arrays with the same number of rows in each piece.
        size: Rows in a piece.

    Example:
        >>> [x.tolist() for (x,) in recut([(np.arange(3),), (np.arange(3, 5),)], 2)]
        [[0, 1], [2, 3], [4]]
    """
    held: list[tuple[Any, ...]] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece[0])
        if count < size:
            continue
        parts = held[0] if len(held) == 1 else tuple(map(np.concatenate, zip(*held, strict=True)))
        whole = count - count % size
        for first in range(0, whole, size):
            yield tuple(part[first : first + size] for part in parts)
        # A copy, so that the rest does not keep its piece alive.
        held = [tuple(part[whole:].copy() for part in parts)] if count > whole else []
        count -= whole
    if count:
        yield tuple(map(np.concatenate, zip(*held, strict=True)))


def check_finite_piece(name: str, part: np.ndarray, number: int, row: int) -> None:
    """Raise where a piece holds a value that is not finite.

    Args:
        name: What it is called in a message.
        part: Inputs or targets of a piece, in floating point.
        number: Of the piece.
        row: Of all rows the first that it holds.

    Raises:
        InputError: names chunk, row and column.

    Example:
        >>> check_finite_piece("inputs", np.ones((2, 3)), 3, 20)
    """
    # A sum is one pass without a temporary; only where it is not finite the place is looked for.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.sum(part, dtype=np.float64)):
            return
    places = np.argwhere(~np.isfinite(part.reshape(len(part), -1)))
    if len(places):
        r, column = (int(i) for i in places[0])
        value = part.reshape(len(part), -1)[r, column]
        raise InputError(
            f"chunk {number} has {value} in column {column} of the {name}, in its row {r}, "
            f"row {row + r} of all; mend it or leave that example out"
        )
