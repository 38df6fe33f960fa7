"""A source that is read as it is needed: checked, cut to equal chunks, and read ahead of the device."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar, final

import numpy as np

from jaxdistill.data.pixels import Pixels
from jaxdistill.data.preprocess import Identity, Standardize
from jaxdistill.data.rows import AbstractRows, ChunkRows, Pair, check_finite_piece, recut
from jaxdistill.errors import InputError
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.ridge.source import (
    NO_CLASSES,
    AbstractSource,
    ArraySource,
    Unprepared,
    chunk_rows,
    data_dtype_of,
    input_rows,
    unprepared,
)
from jaxdistill.ridge.targets import TargetKind, detect_targets

# Chunks that are read before the device asks for them.
_AHEAD = 2
# Rows of a stream of unknown length, for the size of its chunks.
_MANY = 2**62

T = TypeVar("T")


@dataclass(eq=False)
class _Seen:
    """What passes over a stream have found; the one thing about a source that changes."""

    rows: int | None = None
    kinds: set[TargetKind] = field(default_factory=set)
    pending: Iterator[Pair] | None = None


@final
@dataclass(frozen=True, eq=False)
class StreamSource(AbstractSource):
    """Rows from anywhere, in chunks of one size; made by :meth:`of`, which reads the first piece.

    Args:
        rows: Where they lie.
        num_inputs: d.
        num_targets: k.
        dtype: Type of the inputs.
        data_dtype: The coarsest type that holds those of the first piece.
        chunk_size: Rows in a chunk.
        seen: What passes have found.
        preprocess: What makes inputs of images in uint8, as those of the first piece are.

    Example:
        >>> source = StreamSource.of([(np.eye(3), np.ones((3, 1)))] * 2, num_inputs=3, breadth=8)
        >>> [x.shape for x, y in source.chunks()], source.num_rows
        ([(6, 3)], 6)
    """

    never_split: ClassVar[str] = (
        "a stream cannot hold rows out; give examples held out as (x, y), or leave validation at "
        "'leave-one-out'"
    )

    rows: AbstractRows
    num_inputs: int
    num_targets: int
    dtype: np.dtype
    data_dtype: np.dtype
    chunk_size: int
    seen: _Seen
    preprocess: Identity | Standardize | None = None

    @classmethod
    def of(cls, rows: Any, *, num_inputs: int | None, breadth: int) -> Self:
        """Look at the first piece, and choose the size of chunks by the features that are made of them.

        Args:
            rows: Rows, an iterable of pairs ``(x, y)``, or a function that returns a fresh one.
            num_inputs: d; None for whatever x has.
            breadth: Numbers that one input becomes.

        Raises:
            InputError: no rows, or shapes and types that do not fit.
        """
        rows = rows if isinstance(rows, AbstractRows) else ChunkRows(rows)
        pieces, read = iter(rows.pieces()), list[Pair]()
        for piece in pieces:
            read.append(piece)
            if len(piece[0]):
                break
        else:
            raise InputError("the stream holds no chunk with rows; an iterator may be used up already")
        number = len(read) - 1
        x, y = _floats(read[-1], number)
        if x.ndim != 2 or (num_inputs is not None and x.shape[1] != num_inputs):
            expected = "d" if num_inputs is None else num_inputs
            raise InputError(f"chunk {number} has inputs of shape {x.shape}, expected (rows, {expected})")
        if y.ndim != 2:
            raise InputError(
                f"chunk {number} has targets of shape {y.shape}, expected (rows, k); {NO_CLASSES}"
            )
        # Unlike arrays that are there anyway, chunks that wait take memory: inputs count too.
        n = _MANY if rows.num_rows is None else max(rows.num_rows, 1)
        size = chunk_rows(max(breadth, x.shape[1]), n)
        pending = itertools.chain(read, pieces) if rows.once else None
        told = x.shape[1], y.shape[1], x.dtype, data_dtype_of(x), size, _Seen(rows.num_rows, pending=pending)
        return cls(rows, *told, unprepared(x)[1])

    @property
    def num_rows(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of rows, known from the start or since the first pass."""
        return self.seen.rows

    @property
    def target_kind(self) -> TargetKind:
        """What the targets of all rows that were read so far are."""
        kinds = self.seen.kinds
        return next(iter(kinds)) if len(kinds) == 1 else TargetKind.REAL

    def chunks(self, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets of consecutive rows, from row ``start`` on, read ahead by a thread.

        Raises:
            InputError: a chunk that does not fit, a value that is not finite, a stream that ends early, or an
                iterator that is used up.
        """
        floats = ((np.asarray(x), y) for x, y in self._checked(start))
        return prefetched(recut(floats, self.chunk_size), _AHEAD)

    def unprepared(self, start: int = 0) -> Unprepared:
        """The same chunks, of images in uint8 as bytes; and what makes inputs of these, or None."""
        bytes_alone = ((unprepared(x)[0], y) for x, y in self._checked(start))
        return prefetched(recut(bytes_alone, self.chunk_size), _AHEAD), self.preprocess

    def _checked(self, start: int) -> Iterator[tuple[np.ndarray | Pixels, np.ndarray]]:
        """Pieces in floats, or of images in uint8, of the shape and type of the first; all is finite."""
        row, target_dtype = start, None
        for number, piece in enumerate(self._pieces(start)):
            x, y = _floats(piece, number)
            if not len(x):
                continue
            if unprepared(x)[1] is not self.preprocess:
                raise InputError(
                    f"chunk {number}, from row {row} on, is prepared in another way than the first chunk; "
                    "give all as floats, or all as images in uint8 with one preprocessing"
                )
            target_dtype = target_dtype or y.dtype
            for name, part, width, dtype in (
                ("inputs", x, self.num_inputs, self.dtype),
                ("targets", y, self.num_targets, target_dtype),
            ):
                if part.ndim != 2 or part.shape[1] != width or len(part) != len(x):
                    raise InputError(
                        f"chunk {number}, from row {row} on, has {name} of shape {part.shape}, expected "
                        f"({len(x)}, {width}) as in the first chunk"
                    )
                if part.dtype != dtype:
                    raise InputError(
                        f"chunk {number}, from row {row} on, has {name} of type {part.dtype} and the first "
                        f"chunk {dtype}; give all in one type"
                    )
                if not isinstance(part, Pixels):
                    check_finite_piece(name, part, number, row)
            self.seen.kinds.add(detect_targets(y))
            yield x, y
            row += len(x)
        if self.seen.rows not in (None, row):
            raise InputError(
                f"the stream ends after {row} rows, and {self.seen.rows} were expected; give all of them in "
                "every pass, from a function that returns a fresh iterator"
            )
        self.seen.rows = row

    def _pieces(self, start: int) -> Iterator[Pair]:
        if not self.rows.once:
            return self.rows.pieces(start)
        pending, self.seen.pending = self.seen.pending, None
        if pending is None or start:
            raise InputError(
                "the iterator is used up, and the data are needed once more; give a list, or a function that "
                "returns a fresh iterator"
            )
        return pending


def source_of(x: Any, y: Any, *, num_inputs: int | None, breadth: int) -> AbstractSource:
    """The source of what a fit is given: arrays, or with y left out a stream.

    Args:
        x: Inputs, shape (n, d); or rows, an iterable of pairs ``(x, y)``, or a function that returns one; or
            a source as it is.
        y: Targets, shape (n, k); None with a stream.
        num_inputs: d; None for whatever x has.
        breadth: Numbers that one input becomes.

    Raises:
        InputError: arrays without targets, a stream with them, or what does not fit.
    """
    streamed = isinstance(x, AbstractRows) or callable(x) or isinstance(x, Iterator)
    if y is None and isinstance(x, AbstractSource):
        return x
    if y is not None:
        if streamed or isinstance(x, AbstractSource):
            raise InputError("a stream yields pairs (x, y) itself; leave y out")
        return ArraySource.of(x, y, num_inputs=num_inputs, breadth=breadth)
    if hasattr(x, "__array__"):
        raise InputError("x is an array, and y is missing; give targets, one row an example")
    return StreamSource.of(x, num_inputs=num_inputs, breadth=breadth)


def prefetched(items: Iterator[T], ahead: int) -> Iterator[T]:
    """The same items, made by a thread before they are asked for; it ends with whoever reads them.

    Args:
        items: What is made.
        ahead: How many may wait.

    Example:
        >>> list(prefetched(iter("abc"), 2))
        ['a', 'b', 'c']
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(ahead)
    over = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not over.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if over.is_set():
                    return
            put(None, _Done())
        except BaseException as error:  # raised again where the items are read
            put(None, error)

    thread = threading.Thread(target=work, name="jaxdistill-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, _Done):
                return
            if error is not None:
                raise error
            yield item  # pyright: ignore[reportReturnType] - an item wherever there is no error
    finally:
        over.set()
        thread.join()


class _Done(Exception):
    """No item is left."""


def _floats(piece: Pair, number: int) -> tuple[np.ndarray | Pixels, np.ndarray]:
    x = input_rows(f"chunk {number}, inputs:", piece[0], finite=False)
    return x, as_floats(f"chunk {number}, targets:", piece[1], finite=False, cure=NO_CLASSES)
